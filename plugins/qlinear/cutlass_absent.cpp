// The tactics of CUTLASS for generations of GPUs that this library is not for: where one generation was compiled, launch.cu names them all.
#ifdef VDITC_CUTLASS
#include "qlinear/tactics.h"

namespace vditc::qlinear {

#define VDITC_ABSENT(generation)                                                                                                   \
  size_t cutlass_##generation##_workspace(int64_t, int, int) { return 0; }                                                         \
  Status launch_cutlass_##generation(const Epilogue&, const int8_t*, const int8_t*, int64_t, int, int, void*, size_t, cudaStream_t) { \
    return fail(VDITC_NO_KERNEL, "expand-" #generation ": the library was built for other GPUs");                                  \
  }
#ifndef VDITC_CUTLASS_SM80
VDITC_ABSENT(sm80)
#endif
#ifndef VDITC_CUTLASS_SM90
VDITC_ABSENT(sm90)
#endif
#ifndef VDITC_CUTLASS_SM100
VDITC_ABSENT(sm100)
#endif
#undef VDITC_ABSENT

}  // namespace vditc::qlinear
#endif
