#include <cstring>

#include "backends/backend.h"
#include "status.h"

namespace vditc::internal {

void HostDenoiser::resize(const Call& call) {
  call_ = call;
  runs_.assign(call.runs, Run());
  for (Run& run : runs_) {
    for (size_t i = 0; i < call.shapes.size(); ++i) {
      const InputSpec& spec = (*call.specs)[i];
      const Shape& shape = call.shapes[i];
      run.inputs.emplace_back(static_cast<size_t>(elements(shape)) * dtype_size(spec.dtype));
      vditc_tensor tensor{};
      tensor.name = spec.name.c_str();
      tensor.data = run.inputs.back().data();
      tensor.bytes = run.inputs.back().size();
      tensor.dtype = spec.dtype;
      tensor.rank = static_cast<uint32_t>(shape.size());
      std::copy(shape.begin(), shape.end(), tensor.shape);
      run.tensors.push_back(tensor);
    }
    run.prediction.resize(static_cast<size_t>(elements(call.prediction)));
  }
}

std::unique_ptr<Program> Backend::program(const Bundle& bundle, const std::string& component, const std::string& graph) {
  throw Error(VDITC_ERROR_UNSUPPORTED, "bundle " + bundle.path(), "components/" + component + "/" + graph + " on a backend that runs the transformer alone",
              "a backend with engines of text encoders and VAEs", "encode prompts and decode latents in the host, or use another backend");
}

namespace {

class Called : public HostDenoiser {
 public:
  Called(const vditc_denoiser& denoiser, size_t expert) : denoiser_(denoiser), expert_(static_cast<int32_t>(expert)) {}

 private:
  vditc_denoiser denoiser_;
  int32_t expert_;
  void predict(size_t run, int64_t step) override {
    Run& at = runs_[run];
    const int32_t status = denoiser_.predict(denoiser_.user, at.tensors.data(), at.tensors.size(), expert_, static_cast<int32_t>(step),
                                             at.prediction.data(), at.prediction.size() * sizeof(float));
    if (status != 0) {
      throw Error(VDITC_ERROR_CALLBACK, "the host's denoiser", text("status %d at step %lld", status, static_cast<long long>(step)), "0",
                  "see what the host says of it");
    }
  }
};

class HostBackend : public Backend {
 public:
  explicit HostBackend(const vditc_denoiser& denoiser) : denoiser_(denoiser) {}
  std::unique_ptr<Denoiser> open(const Bundle&, size_t index) override { return std::make_unique<Called>(denoiser_, index); }

 private:
  vditc_denoiser denoiser_;
};

}  // namespace

std::unique_ptr<Backend> host_backend(const vditc_denoiser& denoiser) { return std::make_unique<HostBackend>(denoiser); }

}  // namespace vditc::internal
