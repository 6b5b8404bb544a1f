// Starts a kernel (device.h) on a stream, or in the emulator.
#pragma once
#include "native/device.h"
#include "native/status.h"
#if defined(VDITC_NVRTC) && !defined(__CUDACC_RTC__)
#include "native/driver.h"
#elif !defined(VDITC_EMULATED) && !defined(__CUDACC_RTC__)
#include "native/capture.h"
#endif

namespace vditc {

// Whether a kernel has code for a GPU (10 major + minor): what its `static constexpr bool runs_on(int sm)` says, where it has one. For others it is
// compiled to nothing and not started.
template <class Kernel>
VDITC_BOTH constexpr auto runs_on(int sm, int) -> decltype(Kernel::runs_on(sm)) {
  return Kernel::runs_on(sm);
}
template <class Kernel>
VDITC_BOTH constexpr bool runs_on(int, long) {
  return true;
}

#if defined(VDITC_NVRTC) && !defined(__CUDACC_RTC__)
template <class Kernel>
Status start(dim3 grid, int threads, size_t shared, cudaStream_t stream, const typename Kernel::Arguments& arguments) {
  static const int entry = driver::find(typeid(driver::Name<Kernel>).name());
  return driver::launch(entry, grid.x, grid.y, grid.z, threads, shared, stream, &arguments);
}
#elif defined(VDITC_EMULATED)
template <class Kernel>
Status start(dim3 grid, int threads, size_t shared, cudaStream_t, const typename Kernel::Arguments& arguments) {
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
#ifdef __CUDA_ARCH__
  if constexpr (runs_on<Kernel>(__CUDA_ARCH__ / 10, 0)) {
    extern __shared__ __align__(128) unsigned char memory[];
    Kernel::run(arguments, memory);
  }
#endif
}

#ifndef __CUDACC_RTC__
template <class Kernel>
Status start(dim3 grid, int threads, size_t shared, cudaStream_t stream, const typename Kernel::Arguments& arguments) {
  const Relaxed relaxed;
  if (shared > 48u << 10) {
    const cudaError_t error = cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return fail_cuda(error, "shared memory of a kernel");
  }
  entry<Kernel><<<grid, threads, shared, stream>>>(arguments);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? VDITC_OK : fail_cuda(error, "launch of a kernel");
}
#endif
#endif

#ifndef __CUDACC_RTC__
constexpr unsigned MOST_BLOCKS_YZ = 65535;  // of a grid along y or z

// `threads` of a block: a multiple of 32, at most Kernel::THREADS. `shared`: bytes. Status: what went wrong.
template <class Kernel>
Status launch(dim3 grid, int threads, size_t shared, cudaStream_t stream, const typename Kernel::Arguments& arguments) {
  if constexpr (!(runs_on<Kernel>(80, 0) && runs_on<Kernel>(90, 0) && runs_on<Kernel>(103, 0) && runs_on<Kernel>(120, 0))) {
    const int sm = vditc_device_sm();
    if (sm < 0) return VDITC_CUDA_ERROR;  // its message stands
    if (!runs_on<Kernel>(sm, 0)) return fail(VDITC_NO_KERNEL, "launch of a kernel: it has no code for this GPU (sm_%d)", sm);
  }
  // CUDA C++ Programming Guide, technical specifications for each compute capability.
  if (grid.x > 0x7fffffff || grid.y > MOST_BLOCKS_YZ || grid.z > MOST_BLOCKS_YZ)
    return fail(VDITC_BAD_ARGUMENT, "launch of a kernel: a grid of %u x %u x %u blocks; wanted at most 2147483647 x %u x %u", grid.x, grid.y, grid.z,
                MOST_BLOCKS_YZ, MOST_BLOCKS_YZ);
  return start<Kernel>(grid, threads, shared, stream, arguments);
}

template <class Kernel>
Status launch(dim3 grid, size_t shared, cudaStream_t stream, const typename Kernel::Arguments& arguments) {
  return launch<Kernel>(grid, Kernel::THREADS, shared, stream, arguments);
}
#endif

}  // namespace vditc
