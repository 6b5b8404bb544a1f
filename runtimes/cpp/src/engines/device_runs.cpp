#include "engines/device_runs.h"

#include <algorithm>

#include "status.h"

namespace vditc::internal {

DeviceRuns::DeviceRuns(std::shared_ptr<Cuda> cuda, std::unique_ptr<EngineChain> chain, size_t fetched)
    : cuda_(std::move(cuda)), chain_(std::move(chain)), fetched_(fetched ? fetched : chain_->outputs().size()), records_(chain_->records()) {
  const Cuda::Current current(*cuda_);
  try {
    for (Stream* stream : {&uploads_, &work_, &downloads_}) *stream = cuda_->stream();
  } catch (const Error&) {
    for (const Stream stream : {uploads_, work_, downloads_}) cuda_->destroy(stream);
    chain_.reset();  // with the GPU that it is on
    throw;
  }
}

DeviceRuns::~DeviceRuns() {
  try {
    const Cuda::Current current(*cuda_);
    for (const Stream stream : {uploads_, work_, downloads_}) cuda_->synchronize(stream);  // what failed was said when its result was asked for
    for (Run& run : runs_) release(run);
    chain_->release(*cuda_, work_);
    cuda_->synchronize(work_);
    chain_.reset();
    for (const Stream stream : {uploads_, work_, downloads_}) cuda_->destroy(stream);
  } catch (const Error& error) {
    log(VDITC_LOG_WARNING, error.what());  // the driver is gone: so is what it held
  }
}

void DeviceRuns::resize(const std::vector<Shape>& inputs, size_t runs) {
  const bool left = std::any_of(runs_.begin(), runs_.end(), [](const Run& run) { return run.busy; });  // by a call that failed
  if (inputs == input_shapes_ && runs == runs_.size() && !left) return;
  const Cuda::Current current(*cuda_);
  for (const Stream stream : {uploads_, work_, downloads_}) cuda_->synchronize(stream);
  input_shapes_.clear();  // whatever fails: the next call begins anew
  for (size_t i = runs; i < runs_.size(); ++i) release(runs_[i]);
  runs_.resize(runs);
  for (Run& run : runs_) forget(run);
  chain_->resize(*cuda_, inputs, output_shapes_, work_);
  for (Run& run : runs_) {
    run.inputs.resize(inputs.size()), run.in.resize(inputs.size());
    run.outputs.resize(output_shapes_.size()), run.out.resize(output_shapes_.size());
    for (Event* event : {&run.uploaded, &run.computed, &run.done}) {
      if (*event == nullptr) *event = cuda_->event();
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      room(run.inputs[i], bytes_of(inputs[i], chain_->inputs()[i].dtype), true);
      run.in[i] = run.inputs[i].address;
    }
    for (size_t i = 0; i < output_shapes_.size(); ++i) {
      room(run.outputs[i], bytes_of(output_shapes_[i], chain_->outputs()[i].dtype), i < fetched_);
      run.out[i] = run.outputs[i].address;
    }
  }
  cuda_->synchronize(work_);  // copies may not come before the memory is there
  input_shapes_ = inputs;
}

void DeviceRuns::begin(size_t number) {
  Run& run = runs_[number];
  const Cuda::Current current(*cuda_);
  for (Buffer& buffer : run.inputs) {
    if (!buffer.changed) continue;
    cuda_->upload(buffer.address, buffer.host, buffer.bytes, uploads_);
    buffer.changed = false;
  }
  cuda_->record(run.uploaded, uploads_);
  cuda_->wait(work_, run.uploaded);
  launch(run);
  cuda_->record(run.computed, work_);
  cuda_->wait(downloads_, run.computed);
  for (size_t i = 0; i < fetched_; ++i) cuda_->download(run.outputs[i].host, run.outputs[i].address, run.outputs[i].bytes, downloads_);
  cuda_->record(run.done, downloads_);
  run.busy = true;
}

void DeviceRuns::finish(size_t number) {
  Run& run = runs_[number];
  if (!run.busy) return;
  run.busy = false;
  const Cuda::Current current(*cuda_);
  cuda_->finish(run.done);
}

void DeviceRuns::launch(Run& run) {
  if (run.recorded != nullptr) {
    cuda_->replay(run.recorded, work_);
    return;
  }
  // The first run loads modules and chooses kernels, which a recording may not.
  chain_->enqueue(run.in, run.out, work_);
  if (!records_ || ++run.launched < 2) return;
  try {
    cuda_->begin_recording(work_);
    try {
      chain_->enqueue(run.in, run.out, work_);
    } catch (const Error&) {
      cuda_->abandon_recording(work_);
      throw;
    }
    run.recorded = cuda_->end_recording(work_);
  } catch (const Error& error) {
    records_ = false;
    log(VDITC_LOG_WARNING, std::string("kernels are launched one by one: this engine is not recorded as a CUDA graph (") + error.what() + ")");
  }
}

void DeviceRuns::room(Buffer& buffer, size_t bytes, bool on_host) {
  buffer.bytes = bytes, buffer.changed = true;
  if (buffer.room >= std::max<size_t>(bytes, 1)) return;
  cuda_->release(buffer.address, work_);
  cuda_->release_pinned(buffer.host);
  buffer.address = 0, buffer.host = nullptr, buffer.room = 0;
  const size_t wanted = std::max<size_t>(bytes, 1);
  buffer.address = cuda_->allocate(wanted, work_);
  if (on_host) buffer.host = cuda_->pinned(wanted);
  buffer.room = wanted;  // only when both are there
}

void DeviceRuns::forget(Run& run) {
  cuda_->destroy(run.recorded);
  run.recorded = nullptr, run.launched = 0, run.busy = false;
}

void DeviceRuns::release(Run& run) noexcept {
  forget(run);
  for (std::vector<Buffer>* buffers : {&run.inputs, &run.outputs}) {
    for (Buffer& buffer : *buffers) {
      cuda_->release(buffer.address, work_);
      cuda_->release_pinned(buffer.host);
    }
    buffers->clear();
  }
  for (Event* event : {&run.uploaded, &run.computed, &run.done}) cuda_->destroy(*event), *event = nullptr;
}

}  // namespace vditc::internal
