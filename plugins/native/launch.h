// Starts a kernel (device.h) on a stream, or in the emulator.
#pragma once
#include "native/device.h"
#include "native/status.h"

namespace vditc {

#ifdef VDITC_EMULATED
// `threads` of a block: a multiple of 32, at most Kernel::THREADS. `shared`: bytes. Status: what went wrong.
template <class Kernel>
Status launch(dim3 grid, int threads, size_t shared, cudaStream_t, const typename Kernel::Arguments& arguments) {
  try {
    emulator::run(grid, threads, shared, [&](unsigned char* memory) { Kernel::run(arguments, memory); });
  } catch (const std::exception& error) {
    return fail(VDITC_CUDA_ERROR, "emulator: %s", error.what());
  }
  return VDITC_OK;
}
#else
template <class Kernel>
__global__ void __launch_bounds__(Kernel::THREADS, Kernel::BLOCKS_PER_SM) entry(const __grid_constant__ typename Kernel::Arguments arguments) {
  extern __shared__ __align__(128) unsigned char memory[];
  Kernel::run(arguments, memory);
}

template <class Kernel>
Status launch(dim3 grid, int threads, size_t shared, cudaStream_t stream, const typename Kernel::Arguments& arguments) {
  if (shared > 48u << 10) {
    const cudaError_t error = cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return fail_cuda(error, "shared memory of a kernel");
  }
  entry<Kernel><<<grid, threads, shared, stream>>>(arguments);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? VDITC_OK : fail_cuda(error, "launch of a kernel");
}
#endif

template <class Kernel>
Status launch(dim3 grid, size_t shared, cudaStream_t stream, const typename Kernel::Arguments& arguments) {
  return launch<Kernel>(grid, Kernel::THREADS, shared, stream, arguments);
}

}  // namespace vditc
