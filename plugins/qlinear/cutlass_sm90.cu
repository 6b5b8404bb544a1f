// QLinear's products by CUTLASS 3.x: wgmma on int8, TMA. For sm_90a.
#include "qlinear/cutlass_epilogue_sm90.h"
#include "qlinear/cutlass_launch.h"
#include "qlinear/tactics.h"

namespace vditc::qlinear {
namespace {

using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;  // two blocks of rows share the columns' weights
using Finish = cutlass::epilogue::collective::detail::Sm90TmaWarpSpecializedAdapter<Sm90Epilogue>;

template <class Tile, class Schedule>
using Gemm = Gemm3x<cutlass::arch::Sm90, Tile, Cluster, Schedule, Finish>;

// Two consumers take turns, so that one finishes its tile while the other multiplies.
using Small = Gemm<cute::Shape<cute::_128, cute::_128, cute::_128>, cutlass::gemm::KernelTmaWarpSpecializedPingpong>;
// Two consumers share one tile: a quarter less to read than two of 128 x 128, and an epilogue that nothing overlaps.
using Large = Gemm<cute::Shape<cute::_128, cute::_256, cute::_128>, cutlass::gemm::KernelTmaWarpSpecializedCooperative>;

// Where the epilogue is short against the product and there are many tiles. By calculation, not measured.
bool large(int64_t m, int n, int k) { return k >= 4096 && n % 256 == 0 && (m / 128) * (n / 256) >= 1024; }

}  // namespace

size_t cutlass_sm90_workspace(int64_t m, int n, int k) { return large(m, n, k) ? Large::workspace(m, n, k) : Small::workspace(m, n, k); }

Status launch_cutlass_sm90(const Epilogue& e, const int8_t* x, const int8_t* weight, int64_t m, int n, int k, void* workspace, size_t bytes,
                           cudaStream_t stream) {
  if (!m) return VDITC_OK;
  VDITC_TRY(cutlass_check("cutlass-sm90", e, m, n, k, workspace, bytes, cutlass_sm90_workspace(m, n, k)));
  if (large(m, n, k)) return Large::run("cutlass-sm90", e, x, weight, m, n, k, workspace, stream);
  return Small::run("cutlass-sm90", e, x, weight, m, n, k, workspace, stream);
}

}  // namespace vditc::qlinear
