// The TensorRT of this process: its logger, and its registry of plugins.
//
// The library is not linked to TensorRT, so that one file serves TensorRT 10.3 to 11 and TensorRT-RTX, and what it calls differs: ILogger,
// ILoggerFinder and IPluginRegistry have other virtual functions since TensorRT 11. Which ones an object has is told by the names of its
// base classes (its run-time type information), of the registry by the library's version. Where neither tells, nothing is called.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "tensorrt/abi.h"

namespace vditc::tensorrt {

constexpr const char* NAMESPACE = "vditc";  // vditc.plugins.plugin_op: DOMAIN, VERSION
constexpr const char* VERSION = "1";

// What is wrong with a node or with its tensors: found and wanted.
class BadPlugin : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// As printf makes it.
#ifdef __GNUC__
__attribute__((format(printf, 1, 2)))
#endif
std::string text(const char* format, ...);

enum class Severity : int32_t { FAULT = 1, WARNING = 2, INFO = 3, VERBOSE = 4 };  // ILogger::Severity
// To the logger that TensorRT handed out (setLoggerFinder), else to the one that the process gave it; faults and warnings to the standard
// error stream where there is none.
void log(Severity severity, const std::string& message);
void set_logger_finder(void* finder);

// Whether TensorRT-RTX is in the process: it builds for GPUs that are not there.
bool is_rtx();

// Register creators with the registry of the TensorRT in this process; those that it has already, of this library or another, stay.
// The number that were registered; -1 when the process has no TensorRT, or one that is not known.
int32_t register_creators(nvinfer1::IPluginCreatorInterface* const* creators, int32_t count);

}  // namespace vditc::tensorrt
