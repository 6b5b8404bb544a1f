#include "native/status.h"

#include <cstdarg>
#include <cstdio>

namespace vditc {
namespace {
thread_local char message[512];
}

Status fail(Status code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return code;
}

#ifndef VDITC_EMULATED
Status fail_cuda(cudaError_t error, const char* where) {
  (void)cudaGetLastError();  // CUDA keeps it, and this thread's next launch would report it
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
    return fail(VDITC_NO_KERNEL, "%s: the library has no code for this GPU (%s)", where, cudaGetErrorString(error));
  if (error == cudaErrorInsufficientDriver)
    return fail(VDITC_CUDA_ERROR, "%s: %s; this library needs a driver of CUDA %d (of 13: 580 or newer), or build it with --cuda 12", where,
                cudaGetErrorString(error), CUDART_VERSION / 1000);
  return fail(VDITC_CUDA_ERROR, "%s: %s", where, cudaGetErrorString(error));
}
#endif

}  // namespace vditc

extern "C" const char* vditc_last_error(void) { return vditc::message; }
extern "C" int32_t vditc_abi_version(void) { return VDITC_ABI_VERSION; }
