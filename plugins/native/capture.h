// Launches while a CUDA graph is captured.
#pragma once
#include <cuda_runtime.h>

namespace vditc {

// CUDA loads a kernel's code when it is first started or asked about. That allocates, which any capture in this process forbids to all
// threads but those that say they know (CUDA runtime API, cudaThreadExchangeStreamCaptureMode). What is launched meanwhile is captured as ever.
class Relaxed {
 public:
  Relaxed() { exchange(); }
  ~Relaxed() { exchange(); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  void exchange() {
    if (cudaThreadExchangeStreamCaptureMode(&mode_) != cudaSuccess) (void)cudaGetLastError();  // no device: the launch says so
  }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace vditc
