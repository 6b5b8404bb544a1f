#include <cstdlib>

#include "native/status.h"
#ifdef VDITC_NVRTC
#include "native/driver.h"
#endif

extern "C" int32_t vditc_device_sm(void) {
#if defined(VDITC_NVRTC)
  return vditc::driver::device_sm();
#elif defined(VDITC_EMULATED)
  const char* said = std::getenv("VDITC_EMULATED_SM");
  return said ? std::atoi(said) : 80;
#else
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) {
    vditc::fail_cuda(error, "the current device");
    return -1;
  }
  return 10 * major + minor;
#endif
}
