// Which kernel a tactic is, for the files that compile the kernels of one weight codec each.
#pragma once
#include "native/launch.h"
#include "qlinear/problem.h"
#include "qlinear/tactics.h"
#include "qlinear/unpack_kernel.h"

namespace vditc::qlinear {

// Four warps of 64 x 64, whose sums take half of the registers; with groups, which have two sums an output, eight of 64 x 32.
using Big = Shape<128, 128, 2, 2, 2>;
using BigGrouped = Shape<128, 128, 2, 4, 1>;
using Small = Shape<64, 64, 2, 2, 4>;

#ifndef __CUDACC_RTC__
template <int TACTIC, class Kernel>
Status launch_unpack(UnpackArguments& a, cudaStream_t stream) {
  constexpr int EDGE = tile_edge(TACTIC);  // of which check_tactic has seen that there are not too many
  static_assert(Kernel::BM == EDGE && Kernel::BN == EDGE);
  static_assert(Kernel::shared_bytes(true) <= LEAST_SHARED);
  a.tiles_m = static_cast<unsigned>((a.epilogue.m + EDGE - 1) / EDGE);
  a.tiles_n = static_cast<unsigned>((a.epilogue.n + EDGE - 1) / EDGE);
  return launch<Kernel>(dim3(a.tiles_m * a.tiles_n), Kernel::shared_bytes(a.branch.rank != 0), stream, a);
}

template <class Weights, class Codes>
Status launch_tactic(int tactic, UnpackArguments& a, cudaStream_t stream) {
  const bool grouped = a.group_scale != nullptr;
  switch (tactic) {
    case VDITC_UNPACK_128:
      return grouped ? launch_unpack<VDITC_UNPACK_128, UnpackKernel<Int8Product, Weights, Codes, BigGrouped, true>>(a, stream)
                     : launch_unpack<VDITC_UNPACK_128, UnpackKernel<Int8Product, Weights, Codes, Big, false>>(a, stream);
    case VDITC_UNPACK_64:
      return grouped ? launch_unpack<VDITC_UNPACK_64, UnpackKernel<Int8Product, Weights, Codes, Small, true>>(a, stream)
                     : launch_unpack<VDITC_UNPACK_64, UnpackKernel<Int8Product, Weights, Codes, Small, false>>(a, stream);
    case VDITC_CARRIER:
      return launch_unpack<VDITC_CARRIER, UnpackKernel<CarrierProduct, Weights, Codes, Big, false>>(a, stream);
    case VDITC_INT4:
      if constexpr (Weights::BITS == 4) return launch_unpack<VDITC_INT4, UnpackKernel<Int4Product, Weights, Codes, Big, false>>(a, stream);
      break;
    default:
      break;
  }
  return fail(VDITC_NO_KERNEL, "tactic %d has no kernel for weights of %d bits", tactic, Weights::BITS);
}

template <class Weights>
Status launch_weights(int tactic, bool packed, UnpackArguments& a, cudaStream_t stream) {
  return packed ? launch_tactic<Weights, Nibbles>(tactic, a, stream) : launch_tactic<Weights, Bytes>(tactic, a, stream);
}
#endif

}  // namespace vditc::qlinear
