#include "qlinear/expand.h"

#include "native/launch.h"
#include "qlinear/tactics.h"

namespace vditc::qlinear {
namespace {

template <class Weights>
Status expand(const vditc_qlinear_problem& problem, const int8_t* weight, int8_t* out, cudaStream_t stream) {
  using Kernel = ExpandKernel<Weights>;
  const int k_blocks = (problem.k + 31) / 32, strips = (k_blocks + Kernel::STRIP - 1) / Kernel::STRIP;
  const int64_t units = static_cast<int64_t>((problem.n + 31) / 32) * strips, blocks = (units + Kernel::WARPS - 1) / Kernel::WARPS;
  if (blocks > 0x7fffffff) return fail(VDITC_BAD_ARGUMENT, "n = %d, k = %d: too many weights for one launch", problem.n, problem.k);
  const typename Kernel::Arguments arguments{
      reinterpret_cast<const uint32_t*>(weight), reinterpret_cast<unsigned char*>(out), problem.n, problem.k, k_blocks, strips, units};
  return launch<Kernel>(dim3(static_cast<unsigned>(blocks)), Kernel::SHARED, stream, arguments);
}

}  // namespace

Status expand_weights(const vditc_qlinear_problem& problem, const int8_t* weight, int8_t* out, cudaStream_t stream) {
  switch (problem.bits) {
    case 8:
      return expand<W8>(problem, weight, out, stream);
    case 4:
      return problem.unsigned_weights ? expand<U4>(problem, weight, out, stream) : expand<W4>(problem, weight, out, stream);
    default:
      return expand<W3>(problem, weight, out, stream);
  }
}

Status pad_rows(const int8_t* x, int8_t* out, int64_t m, int k, int64_t row_bytes, cudaStream_t stream) {
  const int64_t chunks = m * (row_bytes / 16), blocks = (chunks + PadKernel::THREADS - 1) / PadKernel::THREADS;
  constexpr int64_t most = 1 << 16;  // enough to fill a GPU; threads take more than one chunk
  const PadKernel::Arguments arguments{reinterpret_cast<const unsigned char*>(x), reinterpret_cast<unsigned char*>(out), chunks, row_bytes, k};
  return launch<PadKernel>(dim3(static_cast<unsigned>(blocks < most ? blocks : most)), 0, stream, arguments);
}

}  // namespace vditc::qlinear
