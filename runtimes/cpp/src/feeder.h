// What a denoiser is fed for one clip: one or both branches of guidance, in one run or one run each.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "backends/backend.h"
#include "conditioning.h"
#include "step_cache.h"
#include "workers.h"

namespace vditc::internal {

// Shapes of the model's inputs for `batch` clips, of the sizes of a conditioning; Error for an axis that nobody gives a size.
std::vector<Shape> input_shapes(const std::vector<InputSpec>& specs, const std::map<std::string, int64_t>& sizes, const Clips& clips, int64_t batch);

class Feeder {
 public:
  // `branches` of each run: {PROMPTED}, {BOTH} or {PROMPTED, UNPROMPTED}. `embedded`: guidance scale of models that are told one; NaN: theirs.
  Feeder(const std::vector<InputSpec>& specs, const Clips& clips, std::vector<int> branches, double embedded);

  const std::vector<int>& branches() const { return branches_; }
  Call call() const;
  // Where the latents of a run are to be written as the model is shown them, float32 [channels, frames, height, width]: in the denoiser's own
  // memory where that is float32.
  float* latents(Denoiser& denoiser);
  // Once for every clip and every denoiser: inputs that no step changes, and the constant channels.
  void still(Denoiser& denoiser, size_t clip);
  // The latents, which stand where `latents` said, and the time, for one run.
  void feed(Denoiser& denoiser, Workers& workers, size_t run, float timestep);

 private:
  const std::vector<InputSpec>& specs_;
  const Clips& clips_;
  std::vector<int> branches_;
  double embedded_;
  std::vector<Shape> shapes_;
  std::vector<float> shown_;  // where the denoiser's memory is not float32
  size_t count_, wide_;       // numbers of the latents, with their extra channels

  size_t batch(size_t run) const { return branches_[run] == BOTH ? 2 : 1; }
  const HostArray* given(const std::string& name, bool prompted) const;
};

}  // namespace vditc::internal
