// An engine on a GPU, as TensorRT gives it, and what loads engines.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "dtype.h"
#include "engines/about.h"
#include "engines/cuda.h"

namespace vditc::internal {

struct Port {
  std::string name;
  int32_t dtype = 0;
};

// One plan. It computes where it is told to, in the order of a stream, with scratch memory that is given to it.
class Engine {
 public:
  virtual ~Engine() = default;
  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }

  // Shapes of the next runs, in the order of the ports; fills those of the outputs. Error VDITC_ERROR_INPUT outside of the profile.
  virtual void resize(const std::vector<Shape>& inputs, std::vector<Shape>& outputs) = 0;
  // Whether launches may be recorded: not those of an engine that copies its weights from the host between them.
  bool records() const { return records_; }
  // Of runs of these shapes, in bytes.
  virtual size_t scratch_bytes() = 0;
  virtual void take_scratch(DeviceAddress address, size_t bytes) = 0;
  // `addresses`: of the inputs, then of the outputs. Nothing is allocated.
  virtual void enqueue(const std::vector<DeviceAddress>& addresses, Stream stream) = 0;

 protected:
  std::vector<Port> inputs_, outputs_;
  bool records_ = true;
};

struct Plan {
  std::string path;
  About about;
  std::string weights;             // path of the graph with an engine's stripped weights; "" for others
  std::string library;             // path of the plugin library; "" where the engine wants none
  std::vector<PluginName> wanted;  // of it
  int64_t weight_budget = -1;      // bytes of the GPU for streamed weights; -1: what the engine was built with
};

// TensorRT, or TensorRT-RTX.
class EngineLibrary {
 public:
  virtual ~EngineLibrary() = default;
  // Error VDITC_ERROR_ENGINE with what was built and what is here, VDITC_ERROR_PLUGIN, VDITC_ERROR_DEVICE_MEMORY.
  virtual std::unique_ptr<Engine> load(const Plan& plan, const Cuda& cuda) = 0;
};

// Of the headers that this library was built with; Error VDITC_ERROR_ENGINE where it is not installed.
std::shared_ptr<EngineLibrary> engine_library();
const char* engine_module();   // "tensorrt" or "tensorrt_rtx", as targets name it
std::string engine_headers();  // "TensorRT 10.3.0"

}  // namespace vditc::internal
