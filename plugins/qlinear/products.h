// Ways to multiply 16 rows x 64 channels by 64 channels x 32 outputs out of shared memory, which give the same sums. Each has
//
//   Sum, SHIFT                      type of a sum, and the power of two that it is a multiple of
//   multiply_pair(...)              all tiles of a warp for one pair of blocks of 32 channels
//   integer(sum)                    the sum as an integer, still shifted
//
// Channels may stand in any order in a product as long as both operands have the same: mma.m16n8k64 on nibbles and mma.m16n8k16 on bf16
// take them in the order of the lane-blocks, not in their own.
#pragma once
#include "qlinear/codecs.h"

namespace vditc::qlinear {

constexpr int ROW_BYTES = 64;  // of a row of activations in shared memory, four chunks of 16

// Where a lane finds its chunks of activations. Chunk c of row r lies at c ^ (r / 2 % 4), so that the eight rows of an 8 x 8 matrix are in
// different banks.
struct ActivationRows {
  const unsigned char* rows;  // of the warp in this stage
  int at[2];                  // of this lane: of chunks 0 and 1, and of 2 and 3, without the 16-row tile

  VDITC_DEVICE void load(uint32_t (&raw)[4], int tile, int pair_of_chunks) const {
    load_matrices(raw, rows + at[pair_of_chunks] + tile * 16 * ROW_BYTES);
  }
};

VDITC_DEVICE int swizzled(int row, int chunk) { return row * ROW_BYTES + (chunk ^ (row >> 1 & 3)) * 16; }

// int8 codes, mma.m16n8k32.
template <class Weights, class Codes>
struct Int8Product {
  using Sum = int;
  static constexpr int SHIFT = Weights::SHIFT + Codes::SHIFT;
  static constexpr bool runs_on(int) { return true; }
  static VDITC_DEVICE int integer(int sum) { return sum; }

  // Blocks 2 pair and 2 pair + 1 of the stage. `blocks`: the warp's first 32 outputs, `stride` words to the next 32.
  template <int TILES_M, int TILES_N>
  static VDITC_DEVICE void multiply_pair(Sum (&sums)[TILES_M][TILES_N][4], const ActivationRows& rows, const uint32_t* blocks, int stride, int pair,
                                         int lane) {
    uint32_t raw[TILES_M][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == 0 || !Codes::PACKED) {
#pragma unroll
        for (int i = 0; i < TILES_M; ++i) rows.load(raw[i], i, Codes::PACKED ? pair : half);
      }
      uint32_t a[TILES_M][4];
#pragma unroll
      for (int i = 0; i < TILES_M; ++i) Codes::registers(raw[i], half, a[i]);
#pragma unroll
      for (int g = 0; g < TILES_N / 4; ++g) {
        uint32_t words[Weights::WORDS];
        load_words<Weights>(words, blocks + g * stride + (2 * pair + half) * 32 * Weights::WORDS, lane);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          uint32_t b0, b1;
          Weights::registers(words, j, b0, b1);
#pragma unroll
          for (int i = 0; i < TILES_M; ++i) {
            if constexpr (Weights::UNSIGNED)
              mma_s8_u8(sums[i][4 * g + j], a[i], b0, b1);
            else
              mma_s8(sums[i][4 * g + j], a[i], b0, b1);
          }
        }
      }
    }
  }
};

// 4-bit codes, mma.m16n8k64: words of the weights are its operand as they lie. Bytes are packed on the way.
template <class Weights, class Codes>
struct Int4Product {
  static_assert(Weights::BITS == 4, "words of 4-bit weights are operands of mma.m16n8k64");
  using Sum = int;
  static constexpr int SHIFT = 0;
  static constexpr bool runs_on(int sm) { return sm < 90; }  // later ones emulate it by int8 and some 180 other instructions
  static VDITC_DEVICE int integer(int sum) { return sum; }

  template <int TILES_M, int TILES_N>
  static VDITC_DEVICE void multiply_pair(Sum (&sums)[TILES_M][TILES_N][4], const ActivationRows& rows, const uint32_t* blocks, int stride, int pair,
                                         int lane) {
    uint32_t a[TILES_M][4];
#pragma unroll
    for (int i = 0; i < TILES_M; ++i) {
      if constexpr (Codes::PACKED) {
        rows.load(a[i], i, pair);
      } else {
        uint32_t first[4], second[4];
        rows.load(first, i, 0);
        rows.load(second, i, 1);
        Codes::registers4(first, second, a[i]);
      }
    }
#pragma unroll
    for (int g = 0; g < TILES_N / 4; ++g) {
      const uint32_t* block = blocks + g * stride + 2 * pair * 32 * Weights::WORDS;
      uint32_t first[Weights::WORDS], second[Weights::WORDS];
      load_words<Weights>(first, block, lane);
      load_words<Weights>(second, block + 32 * Weights::WORDS, lane);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < TILES_M; ++i) {
          if constexpr (Weights::UNSIGNED)
            mma_s4_u4(sums[i][4 * g + j], a[i], first[j], second[j]);
          else
            mma_s4(sums[i][4 * g + j], a[i], first[j], second[j]);
        }
      }
    }
  }
};

// Codes as bf16, sums in float32, mma.m16n8k16: exact while every sum of magnitudes is at most 2^24 times 2^SHIFT. Of the four bytes of an
// int8 register, 0 and 1 are its first operand register and 2 and 3 its second.
template <class Weights, class Codes>
struct CarrierProduct {
  using Sum = float;
  static constexpr int SHIFT = Weights::SHIFT + Codes::SHIFT;
  static constexpr bool runs_on(int) { return true; }
  static VDITC_DEVICE int integer(float sum) { return to_int(sum); }

  template <int TILES_M, int TILES_N>
  static VDITC_DEVICE void multiply_pair(Sum (&sums)[TILES_M][TILES_N][4], const ActivationRows& rows, const uint32_t* blocks, int stride, int pair,
                                         int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[TILES_M][2][4];
#pragma unroll
      for (int i = 0; i < TILES_M; ++i) {
        uint32_t raw[4], bytes[4];
        rows.load(raw, i, Codes::PACKED ? pair : half);
        Codes::registers(raw, half, bytes);
#pragma unroll
        for (int r = 0; r < 4; ++r) {  // rows 0-7, rows 8-15 of channels 0-15; of 16-31
          a[i][r / 2][r % 2] = widen(bytes[r], 0);
          a[i][r / 2][r % 2 + 2] = widen(bytes[r], 2);
        }
      }
#pragma unroll
      for (int g = 0; g < TILES_N / 4; ++g) {
        uint32_t words[Weights::WORDS];
        load_words<Weights>(words, blocks + g * stride + (2 * pair + half) * 32 * Weights::WORDS, lane);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          uint32_t b[2];
          Weights::registers(words, j, b[0], b[1]);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint32_t b0 = widen(b[h], 0), b1 = widen(b[h], 2);
#pragma unroll
            for (int i = 0; i < TILES_M; ++i) mma_bf16(sums[i][4 * g + j], a[i][h], b0, b1);
          }
        }
      }
    }
  }
};

}  // namespace vditc::qlinear
