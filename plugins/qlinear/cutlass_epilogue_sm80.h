// QLinear's epilogue as a visitor of CUTLASS 2.x: one node that takes eight accumulators of a row, finishes and stores them.
#pragma once
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
// Behind what it does not include itself.
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "qlinear/cutlass_coordinates.h"
#include "qlinear/epilogue_vector.h"

namespace vditc::qlinear {

// `ThreadMap`: cutlass::epilogue::threadblock::OutputTileThreadLayout of VECTOR columns an access.
template <class ThreadMap>
struct Sm80Epilogue {
  static_assert(ThreadMap::kElementsPerAccess == VECTOR);
  static constexpr int STEP_ROWS = ThreadMap::Iterations::kCluster * ThreadMap::Iterations::kGroup * ThreadMap::Iterations::kRow;
  static constexpr int STEP_COLUMNS = ThreadMap::Iterations::kColumn;

  using Arguments = Epilogue;
  using Params = Epilogue;
  struct SharedStorage {};

  template <class Shape>
  static Params to_underlying_arguments(const Shape&, const Arguments& arguments, void*) {
    return arguments;
  }

  CUTLASS_HOST_DEVICE Sm80Epilogue() {}
  CUTLASS_HOST_DEVICE Sm80Epilogue(const Params& params, const SharedStorage&) : epilogue(&params) {}

  const Params* epilogue;

  template <class Places>
  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    const Epilogue& e;
    Places at;
    Columns columns[STEP_COLUMNS];
    Row rows[STEP_ROWS];
    Sources sources[STEP_ROWS][STEP_COLUMNS];

    CUTLASS_DEVICE Callbacks(const Epilogue& e, const Places& at) : e(e), at(at) {}

    CUTLASS_DEVICE int column(int access) const { return static_cast<int>(cute::get<1>(at(access, 0, 0))); }

    CUTLASS_DEVICE void begin_epilogue() {
      CUTLASS_PRAGMA_UNROLL
      for (int c = 0; c < STEP_COLUMNS; ++c) columns[c] = columns_of(e, column(c));
    }
    CUTLASS_DEVICE void begin_step(int step) {
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < STEP_ROWS; ++r) {
        rows[r] = row_or_none(e, cute::get<0>(at(0, r, step)));
        CUTLASS_PRAGMA_UNROLL
        for (int c = 0; c < STEP_COLUMNS; ++c) sources_of(e, rows[r], column(c), sources[r][c]);
      }
    }
    template <int size>
    CUTLASS_DEVICE cutlass::Array<int, size> visit(int, int row, int access, int, const cutlass::Array<int, size>& sums) {
      static_assert(size == VECTOR);
      int plain[VECTOR];
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < VECTOR; ++i) plain[i] = sums[i];
      finish_vector(e, rows[row], column(access), columns[access], sources[row][access], plain);
      return sums;
    }
  };

  template <class Shape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, const Shape& shape) {
    const auto at = sm80_places<ThreadMap>(tile, thread, shape);
    return Callbacks<std::remove_const_t<decltype(at)>>(*epilogue, at);
  }
};

}  // namespace vditc::qlinear
