// Every output of a tile belongs to exactly one thread, which has eight columns next to each other: what the epilogues of QLinear's CUTLASS
// kernels count on, evaluated by CUTLASS's own layouts on a host.
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

// Of a device alone; nothing below calls them.
static dim3 threadIdx, blockIdx, gridDim, blockDim;
static void __syncthreads();
static void __syncwarp(unsigned mask = 0);
static int __syncthreads_and(int);
static void __threadfence();
template <class T>
T atomicAdd(T*, T);
template <class T>
T atomicCAS(T*, T, T);
namespace cutlass::arch {
int SmId();
int LaneId();
}  // namespace cutlass::arch

#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
// Behind what it does not include itself.
#include <cute/atom/copy_traits_sm100.hpp>
#include <cute/atom/mma_traits_sm100.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "qlinear/cutlass_coordinates.h"

namespace {

using namespace cute;
namespace q = vditc::qlinear;
constexpr int WIDTH = 8, ROWS = 1000, COLUMNS = 520;

// How often each output of a matrix was had; at a place of tiles that its rows and columns do not fill.
struct Seen {
  std::vector<int> times = std::vector<int>(ROWS * COLUMNS);
  int vectors = 0;
  void vector(int64_t row, int column) {
    ++vectors;
    for (int c = column; c < column + WIDTH; ++c)
      if (row < ROWS && c < COLUMNS) ++times[row * COLUMNS + c];
  }
  int check(const char* name, int row, int column, int rows, int columns) const {
    if (vectors != rows * columns / WIDTH) return std::printf("%s: %d vectors; wanted %d\n", name, vectors, rows * columns / WIDTH), 1;
    for (int r = 0; r < ROWS; ++r)
      for (int c = 0; c < COLUMNS; ++c) {
        const int wanted = r >= row && r < row + rows && c >= column && c < column + columns;
        if (const int found = times[r * COLUMNS + c]; found != wanted)
          return std::printf("%s: output (%d, %d) %d times; wanted %d\n", name, r, c, found, wanted), 1;
      }
    std::printf("%s: %d vectors\n", name, vectors);
    return 0;
  }
};

template <int rows, int columns>
int sm80(const char* name, int tile_row, int tile_column) {
  using Map = cutlass::epilogue::threadblock::OutputTileThreadLayout<cutlass::gemm::GemmShape<rows, columns, 64>,
                                                                     cutlass::gemm::GemmShape<64, 64, 64>, cutlass::half_t, WIDTH, 1>;
  Seen seen;
  for (int thread = 0; thread < Map::kThreads; ++thread) {
    const auto at = q::sm80_places<Map>({tile_row, tile_column, 0}, thread, make_shape(ROWS, COLUMNS, 1));
    for (int access = 0; access < size<0>(at); ++access)
      for (int row = 0; row < size<1>(at); ++row)
        for (int step = 0; step < size<2>(at); ++step) {
          const auto place = at(access, row, step);
          // The epilogue takes the column from the first row and step, the row from the first access.
          if (get<1>(place) != get<1>(at(access, 0, 0)) || get<0>(place) != get<0>(at(0, row, step)))
            return std::printf("%s: thread %d: rows and columns depend on each other\n", name, thread), 1;
          seen.vector(get<0>(place), get<1>(place));
        }
  }
  return seen.check(name, tile_row * rows, tile_column * columns, rows, columns);
}

template <int rows, int columns, class Mma>
int sm90(const char* name, const Mma& mma, int tile_row, int tile_column) {
  const auto tile = make_shape(Int<rows>{}, Int<columns>{}, _128{});
  const auto places = [&](int thread) {
    return q::sm90_places(mma, make_shape(ROWS, COLUMNS, 1, 1), tile, make_coord(tile_row, tile_column, 0, 0), thread);
  };
  Seen seen;
  for (int thread = 0; thread < size(mma); ++thread) {
    const auto at = places(thread);
    for (int block = 0; block < size<1>(at); ++block)
      for (int slice = 0; slice < size<0, 2>(at) / q::LANES_OF_ROW; ++slice)
        for (int half = 0; half < 2; ++half) {
          const int64_t row = q::sm90_row(at, block, half);
          const int lane = thread % q::LANES_OF_ROW, column = q::sm90_column(at, thread) + slice * q::LANES_OF_ROW * WIDTH;
          // What lane `from` of the four hands over: two columns of group `lane` of the slice.
          for (int from = 0; from < q::LANES_OF_ROW; ++from)
            for (int c = 0; c < 2; ++c) {
              const auto place = places(thread - lane + from)(make_coord(c, half, slice * q::LANES_OF_ROW + lane), block, 0);
              if (get<0>(place) != row || get<1>(place) != column + 2 * from + c)
                return std::printf("%s: thread %d gets (%d, %d) of lane %d for (%d, %d)\n", name, thread, static_cast<int>(get<0>(place)),
                                   static_cast<int>(get<1>(place)), from, static_cast<int>(row), column + 2 * from + c),
                       1;
            }
          seen.vector(row, column);
        }
  }
  return seen.check(name, tile_row * rows, tile_column * columns, rows, columns);
}

// `Mma`: of one block, or of a pair of which each has 128 rows.
template <int columns, class Mma>
int sm100(const char* name, const Mma& mma, int tile_row, int tile_column) {
  const auto tile = make_shape(_128{}, Int<columns>{}, _128{});
  const auto sums = partition_fragment_C(mma, make_shape(Int<128 * size(typename Mma::ThrLayoutVMNK{})>{}, Int<columns>{}));
  const auto from = q::sm100_slices(sums(make_coord(_, _), _0{}, _0{}));
  const auto copy = make_tmem_copy(SM100_TMEM_LOAD_32dp32b32x{}, from(_, _, _0{}, _0{}));
  Seen seen;
  for (int thread = 0; thread < size(copy); ++thread) {
    const auto part = copy.get_slice(thread);
    const auto at = part.partition_D(
        q::sm100_slices(q::tile_places(make_shape(ROWS, COLUMNS, 1, 1), tile, make_coord(tile_row, tile_column, 0, 0))));
    const auto memory = part.partition_S(from);
    for (int slice = 0; slice < size<4>(at); ++slice) {
      const auto mine = at(_, _, _, 0, slice);
      // Tensor memory: lanes in the upper half of an address, columns in the lower. A warp names the first of its 32 lanes.
      const uint32_t address = memory(_, _, _, 0, slice).data().get() - sums.data().get();
      const int first = static_cast<int>(get<1>(mine(0)));
      const uint32_t wanted = (static_cast<uint32_t>(thread / 32 * 32) << 16) + static_cast<uint32_t>(slice * q::TMEM_COLUMNS);
      if (address != wanted)
        return std::printf("%s: thread %d, slice %d reads tensor memory at %x\n", name, thread, slice, address), 1;
      for (int i = 0; i < size(mine); ++i) {
        if (get<0>(mine(i)) != tile_row * 128 + thread || get<1>(mine(i)) != first + i)
          return std::printf("%s: thread %d, slice %d, register %d is (%d, %d)\n", name, thread, slice, i, static_cast<int>(get<0>(mine(i))),
                             static_cast<int>(get<1>(mine(i)))),
                 1;
        if (i % WIDTH == 0) seen.vector(get<0>(mine(i)), get<1>(mine(i)));
      }
    }
  }
  return seen.check(name, tile_row * 128, tile_column * columns, 128, columns);
}

}  // namespace

int main() {
  int failures = 0;
  for (const int last : {0, 1}) {  // the first tile, and the last, which rows or columns do not fill
    failures += sm80<128, 128>("sm80 128 x 128", last * 7, last * 4);
    failures += sm80<256, 128>("sm80 256 x 128", last * 3, last * 4);
    const auto one = make_tiled_mma(SM90_64x128x32_S32S8S8_SS_TN{});
    const auto two = make_tiled_mma(SM90_64x256x32_S32S8S8_SS_TN{}, Layout<Shape<_2, _1, _1>>{});
    failures += sm90<128, 128>("sm90 128 x 128", one, last * 7, last * 4);
    failures += sm90<128, 256>("sm90 128 x 256", two, last * 7, last * 2);
    const auto single = make_tiled_mma(SM100_MMA_S8_SS<int8_t, int8_t, int32_t, 128, 256, UMMA::Major::K, UMMA::Major::K>{});
    const auto pair = make_tiled_mma(SM100_MMA_S8_2x1SM_SS<int8_t, int8_t, int32_t, 256, 256, UMMA::Major::K, UMMA::Major::K>{});
    failures += sm100<256>("sm100 128 x 256", single, last * 7, last * 2);
    failures += sm100<256>("sm100 256 x 256", pair, last * 7, last * 2);
  }
  return failures != 0;
}
