// The denoising loop: any backend, any scheduler, both guidance branches in one run or in two, one expert after the other.
#pragma once
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "backends/backend.h"
#include "conditioning.h"
#include "decoder.h"
#include "feeder.h"
#include "schedulers/solvers.h"

namespace vditc::internal {

struct SessionOptions {
  std::string backend;  // "": the engine for this machine's GPU
  vditc_denoiser denoiser{};
  std::string solver, step_cache;
  int32_t steps = 0, passes = VDITC_PASSES_AUTO, threads = 0, device = 0;
  double shift = NAN, guidance = NAN, guidance_2 = NAN, embedded_guidance = NAN;
  int64_t weight_budget = -1;
};

struct Done {
  uint64_t steps, total, clip, step;
  const float* latents;
  size_t count;
};
using OnStep = std::function<bool(const Done&)>;  // false: stop

struct Shown {
  uint64_t first, count;
  VideoSize size;
  const uint8_t* pixels;
};
using OnFrames = std::function<bool(const Shown&)>;  // false: stop

class Session : public Object {
 public:
  Session(std::shared_ptr<Bundle> bundle, SessionOptions options);

  // Numbers of the latents of all clips.
  static size_t latents(const Clips& clips) { return clips.count() * clips.latents(); }
  // Samples all clips; `finished` is given their latents, unless an Error says otherwise.
  void sample(const Clips& clips, const OnStep& on_step, const std::function<void(const std::vector<float>&)>& finished);
  // What a clip becomes; Error for a bundle without a decoder, or latents that it does not decode.
  VideoSize video_size(const LatentShape& shape);
  // One clip [channels, frames, height, width] as frames. The denoiser is closed for the graphs of a VAE: one is on the device at a time.
  void decode(const float* latents, const LatentShape& shape, const OnFrames& on_frames);
  // Sets inputs of the conditioning from prompts, one a clip, by the bundle's text encoders; all of them, unless an Error says otherwise.
  void encode(const std::vector<std::string>& prompts, const std::vector<std::string>& negatives, Conditioning& conditioning);
  void cancel() { cancelled_ = true; }
  // Ends the call that is at work, and every later one. It waits: then nothing of the caller's is used any more. Error from a callback.
  void close();
  vditc_session_info info() const;

 private:
  struct Expert {
    std::shared_ptr<Bundle> bundle;
    size_t begin, end;  // of the bundle's steps
    double guidance;
  };
  struct Clip {
    std::unique_ptr<Trajectory> trajectory;
    std::unique_ptr<Skips> skips;
  };

  std::shared_ptr<Bundle> bundle_;
  SessionOptions options_;
  std::vector<InputSpec> specs_;
  std::vector<Expert> experts_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<StepCache> cache_;
  double threshold_ = 0;
  bool guided_ = false, batched_ = true;
  size_t steps_;

  // One call is at work at a time: Error VDITC_ERROR_BUSY beside another.
  class AtWork {
   public:
    explicit AtWork(Session& session);
    ~AtWork() { session_.caller_ = std::thread::id(); }

   private:
    Session& session_;
    std::unique_lock<std::mutex> hold_;
  };

  std::mutex busy_;  // while a call is at work
  Workers workers_;
  std::unique_ptr<Denoiser> denoiser_;
  size_t opened_ = 0;  // expert of denoiser_
  std::vector<float> latents_, known_;
  std::vector<std::vector<float>> predictions_;  // of each run, where they are used again or come one by one
  std::vector<float> mixed_;
  std::atomic<bool> cancelled_{false}, closed_{false};
  std::atomic<std::thread::id> caller_{};  // the thread whose call is at work
  std::atomic<uint64_t> asked_{0}, skipped_{0};
  std::mutex decoder_lock_;  // of decoder_, which is opened when it is first asked for, and stays
  std::unique_ptr<const Decoder> decoder_;

  const Decoder& decoder();
  void find_experts();
  void choose_passes();
  void read_step_cache();
  void check_profile(const Clips& clips) const;
  std::shared_ptr<const Walk> walk(const Clips& clips) const;
  std::vector<int> branches(double guidance) const;
  void open(size_t expert);
  // A graph of another part; the denoiser is closed for it: one engine is on the device at a time.
  std::unique_ptr<Program> part(const std::string& component, const std::string& graph);
  void put_known(const Clips& clips, size_t clip, float* latents) const;
  void load_known(const Clips& clips);
  void stop_if_cancelled();
  void one_step(Feeder& feeder, Clip& clip, const Expert& expert, size_t index, float* latents);
};

std::unique_ptr<Backend> backend_of(const Bundle& bundle, const SessionOptions& options);

}  // namespace vditc::internal
