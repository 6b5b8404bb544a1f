// Kernels in front of products: packed weights to int8 rows, and rows of x that are not aligned to aligned ones.
#pragma once
#include "qlinear/codecs.h"

namespace vditc::qlinear {

// A warp expands 32 outputs x 128 inputs through shared memory, so that it writes 128 bytes of a row at a time.
template <class Weights>
struct ExpandKernel {
  struct Arguments {
    const uint32_t* weight;
    unsigned char* out;  // [n, k], aligned to 16 bytes
    int n, k, k_blocks, strips;  // strips of 128 inputs of a row
    int64_t units;               // strips of all rows of blocks
  };
  static constexpr int THREADS = 128, BLOCKS_PER_SM = 4, WARPS = THREADS / 32, STRIP = 4;  // blocks
  static constexpr int STRIDE = STRIP * 32 + 16;                                           // bytes of a row in shared memory
  static constexpr size_t SHARED = WARPS * 32 * STRIDE;

  // Four codes that are multiples of 2^SHIFT as plain int8.
  static VDITC_DEVICE uint32_t plain(uint32_t bytes) {
    constexpr int SHIFT = Weights::SHIFT;
    if constexpr (SHIFT == 0) return bytes;
    constexpr uint32_t ones = 0x01010101u, sign = ones << (7 - SHIFT);
    const uint32_t turned = (bytes >> SHIFT & ones * (0xffu >> SHIFT)) ^ sign;  // code + sign, not below zero
    return ((turned | 0x80808080u) - sign) ^ 0x80808080u;                       // no borrow goes from byte to byte
  }

  static VDITC_DEVICE void run(const Arguments& a, unsigned char* shared) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * WARPS + warp;
    if (unit >= a.units) return;
    unsigned char* rows = shared + warp * 32 * STRIDE;
    const int block_row = static_cast<int>(unit / a.strips), first = static_cast<int>(unit % a.strips) * STRIP;
#pragma unroll
    for (int b = 0; b < STRIP; ++b) {
      if (first + b >= a.k_blocks) break;
      uint32_t words[Weights::WORDS];
      load_words<Weights>(words, a.weight + (static_cast<int64_t>(block_row) * a.k_blocks + first + b) * 32 * Weights::WORDS, lane);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t b0, b1;
        Weights::registers(words, j, b0, b1);
        auto* to = reinterpret_cast<uint32_t*>(rows + (8 * j + lane / 4) * STRIDE + 32 * b + lane % 4 * 4);
        to[0] = plain(b0);
        to[4] = plain(b1);
      }
    }
    warp_barrier();
    for (int c = lane; c < 32 * STRIP * 2; c += 32) {
      const int row = c / (STRIP * 2), at = c % (STRIP * 2) * 16, n = block_row * 32 + row, k = first * 32 + at;
      if (n >= a.n || k >= a.k) continue;
      const unsigned char* from = rows + row * STRIDE + at;
      unsigned char* to = a.out + static_cast<int64_t>(n) * a.k + k;
      if (a.k % 16 == 0) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
        for (int i = 0; i < 16 && k + i < a.k; ++i) to[i] = from[i];
      }
    }
  }
};

struct PadKernel {
  struct Arguments {
    const unsigned char* x;
    unsigned char* out;
    int64_t chunks, row_bytes;  // chunks of 16 bytes of all rows
    int k;
  };
  static constexpr int THREADS = 256, BLOCKS_PER_SM = 1;

  static VDITC_DEVICE void run(const Arguments& a, unsigned char*) {
    const int64_t of_row = a.row_bytes / 16;
    for (int64_t c = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; c < a.chunks; c += static_cast<int64_t>(gridDim.x) * THREADS) {
      const int64_t row = c / of_row;
      const int first = static_cast<int>(c % of_row) * 16;
      uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < 16; ++i)
        if (first + i < a.k) words[i / 4] |= static_cast<uint32_t>(a.x[row * a.k + first + i]) << (8 * (i % 4));
      *reinterpret_cast<uint4*>(a.out + c * 16) = uint4{words[0], words[1], words[2], words[3]};
    }
  }
};

}  // namespace vditc::qlinear
