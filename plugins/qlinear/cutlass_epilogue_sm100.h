// QLinear's epilogue for CUTLASS 3.x kernels whose accumulators are in tensor memory (sm_100, sm_110).
#pragma once
#include <cute/arch/copy_sm100.hpp>
#include <cute/atom/copy_traits_sm100.hpp>
#include <cute/tensor.hpp>
#include <cutlass/arch/barrier.h>
#include <cutlass/epilogue/collective/detail.hpp>
#include <cutlass/gemm/gemm.h>

#include "qlinear/cutlass_coordinates.h"
#include "qlinear/cutlass_formal.h"
#include "qlinear/epilogue_vector.h"

namespace vditc::qlinear {

struct Sm100Epilogue : FormalEpilogue {
  static constexpr int SLICE = TMEM_COLUMNS;
  using CopyOpT2R = cute::SM100_TMEM_LOAD_32dp32b32x;
  using EpilogueTile = cute::Shape<cute::_128, cute::Int<SLICE>>;
  static constexpr int ThreadCount = 128;  // a row of the tile each

  CUTLASS_HOST_DEVICE Sm100Epilogue(const Params& params, SharedStorage&) : e(params) {}

  template <bool reuse = false, class Pipeline, class State, class Problem, class Tile, class Place, class Engine, class Layout>
  CUTLASS_DEVICE auto operator()(Pipeline pipeline, State state, const Problem& problem, const Tile& tile, const Place& place,
                                 const cute::Tensor<Engine, Layout>& sums, SharedStorage&) {
    using namespace cute;
    static_assert(!reuse, "stages of accumulators that do not overlap");
    const auto from = sm100_slices(sums(make_coord(_, _), _0{}, _0{}));
    const auto copy_slice = make_tmem_copy(CopyOpT2R{}, from(_, _, _0{}, _0{}));
    const auto thread = copy_slice.get_slice(threadIdx.x % ThreadCount);
    const auto at = thread.partition_D(sm100_slices(tile_places(problem, tile, place)));
    const auto mine = thread.partition_S(from);
    static_assert(decltype(size(at(_, _, _, _0{}, _0{})))::value == SLICE, "one row a thread");
    constexpr int SLICES = decltype(size<3>(from))::value;
    const Row row = row_or_none(e, get<0>(at(_0{}, _0{}, _0{}, _0{}, _0{})));
#pragma unroll 1
    for (int s = 0; s < SLICES; ++s) {
      const int n = static_cast<int>(get<1>(at(_0{}, _0{}, _0{}, _0{}, s)));
      Sources sources[SLICE / VECTOR];
#pragma unroll
      for (int v = 0; v < SLICE / VECTOR; ++v) sources_of(e, row, n + v * VECTOR, sources[v]);
      auto slice = make_tensor<int32_t>(shape(at(_, _, _, _0{}, _0{})));
      copy(copy_slice, mine(_, _, _, _0{}, s), slice);
      cutlass::arch::fence_view_async_tmem_load();
      if (s == SLICES - 1) {  // the next product may have the memory
        pipeline.consumer_release(state);
        ++state;
      }
#pragma unroll
      for (int v = 0; v < SLICE / VECTOR; ++v) {
        int part[VECTOR];
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) part[i] = slice(v * VECTOR + i);
        finish_vector(e, row, n + v * VECTOR, columns_of(e, n + v * VECTOR), sources[v], part);
      }
    }
    return cute::make_tuple(state);
  }

 private:
  const Params& e;
};

}  // namespace vditc::qlinear
