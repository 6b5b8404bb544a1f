// Which kernel a tactic is, for the files that compile the kernels of one weight codec each.
#pragma once
#include "native/launch.h"
#include "qlinear/tactics.h"
#include "qlinear/unpack_kernel.h"

namespace vditc::qlinear {

// Four warps of 64 x 64, whose sums take half of the registers; with groups, which have two sums an output, eight of 64 x 32.
using Big = Shape<128, 128, 2, 2, 2>;
using BigGrouped = Shape<128, 128, 2, 4, 1>;
using Small = Shape<64, 64, 2, 2, 3>;

template <class Kernel>
Status launch_unpack(UnpackArguments& a, cudaStream_t stream) {
  const int64_t tiles_m = (a.epilogue.m + Kernel::BM - 1) / Kernel::BM, tiles_n = (a.epilogue.n + Kernel::BN - 1) / Kernel::BN;
  constexpr int64_t most = 0x7fffffff;  // blocks of a grid along x
  if (tiles_m > most / tiles_n)
    return fail(VDITC_BAD_ARGUMENT, "m = %lld, n = %d: %lld x %lld tiles; wanted at most %lld", static_cast<long long>(a.epilogue.m), a.epilogue.n,
                static_cast<long long>(tiles_m), static_cast<long long>(tiles_n), static_cast<long long>(most));
  a.tiles_m = static_cast<unsigned>(tiles_m);
  a.tiles_n = static_cast<unsigned>(tiles_n);
  return launch<Kernel>(dim3(a.tiles_m * a.tiles_n), Kernel::shared_bytes(a.branch.rank != 0), stream, a);
}

template <class Weights, class Codes>
Status launch_tactic(int tactic, UnpackArguments& a, cudaStream_t stream) {
  const bool grouped = a.group_scale != nullptr;
  switch (tactic) {
    case VDITC_UNPACK_128:
      return grouped ? launch_unpack<UnpackKernel<Int8Product, Weights, Codes, BigGrouped, true>>(a, stream)
                     : launch_unpack<UnpackKernel<Int8Product, Weights, Codes, Big, false>>(a, stream);
    case VDITC_UNPACK_64:
      return grouped ? launch_unpack<UnpackKernel<Int8Product, Weights, Codes, Small, true>>(a, stream)
                     : launch_unpack<UnpackKernel<Int8Product, Weights, Codes, Small, false>>(a, stream);
    case VDITC_CARRIER:
      return launch_unpack<UnpackKernel<CarrierProduct, Weights, Codes, Big, false>>(a, stream);
    case VDITC_INT4:
      if constexpr (Weights::BITS == 4) return launch_unpack<UnpackKernel<Int4Product, Weights, Codes, Big, false>>(a, stream);
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

}  // namespace vditc::qlinear
