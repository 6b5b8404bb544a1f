// QLinear's epilogue for CUTLASS 3.x kernels whose accumulators are wgmma fragments in registers (sm_90).
#pragma once
#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/detail.hpp>
#include <cutlass/gemm/gemm.h>

#include "qlinear/cutlass_coordinates.h"
#include "qlinear/cutlass_formal.h"
#include "qlinear/epilogue_vector.h"

namespace vditc::qlinear {

// A copy that no compiler sees through: it would turn the comparisons of the epilogue back into a computed index, and registers into memory.
CUTLASS_DEVICE int copied(int sum) {
#ifdef __CUDA_ARCH__
  int copy;
  asm volatile("mov.b32 %0, %1;" : "=r"(copy) : "r"(sum));
  return copy;
#else
  return sum;
#endif
}

struct Sm90Epilogue : FormalEpilogue {
  CUTLASS_HOST_DEVICE Sm90Epilogue(const Params& params, const SharedStorage& = {}) : e(params) {}

  template <class Problem, class Tile, class Place, class Engine, class Layout, class TiledMma, class Residue>
  CUTLASS_DEVICE void operator()(const Problem& problem, const Tile& tile, const Place& place, const cute::Tensor<Engine, Layout>& sums,
                                 const TiledMma& mma, const Residue&, int thread, char*) {
    using namespace cute;
    const auto at = sm90_places(mma, problem, tile, place, thread);
    constexpr int BLOCKS = size<1>(Layout{}), SLICES = size<0, 2>(Layout{}) / 4;
    static_assert(size<0, 0>(Layout{}) == 2 && size<0, 1>(Layout{}) == 2 && size<2>(Layout{}) == 1, "a fragment of wgmma");
    static_assert(VECTOR == GROUP);
    const int first = sm90_column(at, thread);
    // Rolled, as the code of a slice is long. Registers have no computed index: a slice's are copied out by comparing.
#pragma unroll 1
    for (int b = 0; b < BLOCKS; ++b) {
      const Row rows[2] = {row_or_none(e, sm90_row(at, b, 0)), row_or_none(e, sm90_row(at, b, 1))};
#pragma unroll 1
      for (int s = 0; s < SLICES; ++s) {
        const int n = first + s * LANES_OF_ROW * GROUP;
        Sources sources[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) sources_of(e, rows[h], n, sources[h]);
        const Columns columns = columns_of(e, n);
        int held[2][4][2] = {};
        for_each(make_seq<BLOCKS * SLICES>{}, [&](auto number) {
          constexpr int piece = decltype(number)::value;
          if (piece != b * SLICES + s) return;
          for_each(make_seq<16>{}, [&](auto part) {
            constexpr int p = decltype(part)::value;  // half, group, column
            const auto where = make_coord(Int<p % 2>{}, Int<p / 8>{}, Int<piece % SLICES * 4 + p / 2 % 4>{});
            held[p / 8][p / 2 % 4][p % 2] = copied(sums(where, Int<piece / SLICES>{}, _0{}));
          });
        });
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          int mine[VECTOR];
          gather_group(held[h], thread % LANES_OF_ROW, mine);
          finish_vector(e, rows[h], n, columns, sources[h], mine);
        }
      }
    }
  }

 private:
  const Params& e;
};

}  // namespace vditc::qlinear
