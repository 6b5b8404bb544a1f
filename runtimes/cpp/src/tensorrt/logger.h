// What TensorRT says: to the library's log, and its last errors for messages of ours.
#pragma once
#include <deque>
#include <mutex>
#include <string>

#include "tensorrt/product.h"

namespace vditc::internal {

class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override;
  void forget();
  std::string words();  // " (the last errors)"; "" without any

 private:
  std::mutex lock_;
  std::deque<std::string> errors_;
};

}  // namespace vditc::internal
