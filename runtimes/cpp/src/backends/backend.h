// What runs a model: one interface for engines on a GPU, a fixed function for tests, and a denoiser of the host's own.
//
// The sampling loop writes inputs into memory of the backend, begins runs and waits for their predictions. Two runs may be in flight (the two
// branches of guidance): while one computes, the other's inputs are copied. After `resize` nothing is allocated.
#pragma once
#include <memory>
#include <vector>

#include "backends/program.h"
#include "bundle.h"

namespace vditc::internal {

// How a model is called for some clips.
struct Call {
  const std::vector<InputSpec>* specs = nullptr;  // what the model takes, the latents first
  std::vector<Shape> shapes;                      // of each
  size_t runs = 1;                                // in flight
  Shape prediction;                               // [batch, channels, frames, height, width]
};

class Denoiser {
 public:
  virtual ~Denoiser() = default;
  // Before the first run, and where shapes change. Error for shapes that the engine was not built for.
  virtual void resize(const Call& call) = 0;
  // Memory of one input of a run, as large as its shape, to be written between `result` and `begin`; nullptr: the engine does not take it.
  virtual void* input(size_t run, size_t index) = 0;
  // The loop has written it: an engine on a device copies only these.
  virtual void changed(size_t run, size_t index) = 0;
  // `step`: of the expert's own schedule, the key of per-step tables.
  virtual void begin(size_t run, int64_t step) = 0;
  // Waits. float32 of the prediction's shape, good until the run begins again.
  virtual const float* result(size_t run) = 0;
};

// Opens the denoiser of one expert: one is open at a time.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::unique_ptr<Denoiser> open(const Bundle& expert, size_t index) = 0;
  // One graph of a text encoder or a VAE decoder, of the bundle's folder `components/COMPONENT`. Error for a backend that has none.
  virtual std::unique_ptr<Program> program(const Bundle& bundle, const std::string& component, const std::string& graph);
  // Inputs of the model as this backend's graph has them, `step` among them: the first axis says how many clips it takes at once.
  virtual std::vector<InputSpec> inputs(const Bundle& bundle) const { return bundle.inputs(); }
  // Whether sizes must be within the bundle's profile.
  virtual bool built() const { return false; }
};

// Inputs and predictions in the host's memory.
class HostDenoiser : public Denoiser {
 public:
  void resize(const Call& call) override;
  void* input(size_t run, size_t index) override { return runs_[run].inputs[index].data(); }
  void changed(size_t, size_t) override {}
  void begin(size_t run, int64_t step) override { predict(run, step); }
  const float* result(size_t run) override { return runs_[run].prediction.data(); }

 protected:
  struct Run {
    std::vector<std::vector<uint8_t>> inputs;
    std::vector<vditc_tensor> tensors;
    std::vector<float> prediction;
  };
  Call call_;
  std::vector<Run> runs_;
  virtual void predict(size_t run, int64_t step) = 0;
};

std::unique_ptr<Backend> null_backend();
// `denoiser` is copied.
std::unique_ptr<Backend> host_backend(const vditc_denoiser& denoiser);

}  // namespace vditc::internal
