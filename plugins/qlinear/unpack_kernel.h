// Codes times packed weights by mma.sync, weights unpacked in registers, with the whole epilogue of QLinear behind the loop.
//
// A block computes BM x BN outputs. Its loop reads 64 bytes of every row of x and the lane-blocks of the same channels through a ring of
// STAGES pieces of shared memory (cp.async), from which ldmatrix and plain loads fill the operands of mma (products.h).
#pragma once
#include "qlinear/products.h"
#include "qlinear/tile_epilogue.h"

namespace vditc::qlinear {

constexpr int GROUP = 128;  // inputs of a group scale

struct UnpackArguments {
  Epilogue epilogue;
  Branch branch;
  const unsigned char* x;       // rows of row_bytes, a multiple of 16
  const unsigned char* weight;  // lane-blocks
  const float* group_scale;     // [k / GROUP, n], or null
  int64_t row_bytes;
  int k_blocks, n_blocks;  // of 32
  unsigned tiles_m, tiles_n;
};

// BM x BN outputs by WARPS_M x WARPS_N warps.
template <int BM_, int BN_, int WARPS_M_, int WARPS_N_, int BLOCKS_PER_SM_>
struct Shape {
  static constexpr int BM = BM_, BN = BN_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, BLOCKS_PER_SM = BLOCKS_PER_SM_;
  static constexpr int WARPS = WARPS_M * WARPS_N, WM = BM / WARPS_M, WN = BN / WARPS_N;
};

// What a thread copies of each piece: chunks of 16 bytes, of rows of x and of rows of lane-blocks.
template <class Weights, class Codes, class Shape>
struct Pieces {
  static constexpr int THREADS = Shape::WARPS * 32;
  static constexpr int X_BYTES = Shape::BM * ROW_BYTES;
  static constexpr int X_STEP = THREADS / 4;  // rows between two chunks of a thread
  static constexpr int X_COPIES = Shape::BM / X_STEP;

  static constexpr int BLOCK_CHUNKS = 8 * Weights::WORDS;
  static constexpr int ROW_CHUNKS = Codes::BLOCKS * BLOCK_CHUNKS;  // of 32 outputs
  static constexpr int ROWS = Shape::BN / 32;
  static constexpr int BYTES = X_BYTES + ROWS * ROW_CHUNKS * 16;

  // As many rows of lane-blocks at once as threads suffice for (a power of two), or one in several copies.
  static constexpr int W_STEP = 4 * ROW_CHUNKS <= THREADS && ROWS >= 4 ? 4 : 2 * ROW_CHUNKS <= THREADS && ROWS >= 2 ? 2 : 1;
  static constexpr int W_COPIES = ROWS / W_STEP;
  static constexpr int W_PARTS = ROW_CHUNKS > THREADS ? ROW_CHUNKS / THREADS : 1;  // copies of one row
  static constexpr int W_THREADS = ROW_CHUNKS > THREADS ? THREADS : W_STEP * ROW_CHUNKS;
  static_assert(W_PARTS == 1 || ROW_CHUNKS % THREADS == 0, "copies are of all threads");

  const unsigned char* x;
  const unsigned char* weight;
  int64_t x_step, w_step;  // bytes
  int x_left, w_left;      // bytes of the rows and blocks of the lane-blocks' rows from here on
  int x_rows, w_rows;      // copies whose rows are there
  int thread;

  VDITC_DEVICE Pieces(const UnpackArguments& a, int64_t m0, int n0, int thread) : thread(thread) {
    const int row = thread / 4, chunk = thread % 4;
    x = a.x + (m0 + row) * a.row_bytes + chunk * 16;
    x_step = X_STEP * a.row_bytes;
    x_left = static_cast<int>(a.row_bytes) - chunk * 16;
    const int64_t rows_left = a.epilogue.m - m0 - row;
    x_rows = rows_left > Shape::BM ? X_COPIES : static_cast<int>(rows_left + X_STEP - 1) / X_STEP;
    const int block_row = n0 / 32 + thread / ROW_CHUNKS, at = thread % ROW_CHUNKS;
    const int64_t w_row = static_cast<int64_t>(a.k_blocks) * BLOCK_CHUNKS * 16;
    weight = a.weight + block_row * w_row + at * 16;
    w_step = W_STEP * w_row;
    w_left = a.k_blocks - at / BLOCK_CHUNKS;
    w_rows = (a.n_blocks - block_row + W_STEP - 1) / W_STEP;
  }

  // The next piece to `stage`; zeros beyond the edges. Pieces behind the last one are zeros.
  VDITC_DEVICE void fetch(unsigned char* stage) {
    unsigned char* to = stage + swizzled(thread / 4, thread % 4);
#pragma unroll
    for (int i = 0; i < X_COPIES; ++i) copy_async(to + i * X_STEP * ROW_BYTES, x + i * x_step, i < x_rows && x_left > 0);
    to = stage + X_BYTES + thread * 16;
    if (W_THREADS == THREADS || thread < W_THREADS) {
#pragma unroll
      for (int i = 0; i < W_COPIES; ++i)
#pragma unroll
        for (int part = 0; part < W_PARTS; ++part)
          copy_async(to + (i * W_STEP * ROW_CHUNKS + part * THREADS) * 16, weight + i * w_step + part * THREADS * 16,
                     i < w_rows && w_left > part * (THREADS / BLOCK_CHUNKS));
    }
    x += ROW_BYTES;
    x_left -= ROW_BYTES;
    weight += ROW_CHUNKS * 16;
    w_left -= Codes::BLOCKS;
  }
};

template <template <class, class> class Product_, class Weights, class Codes, class Shape, bool GROUPED>
struct UnpackKernel {
  using Arguments = UnpackArguments;
  using Product = Product_<Weights, Codes>;
  using Sum = typename Product::Sum;
  using Copies = Pieces<Weights, Codes, Shape>;
  using Memory = EpilogueMemory<Shape::BM, Shape::BN, Shape::WN, Shape::WARPS>;
  static constexpr int THREADS = Shape::WARPS * 32, BLOCKS_PER_SM = Shape::BLOCKS_PER_SM, BM = Shape::BM, BN = Shape::BN;
  static constexpr int TILES_M = Shape::WM / 16, TILES_N = Shape::WN / 8;
  static constexpr int STAGES = Copies::BYTES > (12 << 10) ? 3 : 4;  // two blocks of most codecs fit in the 100 KB of sm_86, 89 and 120
  static_assert(!GROUPED || std::is_same_v<Sum, int>, "sums of groups are integers");

  static constexpr bool runs_on(int sm) { return Product::runs_on(sm); }

  static constexpr size_t shared_bytes(bool branch) {
    const size_t ring = STAGES * Copies::BYTES, epilogue = branch ? Memory::BRANCH_BYTES : Memory::PLAIN_BYTES;
    const size_t needed = ring > epilogue ? ring : epilogue, most = ring > Memory::BRANCH_BYTES ? ring : Memory::BRANCH_BYTES;
    return needed > 48u << 10 ? most : needed;  // one limit of a kernel: another thread's launch never lowers it
  }

  // Sums of a group start at 1.5 * 2^23 as a float's bits: while they stay below 2^22 (128 products of at most 2^14), what was added to the
  // bits was added to the float, whose last bit is 1, so that a subtraction makes them floats. It is faster than a conversion.
  static constexpr int ZERO_BITS = 0x4b400000;
  static constexpr float ZERO = 12582912.0f;
  static constexpr float UNIT = 1.0f / (1 << Product::SHIFT);

  static VDITC_DEVICE void clear(Sum (&sums)[TILES_M][TILES_N][4]) {
#pragma unroll
    for (int i = 0; i < TILES_M; ++i)
#pragma unroll
      for (int j = 0; j < TILES_N; ++j)
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[i][j][v] = GROUPED ? static_cast<Sum>(ZERO_BITS) : Sum{0};
  }

  struct Place {
    int64_t m0;
    int n0;
  };

  // Blocks that run at a time share rows of x and weights in L2: eight tiles of rows by as many of columns as there are at a time.
  static VDITC_DEVICE Place place(const Arguments& a) {
    constexpr unsigned BAND = 8;
    const unsigned of_band = BAND * a.tiles_n, band = blockIdx.x / of_band, inside = blockIdx.x % of_band;
    const unsigned rows = a.tiles_m - band * BAND < BAND ? a.tiles_m - band * BAND : BAND;
    return {static_cast<int64_t>(band * BAND + inside % rows) * BM, static_cast<int>(inside / rows) * BN};
  }

  static VDITC_DEVICE void run(const Arguments& a, unsigned char* shared) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int warp_m = warp / Shape::WARPS_N * Shape::WM, warp_n = warp % Shape::WARPS_N * Shape::WN;
    const auto [m0, n0] = place(a);

    Sum sums[TILES_M][TILES_N][4];
    clear(sums);
    float totals[GROUPED ? TILES_M : 1][TILES_N][4];
    if constexpr (GROUPED) {
#pragma unroll
      for (int i = 0; i < TILES_M; ++i)
#pragma unroll
        for (int j = 0; j < TILES_N; ++j)
#pragma unroll
          for (int v = 0; v < 4; ++v) totals[i][j][v] = 0.0f;
    }

    Copies copies(a, m0, n0, thread);
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
      copies.fetch(shared + s * Copies::BYTES);
      copy_commit();
    }
    ActivationRows rows{nullptr, {swizzled(lane % 16, lane / 16), swizzled(lane % 16, 2 + lane / 16)}};
    const int pieces = (a.k_blocks + Codes::BLOCKS - 1) / Codes::BLOCKS;
    int reads = 0, writes = (STAGES - 1) * Copies::BYTES;  // offsets into the ring
#pragma unroll 1
    for (int piece = 0; piece < pieces; ++piece) {
      copy_wait<STAGES - 2>();
      barrier();
      copies.fetch(shared + writes);
      copy_commit();
      const unsigned char* stage = shared + reads;
      rows.rows = stage + warp_m * ROW_BYTES;
      const auto* blocks = reinterpret_cast<const uint32_t*>(stage + Copies::X_BYTES) + warp_n / 32 * Copies::ROW_CHUNKS * 4;
#pragma unroll
      for (int pair = 0; pair < Codes::BLOCKS / 2; ++pair) Product::multiply_pair(sums, rows, blocks, Copies::ROW_CHUNKS * 4, pair, lane);
      writes = reads;
      reads = reads == (STAGES - 1) * Copies::BYTES ? 0 : reads + Copies::BYTES;
      if constexpr (GROUPED) {
        constexpr int PIECES = GROUP / 32 / Codes::BLOCKS;
        if ((piece + 1) % PIECES == 0) {
          add_group(a, piece / PIECES, n0 + warp_n, lane, sums, totals);
          clear(sums);
        }
      }
    }
    copy_wait<0>();
    barrier();
    if constexpr (GROUPED)
      finish_tile<float>(a, shared, m0, n0, warp_m, warp_n, totals);
    else
      finish_tile<int>(a, shared, m0, n0, warp_m, warp_n, sums);
  }

  static VDITC_DEVICE void add_group(const Arguments& a, int group, int n0, int lane, const Sum (&sums)[TILES_M][TILES_N][4],
                                     float (&totals)[GROUPED ? TILES_M : 1][TILES_N][4]) {
    const float* scales = a.group_scale + static_cast<int64_t>(group) * a.epilogue.n;
#pragma unroll
    for (int j = 0; j < TILES_N; ++j) {
      float scale[2];
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const int n = n0 + 8 * j + lane % 4 * 2 + v;
        scale[v] = n < a.epilogue.n ? scales[n] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < TILES_M; ++i)
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const float sum = multiply(subtract(float_of(static_cast<uint32_t>(sums[i][j][v])), ZERO), UNIT);
          totals[i][j][v] = add(totals[i][j][v], multiply(sum, scale[v % 2]));
        }
    }
  }

  template <class T, class From>
  static VDITC_DEVICE void finish_tile(const Arguments& a, unsigned char* shared, int64_t m0, int n0, int warp_m, int warp_n,
                                       const From (&sums)[TILES_M][TILES_N][4]) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const Memory memory{shared};
    const bool has_branch = a.branch.rank != 0;
    if (has_branch) {
      load_branch<Memory, BM, BN, THREADS>(memory, a.branch, m0, n0, a.epilogue.m, a.epilogue.n, thread);
      barrier();
    }
    const int n = n0 + warp_n + lane % (Shape::WN / 4) * 4;
    T* stage = reinterpret_cast<T*>(memory.sums(warp));
#pragma unroll 1
    for (int i = 0; i < TILES_M; ++i) {  // one copy of what follows, which is long
      if (has_branch) {
        float branch[TILES_N][4];
        multiply_branch<Memory, TILES_N>(memory, a.branch, warp_m + 16 * i, warp_n, lane, branch);
        put<Memory>(memory.branch(warp), branch, lane);
      }
#pragma unroll
      for (int tile = 0; tile < TILES_M; ++tile)
        if (tile == i) put_tile(stage, sums[tile], lane);
      warp_barrier();
      write_rows<Memory, Shape::WN>(a.epilogue, stage, memory.branch(warp), has_branch, m0 + warp_m + 16 * i, n, lane);
      warp_barrier();
    }
  }

  template <class T, class From>
  static VDITC_DEVICE void put_tile(T* stage, const From (&sums)[TILES_N][4], int lane) {
    T rows[TILES_N][4];
#pragma unroll
    for (int j = 0; j < TILES_N; ++j)
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        if constexpr (std::is_same_v<T, int>)
          rows[j][v] = Product::integer(sums[j][v]) >> Product::SHIFT;
        else
          rows[j][v] = sums[j][v];
      }
    put<Memory>(stage, rows, lane);
  }
};

}  // namespace vditc::qlinear
