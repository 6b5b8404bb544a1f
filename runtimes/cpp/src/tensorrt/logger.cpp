#include "tensorrt/logger.h"

#include <deque>

#include "status.h"

namespace vditc::internal {
namespace {

constexpr size_t KEPT = 3;

std::deque<std::string>& errors() {
  thread_local std::deque<std::string> made;  // sessions on other threads have troubles of their own
  return made;
}

int32_t level(nvinfer1::ILogger::Severity severity) {
  switch (severity) {
    case nvinfer1::ILogger::Severity::kINTERNAL_ERROR:
    case nvinfer1::ILogger::Severity::kERROR: return VDITC_LOG_ERROR;
    case nvinfer1::ILogger::Severity::kWARNING: return VDITC_LOG_WARNING;
    case nvinfer1::ILogger::Severity::kINFO: return VDITC_LOG_INFO;
    default: return VDITC_LOG_DEBUG;
  }
}

}  // namespace

void Logger::log(Severity severity, const char* message) noexcept {
  try {
    const int32_t said = level(severity);
    if (logs(said)) internal::log(said, std::string("TensorRT: ") + message);
    if (said != VDITC_LOG_ERROR) return;
    errors().emplace_back(message);
    if (errors().size() > KEPT) errors().pop_front();
  } catch (...) {  // no memory for a message
  }
}

void Logger::forget() {
  errors().clear();
}

std::string Logger::words() {
  std::string made;
  for (const std::string& error : errors()) made += (made.empty() ? " (" : " | ") + error;
  return made.empty() ? made : made + ")";
}

}  // namespace vditc::internal
