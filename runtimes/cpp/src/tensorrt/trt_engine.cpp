#include "tensorrt/trt_engine.h"

#include <algorithm>

#include "status.h"

namespace vditc::internal {
namespace {

int32_t dtype_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT: return VDITC_F32;
    case nvinfer1::DataType::kHALF: return VDITC_F16;
    case nvinfer1::DataType::kBF16: return VDITC_BF16;
    case nvinfer1::DataType::kINT64: return VDITC_I64;
    case nvinfer1::DataType::kINT32: return VDITC_I32;
    case nvinfer1::DataType::kINT8: return VDITC_I8;
    case nvinfer1::DataType::kUINT8: return VDITC_U8;
    case nvinfer1::DataType::kBOOL: return VDITC_BOOL;
    default: return 0;
  }
}

nvinfer1::Dims dims_of(const Shape& shape) {
  nvinfer1::Dims made{};
  made.nbDims = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), made.d);
  return made;
}

}  // namespace

TrtEngine::TrtEngine(std::shared_ptr<nvinfer1::IRuntime> runtime, std::unique_ptr<nvinfer1::ICudaEngine> engine, Logger& logger, std::string where, bool streams)
    : runtime_(std::move(runtime)), engine_(std::move(engine)), logger_(logger), where_(std::move(where)) {
  records_ = !streams;  // enqueueV3 waits between its layers then
  for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
    const char* name = engine_->getIOTensorName(i);
    const nvinfer1::DataType type = engine_->getTensorDataType(name);
    const int32_t dtype = dtype_of(type);
    if (dtype == 0) failed(text("tensor %s of TensorRT's type %d", name, static_cast<int>(type)));
    (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT ? inputs_ : outputs_).push_back({name, dtype});
  }
  logger_.forget();
  context_.reset(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
  if (!context_) {
    const std::string said = logger_.words();
    const bool memory = said.find("emory") != std::string::npos;
    throw Error(memory ? VDITC_ERROR_DEVICE_MEMORY : VDITC_ERROR_ENGINE, where_, "no context" + said, "a context of the engine",
                memory ? "free memory of the GPU, build with --engine weight-streaming, or give a --profile with smaller clips" : "build the engine again with vditc");
  }
}

void TrtEngine::failed(const std::string& found) const {
  throw Error(VDITC_ERROR_ENGINE, where_, found + logger_.words(), "an engine that runs", "build the engine again with vditc");
}

void TrtEngine::resize(const std::vector<Shape>& inputs, std::vector<Shape>& outputs) {
  for (size_t i = 0; i < inputs_.size(); ++i) {
    if (inputs[i].size() <= VDITC_MAX_RANK && context_->setInputShape(inputs_[i].name.c_str(), dims_of(inputs[i]))) continue;
    throw Error(VDITC_ERROR_INPUT, where_, inputs_[i].name + " of shape " + shape_words(inputs[i]), "a shape within the profile that the engine was built for",
                "build an engine with a wider --profile");
  }
  outputs.clear();
  for (const Port& port : outputs_) {
    const nvinfer1::Dims dims = context_->getTensorShape(port.name.c_str());
    outputs.emplace_back(dims.d, dims.d + std::max(0, dims.nbDims));
    if (dims.nbDims < 0 || elements(outputs.back()) < 0) failed("no shape of " + port.name);
  }
}

size_t TrtEngine::scratch_bytes() {
  logger_.forget();
  const size_t bytes = context_->updateDeviceMemorySizeForShapes();
  if (bytes == 0 && engine_->getDeviceMemorySizeV2() != 0) failed("no size of its scratch memory");
  return bytes;
}

void TrtEngine::take_scratch(DeviceAddress address, size_t bytes) {
  context_->setDeviceMemoryV2(reinterpret_cast<void*>(address), static_cast<int64_t>(bytes));
}

void TrtEngine::enqueue(const std::vector<DeviceAddress>& addresses, Stream stream) {
  bool well = true;
  for (size_t i = 0; i < addresses.size(); ++i) {
    const std::string& name = i < inputs_.size() ? inputs_[i].name : outputs_[i - inputs_.size()].name;
    well = context_->setTensorAddress(name.c_str(), reinterpret_cast<void*>(addresses[i])) && well;
  }
  if (!well || !context_->enqueueV3(stream)) failed("a run that failed");
}

}  // namespace vditc::internal
