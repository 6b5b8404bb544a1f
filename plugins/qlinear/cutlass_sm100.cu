// QLinear's products by CUTLASS 3.x: tcgen05 on int8 (kind::i8), TMA. For sm_100a and sm_110a, which alone have it.
#include "qlinear/cutlass_epilogue_sm100.h"
#include "qlinear/cutlass_launch.h"
#include "qlinear/tactics.h"

namespace vditc::qlinear {
namespace {

using Finish = cutlass::epilogue::collective::detail::Sm100TmaWarpSpecializedAdapter<Sm100Epilogue>;

// One SM, 128 x 256: two accumulators fill its tensor memory, so that one is finished while the other is summed up.
using Wide = Gemm3x<cutlass::arch::Sm100, cute::Shape<cute::_128, cute::_256, cute::_128>, cute::Shape<cute::_1, cute::_1, cute::_1>,
                    cutlass::gemm::KernelTmaWarpSpecialized1SmSm100, Finish>;
// Two SMs that share the weights of 256 columns between them, for what fills the GPU with them.
using Pair = Gemm3x<cutlass::arch::Sm100, cute::Shape<cute::_256, cute::_256, cute::_128>, cute::Shape<cute::_2, cute::_1, cute::_1>,
                    cutlass::gemm::KernelTmaWarpSpecialized2SmSm100, Finish>;

// By calculation, not measured.
bool pairs(int64_t m, int n) { return (m / 256) * ((n + 255) / 256) >= 256; }

}  // namespace

size_t cutlass_sm100_workspace(int64_t m, int n, int k) { return pairs(m, n) ? Pair::workspace(m, n, k) : Wide::workspace(m, n, k); }

Status launch_cutlass_sm100(const Epilogue& e, const int8_t* x, const int8_t* weight, int64_t m, int n, int k, void* workspace, size_t bytes,
                            cudaStream_t stream) {
  if (!m) return VDITC_OK;
  VDITC_TRY(cutlass_check("cutlass-sm100", e, m, n, k, workspace, bytes, cutlass_sm100_workspace(m, n, k)));
  if (pairs(m, n)) return Pair::run("cutlass-sm100", e, x, weight, m, n, k, workspace, stream);
  return Wide::run("cutlass-sm100", e, x, weight, m, n, k, workspace, stream);
}

}  // namespace vditc::qlinear
