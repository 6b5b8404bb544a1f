#include "tensorrt/host.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <typeinfo>
#include <vector>

#include "tensorrt/generations.h"

namespace vditc::tensorrt {
namespace {

using nvinfer1::IPluginCreatorInterface;

enum class Generation { UNKNOWN, TEN, ELEVEN };

bool has_base(const std::type_info* type, const char* wanted) {
  if (!type) return false;
  if (std::strcmp(type->name(), wanted) == 0) return true;
  if (const auto* one = dynamic_cast<const abi::__si_class_type_info*>(type)) return has_base(one->__base_type, wanted);
  if (const auto* many = dynamic_cast<const abi::__vmi_class_type_info*>(type))
    for (unsigned i = 0; i < many->__base_count; ++i)
      if (has_base(many->__base_info[i].__base_type, wanted)) return true;
  return false;
}

// `object`: of a polymorphic class; in front of its table of virtual functions lies its type information, null where there is none.
Generation generation(const void* object, const char* ten, const char* eleven) {
  const auto* type = (*static_cast<const std::type_info* const* const*>(object))[-1];
  return has_base(type, ten) ? Generation::TEN : has_base(type, eleven) ? Generation::ELEVEN : Generation::UNKNOWN;
}

struct Host {
  void* handle = nullptr;
  bool rtx = false;
  template <class Function>
  Function find(const char* name) const {
    return reinterpret_cast<Function>(dlsym(handle, name));
  }
};

int look(dl_phdr_info* info, size_t, void* out) {
  const char* slash = std::strrchr(info->dlpi_name, '/');
  const char* file = slash ? slash + 1 : info->dlpi_name;
  auto& found = *static_cast<Host*>(out);
  const bool rtx = std::strncmp(file, "libtensorrt_rtx.so", 18) == 0;
  // libnvinfer_plugin and the parsers are other libraries; the lean and dispatch runtimes have registries of their own.
  if (!rtx && std::strncmp(file, "libnvinfer.so", 13) && std::strncmp(file, "libnvinfer_lean.so", 18) &&
      std::strncmp(file, "libnvinfer_dispatch.so", 22))
    return 0;
  found.handle = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
  found.rtx = rtx;
  return found.handle != nullptr;
}

// A host may have loaded TensorRT so that RTLD_DEFAULT does not find it (Python does); then it is looked for by its file's name. It is kept:
// a handle counts as a use of the library.
Host host() {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  static Host found;
  if (found.handle) return found;
  if (dlsym(RTLD_DEFAULT, "getPluginRegistry")) {
    Dl_info info{};
    dladdr(dlsym(RTLD_DEFAULT, "getPluginRegistry"), &info);
    found.handle = dlopen(nullptr, RTLD_LAZY);
    found.rtx = info.dli_fname && std::strstr(info.dli_fname, "tensorrt_rtx");
  } else {
    dl_iterate_phdr(look, &found);
  }
  return found;
}

Generation registry_generation(const Host& found) {
  const auto major = found.find<int32_t (*)()>("getInferLibMajorVersion");
  const auto minor = found.find<int32_t (*)()>("getInferLibMinorVersion");
  if (!major || !minor) return Generation::UNKNOWN;
  if (found.rtx) return major() > 1 || (major() == 1 && minor() >= 7) ? Generation::ELEVEN : Generation::UNKNOWN;
  return major() >= 11 ? Generation::ELEVEN : major() == 10 ? Generation::TEN : Generation::UNKNOWN;
}

std::atomic<void*> logger_finder{nullptr};

bool log_with(void* logger, Severity severity, const std::string& message) {
  if (!logger) return false;
  switch (generation(logger, "N8nvinfer17ILoggerE", "N8nvinfer15v_1_07ILoggerE")) {
    case Generation::TEN: static_cast<ten::Logger*>(logger)->log(static_cast<int32_t>(severity), message.c_str()); return true;
    case Generation::ELEVEN: static_cast<eleven::Logger*>(logger)->log(static_cast<int32_t>(severity), message.c_str()); return true;
    case Generation::UNKNOWN: break;
  }
  return false;
}

void* found_logger() {
  void* finder = logger_finder.load();
  if (!finder) return nullptr;
  switch (generation(finder, "N8nvinfer113ILoggerFinderE", "N8nvinfer15v_1_013ILoggerFinderE")) {
    case Generation::TEN: return static_cast<ten::Finder*>(finder)->findLogger();
    case Generation::ELEVEN: return static_cast<eleven::Finder*>(finder)->findLogger();
    case Generation::UNKNOWN: break;
  }
  return nullptr;
}

// Whether the registry has a plugin of that name. Its getCreator would log an error where it has none.
template <class Registry>
bool has(Registry* registry, const nvinfer1::IPluginCreatorV3One& wanted) {
  int32_t count = 0;
  IPluginCreatorInterface* const* all = registry->getAllCreators(&count);
  for (int32_t i = 0; all && i < count; ++i) {
    if (std::strcmp(all[i]->getInterfaceInfo().kind, wanted.getInterfaceInfo().kind)) continue;  // of another interface
    const auto* one = static_cast<const nvinfer1::IPluginCreatorV3One*>(all[i]);
    if (!std::strcmp(one->getPluginName(), wanted.getPluginName()) && !std::strcmp(one->getPluginVersion(), wanted.getPluginVersion()) &&
        !std::strcmp(one->getPluginNamespace(), wanted.getPluginNamespace()))
      return true;
  }
  return false;
}

template <class Registry>
int32_t register_with(Registry* registry, IPluginCreatorInterface* const* creators, int32_t count) {
  int32_t done = 0;
  for (int32_t i = 0; i < count; ++i) {
    const auto* one = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    if (has(registry, *one)) continue;
    done += registry->registerCreator(*creators[i], one->getPluginNamespace());
  }
  return done;
}

}  // namespace

std::string text(const char* format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  std::vector<char> out(static_cast<size_t>(std::vsnprintf(nullptr, 0, format, arguments)) + 1);
  std::vsnprintf(out.data(), out.size(), format, again);
  va_end(again);
  va_end(arguments);
  return out.data();
}

void set_logger_finder(void* finder) { logger_finder.store(finder); }

void log(Severity severity, const std::string& message) {
  if (log_with(found_logger(), severity, message)) return;
  if (const Host found = host(); found.handle)
    if (const auto logger = found.find<void* (*)()>("getLogger"))
      if (log_with(logger(), severity, message)) return;
  if (severity <= Severity::WARNING) std::fprintf(stderr, "vditc: %s: %s\n", severity == Severity::FAULT ? "error" : "warning", message.c_str());
}

bool is_rtx() {
  // The finder is an object of the library that loaded this one last.
  Dl_info info{};
  if (const void* finder = logger_finder.load(); finder && dladdr(*static_cast<void* const*>(finder), &info) && info.dli_fname)
    return std::strstr(info.dli_fname, "tensorrt_rtx") != nullptr;
  return host().rtx;
}

int32_t register_creators(IPluginCreatorInterface* const* creators, int32_t count) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const Host found = host();
  if (!found.handle) return -1;
  const auto registry = found.find<void* (*)()>("getPluginRegistry");
  void* const registered = registry ? registry() : nullptr;
  if (!registered) return -1;
  switch (registry_generation(found)) {
    case Generation::TEN: return register_with(static_cast<ten::Registry*>(registered), creators, count);
    case Generation::ELEVEN: return register_with(static_cast<eleven::Registry*>(registered), creators, count);
    case Generation::UNKNOWN: break;
  }
  return -1;
}

}  // namespace vditc::tensorrt
