#include <cstdlib>
#include <cstring>

#include "native/status.h"

#ifdef VDITC_EMULATED
extern "C" vditc_status vditc_device_allocate(size_t bytes, void** memory) {
  if (!memory) return vditc::fail(VDITC_BAD_ARGUMENT, "memory is null; wanted where its address goes");
  constexpr size_t ALIGNED = 256;  // as cudaMalloc
  *memory = bytes > SIZE_MAX - ALIGNED ? nullptr : std::aligned_alloc(ALIGNED, (bytes + ALIGNED) / ALIGNED * ALIGNED);
  return *memory ? VDITC_OK : vditc::fail(VDITC_CUDA_ERROR, "no memory for %zu bytes", bytes);
}

extern "C" vditc_status vditc_device_free(void* memory) {
  std::free(memory);
  return VDITC_OK;
}

extern "C" vditc_status vditc_device_copy(void* to, const void* from, size_t bytes) {
  if (bytes && (!to || !from)) return vditc::fail(VDITC_BAD_ARGUMENT, "%s is null; wanted memory of %zu bytes", to ? "from" : "to", bytes);
  if (bytes) std::memcpy(to, from, bytes);
  return VDITC_OK;
}
#else
extern "C" vditc_status vditc_device_allocate(size_t bytes, void** memory) {
  if (!memory) return vditc::fail(VDITC_BAD_ARGUMENT, "memory is null; wanted where its address goes");
  const cudaError_t error = cudaMalloc(memory, bytes ? bytes : 1);
  return error == cudaSuccess ? VDITC_OK : vditc::fail_cuda(error, "memory of the device");
}

extern "C" vditc_status vditc_device_free(void* memory) {
  const cudaError_t error = cudaFree(memory);
  return error == cudaSuccess ? VDITC_OK : vditc::fail_cuda(error, "memory of the device");
}

extern "C" vditc_status vditc_device_copy(void* to, const void* from, size_t bytes) {
  if (bytes && (!to || !from)) return vditc::fail(VDITC_BAD_ARGUMENT, "%s is null; wanted memory of %zu bytes", to ? "from" : "to", bytes);
  cudaError_t error = cudaStreamSynchronize(nullptr);
  if (error == cudaSuccess && bytes) error = cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
  // From pageable host memory cudaMemcpy returns when its own copy of the bytes is made.
  if (error == cudaSuccess) error = cudaStreamSynchronize(nullptr);
  return error == cudaSuccess ? VDITC_OK : vditc::fail_cuda(error, "a copy, or work in front of it");
}
#endif
