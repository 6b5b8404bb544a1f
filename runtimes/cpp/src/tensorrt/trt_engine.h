// An engine of TensorRT: its tensors, and one execution context.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engines/engine.h"
#include "tensorrt/logger.h"

namespace vditc::internal {

class TrtEngine : public Engine {
 public:
  // `runtime` and `logger` live as long as the engine. `streams`: its weights, from the host's memory. Error for tensors of types that no model of vditc has, or memory that is short.
  TrtEngine(std::shared_ptr<nvinfer1::IRuntime> runtime, std::unique_ptr<nvinfer1::ICudaEngine> engine, Logger& logger, std::string where, bool streams);

  void resize(const std::vector<Shape>& inputs, std::vector<Shape>& outputs) override;
  size_t scratch_bytes() override;
  void take_scratch(DeviceAddress address, size_t bytes) override;
  void enqueue(const std::vector<DeviceAddress>& addresses, Stream stream) override;

 private:
  std::shared_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Logger& logger_;
  std::string where_;
  [[noreturn]] void failed(const std::string& found) const;
};

}  // namespace vditc::internal
