// What a host finds in the library: the two functions that IPluginRegistry::loadLibrary looks for, and registration without it.
#include <dlfcn.h>
#include <sys/stat.h>

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

// The file of a library that registers itself when it is opened: of a host that only opens plugin libraries, as Triton's backend does.
constexpr const char* OPENED = "VDITC_REGISTER_PLUGINS";

bool same_file(const char* one, const char* other) {
  struct stat a{}, b{};
  return stat(one, &a) == 0 && stat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// Under LD_PRELOAD, and in a host that opens libraries and no more, nobody calls anything. In every other case registering here would be
// wrong: loadLibrary registers what it loads and fails for what is registered already. It may load a copy (of a plan with the library in
// it) beside the one that is named, so that the name is that of a file.
__attribute__((constructor)) void loaded() {
  Dl_info self{};
  if (!dladdr(reinterpret_cast<void*>(&vditc_register_plugins), &self) || !self.dli_fname) return;
  if (const char* opened = std::getenv(OPENED); opened && same_file(opened, self.dli_fname)) {
    if (vditc_register_plugins() < 0)
      vditc::tensorrt::log(vditc::tensorrt::Severity::FAULT,
                           vditc::tensorrt::text("found no TensorRT in the process that opens %s; wanted TensorRT 10 or 11, for %s names this "
                                                 "library; open it after TensorRT", self.dli_fname, OPENED));
    return;
  }
  const char* libraries = std::getenv("LD_PRELOAD");
  const char* slash = std::strrchr(self.dli_fname, '/');
  // Programs that load TensorRT later (Python, children of a shell) are not told: there is nothing wrong with them.
  if (libraries && std::strstr(libraries, slash ? slash + 1 : self.dli_fname)) vditc_register_plugins();
}

}  // namespace
