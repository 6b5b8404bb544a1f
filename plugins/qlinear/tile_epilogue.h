// From a warp's sums in registers to rows of y. Sixteen rows at a time go through shared memory, so that a lane has four columns next to
// each other: loads and stores fill sectors, and what a column needs is read once.
#pragma once
#include <type_traits>

#include "qlinear/epilogue.h"

namespace vditc::qlinear {

// The low-rank branch of SVDQuant (arXiv 2411.05007): down [m, rank] times up [rank, n], fp16 or bf16, sums in float32.
struct Branch {
  const uint16_t* down;
  const uint16_t* up;
  int rank;   // 0, 16, ... 64
  bool bf16;  // else fp16
};

constexpr int MAX_LOW_RANK = 64;

// Shared memory of the epilogue of a block of BM x BN by WARPS warps whose tiles are WN wide, in 4-byte words and halves.
template <int BM, int BN, int WN, int WARPS>
struct EpilogueMemory {
  static constexpr int STAGE_STRIDE = WN + 8;             // words: eight rows of a fragment start in different banks
  static constexpr int STAGE_WORDS = 16 * STAGE_STRIDE;   // of a warp
  static constexpr int DOWN_STRIDE = MAX_LOW_RANK + 8;    // halves
  static constexpr int UP_STRIDE = BN + 8;
  static constexpr int PLAIN_BYTES = WARPS * STAGE_WORDS * 4;
  static constexpr int BRANCH_BYTES = 2 * PLAIN_BYTES + (BM * DOWN_STRIDE + MAX_LOW_RANK * UP_STRIDE) * 2;

  unsigned char* memory;

  VDITC_DEVICE unsigned char* sums(int warp) const { return memory + warp * STAGE_WORDS * 4; }
  VDITC_DEVICE float* branch(int warp) const { return reinterpret_cast<float*>(memory + PLAIN_BYTES + warp * STAGE_WORDS * 4); }
  VDITC_DEVICE uint16_t* down() const { return reinterpret_cast<uint16_t*>(memory + 2 * PLAIN_BYTES); }
  VDITC_DEVICE uint16_t* up() const { return down() + BM * DOWN_STRIDE; }
};

// All threads of the block: down and up of its rows and columns to shared memory, zeros beyond their edges.
template <class Memory, int BM, int BN, int THREADS>
VDITC_DEVICE void load_branch(const Memory& memory, const Branch& branch, int64_t m0, int n0, int64_t m, int n, int thread) {
  const int chunks = branch.rank / 8;
  for (int c = thread; c < BM * chunks; c += THREADS) {
    const int row = c / chunks, column = c % chunks * 8;
    uint4 eight{0, 0, 0, 0};
    if (m0 + row < m) eight = *reinterpret_cast<const uint4*>(branch.down + (m0 + row) * branch.rank + column);
    *reinterpret_cast<uint4*>(memory.down() + row * Memory::DOWN_STRIDE + column) = eight;
  }
  for (int c = thread; c < branch.rank * BN; c += THREADS) {
    const int row = c / BN, column = c % BN;
    memory.up()[row * Memory::UP_STRIDE + column] = n0 + column < n ? branch.up[static_cast<int64_t>(row) * n + n0 + column] : uint16_t{0};
  }
}

// 16 rows x 8 TILES_N columns of the branch in the layout of sums of mma.
template <class Memory, int TILES_N>
VDITC_DEVICE void multiply_branch(const Memory& memory, const Branch& branch, int row, int column, int lane, float (&out)[TILES_N][4]) {
#pragma unroll
  for (int j = 0; j < TILES_N; ++j)
#pragma unroll
    for (int v = 0; v < 4; ++v) out[j][v] = 0.0f;
  for (int r = 0; r < branch.rank; r += 16) {
    uint32_t a[4];
    load_matrices(a, memory.down() + (row + lane % 16) * Memory::DOWN_STRIDE + r + lane / 16 * 8);
#pragma unroll
    for (int j = 0; j < TILES_N; j += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, memory.up() + (r + lane % 16) * Memory::UP_STRIDE + column + (j + lane / 16) * 8);
      if (branch.bf16) {
        mma_bf16(out[j], a, b[0], b[1]);
        mma_bf16(out[j + 1], a, b[2], b[3]);
      } else {
        mma_fp16(out[j], a, b[0], b[1]);
        mma_fp16(out[j + 1], a, b[2], b[3]);
      }
    }
  }
}

// Sums of 16 rows to the warp's stage.
template <class Memory, class T, int TILES_N>
VDITC_DEVICE void put(T* stage, const T (&sums)[TILES_N][4], int lane) {
#pragma unroll
  for (int j = 0; j < TILES_N; ++j)
#pragma unroll
    for (int v = 0; v < 4; ++v) stage[(lane / 4 + v / 2 * 8) * Memory::STAGE_STRIDE + 8 * j + lane % 4 * 2 + v % 2] = sums[j][v];
}

// Four elements of a row; `whole`: all are there and aligned.
VDITC_DEVICE void read_four(float (&out)[4], const void* from, int64_t at, int type, bool whole, int there) {
  if (whole && type != VDITC_FP32) {
    const uint2 words = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(from) + at);
    const uint32_t pairs[2] = {words.x, words.y};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const auto bits = static_cast<uint16_t>(pairs[c / 2] >> (16 * (c % 2)));
      out[c] = type == VDITC_FP16 ? from_fp16(bits) : from_bf16(bits);
    }
  } else if (whole) {
    const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(from) + at);
    out[0] = four.x, out[1] = four.y, out[2] = four.z, out[3] = four.w;
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c) out[c] = c < there ? read_float(from, at + c, type) : 0.0f;
  }
}

VDITC_DEVICE void write_four(void* to, int64_t at, int type, const float (&y)[4], bool whole, int there) {
  if (type == VDITC_FP32) {
    float* out = static_cast<float*>(to) + at;
    if (whole) {
      *reinterpret_cast<float4*>(out) = float4{y[0], y[1], y[2], y[3]};
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < there) out[c] = y[c];
    }
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(to) + at;
  uint16_t bits[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) bits[c] = type == VDITC_FP16 ? to_fp16(y[c]) : to_bf16(y[c]);
  if (whole) {
    *reinterpret_cast<uint2*>(out) = uint2{bits[0] | static_cast<uint32_t>(bits[1]) << 16, bits[2] | static_cast<uint32_t>(bits[3]) << 16};
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (c < there) out[c] = bits[c];
  }
}

// Rows m0 ... m0 + 15 out of the warp's stage: int sums, or float ones that are scaled by groups. `columns` and `n`: of this lane's four.
template <class Memory, int WN, class T>
VDITC_DEVICE void write_rows(const Epilogue& e, const T* stage, const float* branch, bool has_branch, const Column (&columns)[4], int64_t m0, int n,
                             int lane) {
  constexpr int LANES = WN / 4;  // of a row
  const int there = e.n - n;     // columns of this lane, if fewer than four
  const bool whole = e.n % 4 == 0;
  if (there <= 0) return;
#pragma unroll 1
  for (int r = lane / LANES; r < 16; r += 32 / LANES) {
    const int64_t m = m0 + r;
    if (m >= e.m) return;
    const int at = r * Memory::STAGE_STRIDE + lane % LANES * 4;
    const int64_t out = m * e.n + n;
    T sums[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[c] = stage[at + c];
    if constexpr (std::is_same_v<T, int>) {
      if (!e.y) {
#pragma unroll
        for (int c = 0; c < 4; ++c)
          if (c < there) e.accumulators[out + c] = sums[c];
        continue;
      }
    }
    const Row row = row_of(e, m);
    float gate[4] = {}, residual[4] = {}, y[4];
    if (e.gate) {
      read_four(gate, e.gate, row.gate * e.n + n, e.output, whole, there);
      read_four(residual, e.residual, row.residual * e.n + n, e.output, whole, there);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float scaled;
      if constexpr (std::is_same_v<T, int>)
        scaled = multiply(from_int(sums[c]), columns[c].scale);
      else
        scaled = sums[c];
      y[c] = finish(e, row, columns[c], scaled, has_branch, has_branch ? branch[at + c] : 0.0f, gate[c], residual[c]);
    }
    write_four(e.y, out, e.output, y, whole, there);
  }
}

}  // namespace vditc::qlinear
