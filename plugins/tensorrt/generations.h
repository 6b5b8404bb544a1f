// Interfaces of TensorRT that are not the same in 10 and 11: virtual functions in their order, as far as they are called. Signatures matter as
// little as they can: pointers that are not used are void*. tests/plugins/test_tensorrt_abi.py compares the order with headers.
#pragma once
#include "tensorrt/abi.h"

namespace vditc::tensorrt {

namespace ten {
struct Logger {
  virtual void log(int32_t severity, const char* message) noexcept = 0;
  virtual ~Logger() = default;
};
struct Finder {
  virtual Logger* findLogger() = 0;
  virtual ~Finder() = default;
};
struct Registry {
  virtual bool registerCreatorV2(void*, const char*) noexcept = 0;
  virtual void* getPluginCreatorList(int32_t*) const noexcept = 0;
  virtual void* getPluginCreator(const char*, const char*, const char*) noexcept = 0;
  virtual ~Registry() noexcept = default;
  virtual void setErrorRecorder(void*) noexcept = 0;
  virtual void* getErrorRecorder() const noexcept = 0;
  virtual bool deregisterCreatorV2(const void*) noexcept = 0;
  virtual bool isParentSearchEnabled() const = 0;
  virtual void setParentSearchEnabled(bool) = 0;
  virtual void* loadLibrary(const char*) noexcept = 0;
  virtual void deregisterLibrary(void*) noexcept = 0;
  virtual bool registerCreator(nvinfer1::IPluginCreatorInterface&, const char*) noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* getCreator(const char* name, const char* version, const char* domain) noexcept = 0;
};
}  // namespace ten

namespace eleven {
struct Logger : nvinfer1::IVersionedInterface {
  virtual void log(int32_t severity, const char* message) noexcept = 0;
};
struct Finder : nvinfer1::IVersionedInterface {
  virtual Logger* findLogger() = 0;
};
struct Registry {
  virtual ~Registry() noexcept = default;
  virtual void setErrorRecorder(void*) noexcept = 0;
  virtual void* getErrorRecorder() const noexcept = 0;
  virtual bool isParentSearchEnabled() const = 0;
  virtual void setParentSearchEnabled(bool) = 0;
  virtual void* loadLibrary(const char*) noexcept = 0;
  virtual void deregisterLibrary(void*) noexcept = 0;
  virtual bool registerCreator(nvinfer1::IPluginCreatorInterface&, const char*) noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* getCreator(const char* name, const char* version, const char* domain) noexcept = 0;
};
}  // namespace eleven

}  // namespace vditc::tensorrt
