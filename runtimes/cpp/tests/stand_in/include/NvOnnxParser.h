// See NvInferRuntime.h.
#pragma once
#include "NvInferRuntime.h"

constexpr int32_t NV_ONNX_PARSER_VERSION = 100;

namespace nvonnxparser {

class IParserRefitter : public nvinfer1::Base {
 public:
  virtual bool refitFromFile(char const* path) noexcept = 0;
};

}  // namespace nvonnxparser
