// A registry of plugins as TensorRT 10 or 11 have it (REGISTRY_MAJOR), for tests of what a library does when it is preloaded. Whether the
// virtual functions are TensorRT's is another test's (tensorrt_abi.cpp).
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "tensorrt/generations.h"

using nvinfer1::IPluginCreatorInterface;

namespace {
std::vector<nvinfer1::IPluginCreatorV3One*> there;

template <class Interface>
struct Registry : Interface {
  void setErrorRecorder(void*) noexcept override {}
  void* getErrorRecorder() const noexcept override { return nullptr; }
  bool isParentSearchEnabled() const override { return true; }
  void setParentSearchEnabled(bool) override {}
  void* loadLibrary(const char*) noexcept override { return nullptr; }
  void deregisterLibrary(void*) noexcept override {}
  bool registerCreator(IPluginCreatorInterface& one, const char* domain) noexcept override {
    auto* made = static_cast<nvinfer1::IPluginCreatorV3One*>(&one);
    if (std::strcmp(domain, made->getPluginNamespace()) || getCreator(made->getPluginName(), made->getPluginVersion(), domain)) {
      std::printf("refused %s\n", made->getPluginName());
      return false;
    }
    there.push_back(made);
    return true;
  }
  IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
    static std::vector<IPluginCreatorInterface*> all;
    all.assign(there.begin(), there.end());
    *count = static_cast<int32_t>(all.size());
    return all.data();
  }
  IPluginCreatorInterface* getCreator(const char* name, const char* version, const char* domain) noexcept override {
    for (auto* one : there)
      if (std::string(one->getPluginName()) == name && std::string(one->getPluginVersion()) == version && std::string(one->getPluginNamespace()) == domain)
        return one;
    return nullptr;
  }
};
#if REGISTRY_MAJOR >= 11
Registry<vditc::tensorrt::eleven::Registry> registry;
#else
struct Ten : vditc::tensorrt::ten::Registry {
  bool registerCreatorV2(void*, const char*) noexcept override { return false; }
  void* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
  void* getPluginCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
  bool deregisterCreatorV2(const void*) noexcept override { return false; }
};
Registry<Ten> registry;
#endif
}  // namespace

extern "C" void* getPluginRegistry() { return &registry; }
extern "C" int32_t getInferLibMajorVersion() { return REGISTRY_MAJOR; }
extern "C" int32_t getInferLibMinorVersion() { return 0; }
extern "C" const char* registered() {
  static std::string said;
  said.clear();
  for (auto* one : there) said += std::string(one->getPluginNamespace()) + "." + one->getPluginName() + " ";
  return said.c_str();
}
