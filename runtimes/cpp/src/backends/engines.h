// Engines of TensorRT or TensorRT-RTX, where the library was built with their headers (engines/, tensorrt/), or why there are none (no_engines.cpp).
#pragma once
#include <memory>
#include <string>

#include "backends/backend.h"

namespace vditc::internal {

// Of a target of the bundle; "": the one that was built for this machine's GPU. `weight_budget`: see vditc_session_options. Error
// VDITC_ERROR_UNSUPPORTED where the library has no such engines, VDITC_ERROR_NO_DEVICE without a GPU or an engine for it.
std::unique_ptr<Backend> engine_backend(const Bundle& bundle, const std::string& target, int device, int64_t weight_budget);

}  // namespace vditc::internal
