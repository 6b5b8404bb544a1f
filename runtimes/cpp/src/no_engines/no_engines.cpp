// What stands for engines in a library that was built without TensorRT's headers.
#include "backends/engines.h"
#include "status.h"

namespace vditc::internal {

std::unique_ptr<Backend> engine_backend(const Bundle& bundle, const std::string& target, int, int64_t) {
  throw Error(VDITC_ERROR_UNSUPPORTED, "bundle " + bundle.path(), target.empty() ? "no backend asked for" : "target " + target,
              "a library that was built with TensorRT", "build libvditc with -DTENSORRT_ROOT=..., or use the backend host with a denoiser of your own");
}

}  // namespace vditc::internal
