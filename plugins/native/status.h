// How functions of the library say what went wrong: a code, and a message that the thread keeps (vditc_last_error).
#pragma once
#include "native/vditc_plugins.h"
#ifdef VDITC_EMULATED
#include <stdexcept>
#elif !defined(__CUDACC_RTC__)
#include <cuda_runtime.h>
#endif

namespace vditc {

using Status = vditc_status;

// Keeps a message, as printf makes it, and returns the code. Messages say what was found and what was wanted.
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
Status fail(Status code, const char* format, ...);

#if !defined(VDITC_EMULATED) && !defined(__CUDACC_RTC__)
Status fail_cuda(cudaError_t error, const char* where);
#endif

}  // namespace vditc

// Returns from the function that stands around it unless `call` is VDITC_OK.
#define VDITC_TRY(call)                                        \
  do {                                                         \
    const ::vditc::Status vditc_found = (call);                \
    if (vditc_found != VDITC_OK) return vditc_found;           \
  } while (false)
