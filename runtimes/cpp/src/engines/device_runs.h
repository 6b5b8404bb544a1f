// Runs of a chain of engines with inputs and outputs in the host's memory (vditc.runtimes.device_runs is the same in Python).
//
// Several runs may be in flight: while the GPU computes one, the inputs of the next are copied on a stream of their own, and the outputs of the
// one before on another. Memory is ordered by streams. From the third run of the same shapes on, a CUDA graph of all launches is replayed; where an
// engine cannot be recorded, launches are made one by one and a warning says so once.
#pragma once
#include <memory>
#include <vector>

#include "engines/chain.h"

namespace vditc::internal {

class DeviceRuns {
 public:
  // `fetched`: outputs that come back to the host; none: all.
  DeviceRuns(std::shared_ptr<Cuda> cuda, std::unique_ptr<EngineChain> chain, size_t fetched);
  ~DeviceRuns();
  DeviceRuns(const DeviceRuns&) = delete;
  DeviceRuns& operator=(const DeviceRuns&) = delete;

  const std::vector<Port>& inputs() const { return chain_->inputs(); }
  const std::vector<Port>& outputs() const { return chain_->outputs(); }
  const Shape& output_shape(size_t index) const { return output_shapes_[index]; }

  // Before the first run, and where shapes or the number of runs in flight change; no run may be in flight.
  void resize(const std::vector<Shape>& inputs, size_t runs);
  // Memory for one input of a run, to be written between `finish` and `begin`.
  void* input(size_t run, size_t index) { return runs_[run].inputs[index].host; }
  // It was written: what was not is not copied again.
  void changed(size_t run, size_t index) { runs_[run].inputs[index].changed = true; }
  void begin(size_t run);
  // Waits. Error where the run failed.
  void finish(size_t run);
  const void* output(size_t run, size_t index) const { return runs_[run].outputs[index].host; }

 private:
  struct Buffer {
    size_t bytes = 0, room = 0;
    DeviceAddress address = 0;
    void* host = nullptr;
    bool changed = false;
  };
  struct Run {
    std::vector<Buffer> inputs, outputs;
    std::vector<DeviceAddress> in, out;  // addresses, as the chain takes them
    Event uploaded = nullptr, computed = nullptr, done = nullptr;
    Recorded recorded = nullptr;
    int launched = 0;  // one by one, since shapes changed
    bool busy = false;
  };

  std::shared_ptr<Cuda> cuda_;
  std::unique_ptr<EngineChain> chain_;
  size_t fetched_;
  Stream uploads_ = nullptr, work_ = nullptr, downloads_ = nullptr;  // two for copies: one of the next run would wait for this one's end
  std::vector<Run> runs_;
  std::vector<Shape> input_shapes_, output_shapes_;
  bool records_;

  void room(Buffer& buffer, size_t bytes, bool on_host);
  void launch(Run& run);
  void forget(Run& run);
  void release(Run& run) noexcept;
};

}  // namespace vditc::internal
