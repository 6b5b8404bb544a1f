// What a host finds in the library: the two functions that IPluginRegistry::loadLibrary looks for, and registration without it.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

#include "native/vditc_plugins.h"
#include "tensorrt/creators.h"
#include "tensorrt/host.h"
#include "tensorrt/registration.h"

using nvinfer1::IPluginCreatorInterface;

extern "C" VDITC_API IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = vditc::tensorrt::CREATORS;
  return vditc::tensorrt::creators();
}

extern "C" VDITC_API void setLoggerFinder(void* finder) { vditc::tensorrt::set_logger_finder(finder); }

extern "C" int32_t vditc_register_plugins(void) {
  const int32_t done = vditc::tensorrt::register_creators(vditc::tensorrt::creators(), vditc::tensorrt::CREATORS);
  if (done > 0) {  // the registry points into this library from now on: it stays
    Dl_info self{};
    if (dladdr(reinterpret_cast<void*>(&vditc_register_plugins), &self)) dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
  }
  return done;
}

namespace {

// Under LD_PRELOAD nobody calls anything. In every other case registering here would be wrong: loadLibrary registers what it loads and
// fails for what is registered already.
__attribute__((constructor)) void preloaded() {
  const char* libraries = std::getenv("LD_PRELOAD");
  Dl_info self{};
  if (!libraries || !dladdr(reinterpret_cast<void*>(&vditc_register_plugins), &self) || !self.dli_fname) return;
  const char* slash = std::strrchr(self.dli_fname, '/');
  // Programs that load TensorRT later (Python, children of a shell) are not told: there is nothing wrong with them.
  if (std::strstr(libraries, slash ? slash + 1 : self.dli_fname)) vditc_register_plugins();
}

}  // namespace
