// What TensorRT says: to the library's log, and the last errors of the calling thread for messages of ours.
#pragma once
#include <string>

#include "tensorrt/product.h"

namespace vditc::internal {

class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override;
  void forget();
  std::string words();  // " (the last errors)"; "" without any
};

}  // namespace vditc::internal
