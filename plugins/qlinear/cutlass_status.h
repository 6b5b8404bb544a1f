// What all tactics that stand on CUTLASS check, and its errors as those of the library.
#pragma once
#include <cutlass/cutlass.h>

#include <climits>

#include "native/status.h"
#include "qlinear/epilogue.h"

namespace vditc::qlinear {

inline Status cutlass_check(const char* name, const Epilogue& e, int64_t m, int n, int k, const void* workspace, size_t bytes,
                            size_t needed) {
  if (k < 16 || k % 16) return fail(VDITC_BAD_ARGUMENT, "%s: k %d; wanted a multiple of 16, the bytes that it loads at once", name, k);
  if (m > INT_MAX || n < 1)
    return fail(VDITC_BAD_ARGUMENT, "%s: m %lld, n %d; wanted fewer than 2^31 rows and at least one column", name,
                static_cast<long long>(m), n);
  if (e.m != m || e.n != n)
    return fail(VDITC_BAD_ARGUMENT, "%s: an epilogue of %lld x %d for a product of %lld x %d", name, static_cast<long long>(e.m), e.n,
                static_cast<long long>(m), n);
  if (!e.y && !e.accumulators) return fail(VDITC_BAD_ARGUMENT, "%s: neither y nor accumulators", name);
  if (e.y && !e.weight_scale) return fail(VDITC_BAD_ARGUMENT, "%s: no weight_scale; scales of groups are for other tactics", name);
  if (bytes < needed || (needed && !workspace))
    return fail(VDITC_WORKSPACE_TOO_SMALL, "%s: %zu bytes of workspace; wanted %zu", name, workspace ? bytes : 0, needed);
  return VDITC_OK;
}

// What came of a launch. CUTLASS asks CUDA for its error and keeps it to itself, so `kernel` is asked about: most often there is no code
// for the GPU.
inline Status cutlass_status(const char* name, cutlass::Status found, const void* kernel) {
  if (found == cutlass::Status::kSuccess) return VDITC_OK;
  cudaFuncAttributes attributes;
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess) return fail_cuda(error, name);
  (void)cudaGetLastError();  // the next launch of this thread would report it
  return fail(VDITC_CUDA_ERROR, "%s: CUTLASS: %s", name, cutlass::cutlassGetStatusString(found));
}

}  // namespace vditc::qlinear
