// Which rows and columns of a product each thread of CUTLASS's kernels has: functions of CUTLASS's layouts alone, which a host evaluates too.
#pragma once
#include <cute/tensor.hpp>
#include <cutlass/gemm/gemm.h>

namespace vditc::qlinear {

// 2.x, behind its exchange in shared memory: (row, column, 0) of the first of the elements that a thread gets for each (column access, row
// access, step) of a tile. `ThreadMap`: cutlass::epilogue::threadblock::OutputTileThreadLayout; `shape`: rows, columns, 1.
template <class ThreadMap, class Shape>
CUTLASS_DEVICE auto sm80_places(cutlass::gemm::GemmCoord tile, int thread, const Shape& shape) {
  using namespace cute;
  const auto all = ThreadMap::partition(make_identity_tensor(shape), thread, tile);  // vector, column, row, three of steps
  return group_modes<2, 5>(all(_0{}, _, _, _, _, _));
}

// The tile at `place` of a matrix of `shape`: its coordinates. Both begin with rows and columns.
template <class Tile, class Shape, class Place>
CUTE_HOST_DEVICE auto tile_places(const Shape& shape, const Tile&, const Place& place) {
  using namespace cute;
  const auto all = make_identity_tensor(make_shape(get<0>(shape), get<1>(shape)));
  return local_tile(all, take<0, 2>(Tile{}), make_coord(get<0>(place), get<1>(place)));
}

constexpr int GROUP = 8;  // columns of a fragment of wgmma that four lanes have, two each
constexpr int LANES_OF_ROW = 4;

// wgmma: of a thread's accumulators ((2 columns, 2 rows, groups), blocks of 64 rows, 1).
template <class Mma, class Tile, class Shape, class Place>
CUTE_HOST_DEVICE auto sm90_places(const Mma& mma, const Shape& shape, const Tile& tile, const Place& place, int thread) {
  return mma.get_thread_slice(thread).partition_C(tile_places(shape, tile, place));
}
// The row of one of a thread's two in a block.
template <class Places>
CUTE_HOST_DEVICE int64_t sm90_row(const Places& at, int block, int half) {
  return cute::get<0>(at(cute::make_coord(0, half, 0), block, 0));
}
// The first of the eight columns that a thread has of the first four groups when the lanes of its row have shared them out: group i to lane i.
template <class Places>
CUTE_HOST_DEVICE int sm90_column(const Places& at, int thread) {
  const int lane = thread % LANES_OF_ROW;
  return static_cast<int>(cute::get<1>(at(cute::make_coord(0, 0, 0), 0, 0))) - 2 * lane + GROUP * lane;
}

constexpr int TMEM_COLUMNS = 32;  // that a thread loads of its row of tensor memory at a time

// tcgen05: rows and columns of a block as slices, (128, TMEM_COLUMNS, 1, slices), of coordinates or of tensor memory.
template <class Tensor>
CUTE_HOST_DEVICE auto sm100_slices(const Tensor& tensor) {
  return cute::flat_divide(tensor, cute::Shape<cute::_128, cute::Int<TMEM_COLUMNS>>{});
}

}  // namespace vditc::qlinear
