// Names of TensorRT that runtimes/cpp uses, of our own, for tests where there are no headers of TensorRT: with ../tensorrt.cpp they make the
// engine backend run on any machine. Objects do not lie in memory as TensorRT's do; that the names and types are TensorRT's is seen when the
// library is compiled with its headers (tests/cpp/test_tensorrt_headers.py).
#pragma once
#include <cstddef>
#include <cstdint>

#include "NvInferVersion.h"

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace nvinfer1 {

using AsciiChar = char;
enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5, kFP8 = 6, kBF16 = 7, kINT64 = 8, kINT4 = 9 };
enum class TensorIOMode : int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class ExecutionContextAllocationStrategy : int32_t { kSTATIC = 0, kON_PROFILE_CHANGE = 1, kUSER_MANAGED = 2 };

struct Dims64 {
  int32_t nbDims;
  int64_t d[8];
};
using Dims = Dims64;

class Base {
 public:
  virtual ~Base() noexcept = default;
};

class ILogger : public Base {
 public:
  enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual void log(Severity severity, AsciiChar const* message) noexcept = 0;
};

class IPluginCreatorInterface : public Base {};

class IPluginRegistry : public Base {
 public:
  using PluginLibraryHandle = void*;
  virtual PluginLibraryHandle loadLibrary(AsciiChar const* path) noexcept = 0;
  virtual IPluginCreatorInterface* getCreator(AsciiChar const* name, AsciiChar const* version, AsciiChar const* space = "") noexcept = 0;
};

class IExecutionContext : public Base {
 public:
  virtual bool setInputShape(char const* name, Dims const& dims) noexcept = 0;
  virtual Dims getTensorShape(char const* name) const noexcept = 0;
  virtual size_t updateDeviceMemorySizeForShapes() noexcept = 0;
  virtual void setDeviceMemoryV2(void* memory, int64_t size) noexcept = 0;
  virtual bool setTensorAddress(char const* name, void* data) noexcept = 0;
  virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine : public Base {
 public:
  virtual int32_t getNbIOTensors() const noexcept = 0;
  virtual char const* getIOTensorName(int32_t index) const noexcept = 0;
  virtual DataType getTensorDataType(char const* name) const noexcept = 0;
  virtual TensorIOMode getTensorIOMode(char const* name) const noexcept = 0;
  virtual IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC) noexcept = 0;
  virtual int64_t getDeviceMemorySizeV2() const noexcept = 0;
  virtual int64_t getStreamableWeightsSize() const noexcept = 0;
  virtual bool setWeightStreamingBudgetV2(int64_t budget) noexcept = 0;
  virtual int64_t getWeightStreamingAutomaticBudget() const noexcept = 0;
};

class IRuntime : public Base {
 public:
  virtual void setEngineHostCodeAllowed(bool allowed) noexcept = 0;
  virtual ICudaEngine* deserializeCudaEngine(void const* blob, size_t size) noexcept = 0;
  virtual IPluginRegistry& getPluginRegistry() noexcept = 0;
};

class IRefitter : public Base {
 public:
  virtual int32_t getMissingWeights(int32_t size, char const** names) noexcept = 0;
  virtual bool refitCudaEngine() noexcept = 0;
};

}  // namespace nvinfer1
