// How codes in memory become operands of mma.sync. Weights: lane-blocks of vditc.plugins.packing; activations: rows of bytes, or of two
// 4-bit codes a byte. Codes of fewer than eight bits come out as multiples of 2^SHIFT: they stay in the high bits of their bytes, where
// a mask is enough to have them signed, and sums are shifted back at the end, exactly.
#pragma once
#include "native/device.h"

namespace vditc::qlinear {

constexpr uint32_t HIGH_NIBBLES = 0xf0f0f0f0u, LOW_NIBBLES = 0x0f0f0f0fu;

// Of a weight codec: WORDS of a lane for a block of 32 x 32, and the two registers that mma.m16n8k32 takes for tile j of 8 outputs.
struct W8 {
  static constexpr int BITS = 8, WORDS = 8, SHIFT = 0;
  static constexpr bool UNSIGNED = false;
  static VDITC_DEVICE void registers(const uint32_t (&words)[WORDS], int j, uint32_t& b0, uint32_t& b1) {
    b0 = words[2 * j];
    b1 = words[2 * j + 1];
  }
};

struct W4 {
  static constexpr int BITS = 4, WORDS = 4, SHIFT = 4;
  static constexpr bool UNSIGNED = false;
  static VDITC_DEVICE void registers(const uint32_t (&words)[WORDS], int j, uint32_t& b0, uint32_t& b1) {
    b0 = words[j] << 4 & HIGH_NIBBLES;
    b1 = words[j] & HIGH_NIBBLES;
  }
};

struct U4 {
  static constexpr int BITS = 4, WORDS = 4, SHIFT = 0;
  static constexpr bool UNSIGNED = true;
  static VDITC_DEVICE void registers(const uint32_t (&words)[WORDS], int j, uint32_t& b0, uint32_t& b1) {
    b0 = words[j] & LOW_NIBBLES;
    b1 = words[j] >> 4 & LOW_NIBBLES;
  }
};

struct W3 {
  static constexpr int BITS = 3, WORDS = 3, SHIFT = 5;
  static constexpr bool UNSIGNED = false;
  static VDITC_DEVICE void registers(const uint32_t (&words)[WORDS], int j, uint32_t& b0, uint32_t& b1) {
    b0 = code(words, j, 0);
    b1 = code(words, j, 1);
  }

 private:
  static VDITC_DEVICE uint32_t code(const uint32_t (&words)[WORDS], int j, int h) {
    const int left = 5 - 2 * (2 * (j & 1) + h);  // bits 2 f and 2 f + 1 go to 5 and 6
    const uint32_t low = left >= 0 ? words[j >> 1] << left : words[j >> 1] >> -left;
    return (low & 0x60606060u) | (words[2] << (7 - 2 * j - h) & 0x80808080u);
  }
};

// A lane's words of a block in shared (or global) memory.
template <class Weights>
VDITC_DEVICE void load_words(uint32_t (&words)[Weights::WORDS], const uint32_t* block, int lane) {
  if constexpr (Weights::WORDS % 4 == 0) {
#pragma unroll
    for (int v = 0; v < Weights::WORDS / 4; ++v) {
      const uint4 four = *reinterpret_cast<const uint4*>(block + (v * 32 + lane) * 4);
      words[4 * v] = four.x;
      words[4 * v + 1] = four.y;
      words[4 * v + 2] = four.z;
      words[4 * v + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int v = 0; v < Weights::WORDS; ++v) words[v] = block[v * 32 + lane];
  }
}

// Of an activation codec: BLOCKS of 32 channels in a row of 64 bytes, and the registers of 16 rows x 32 channels out of what ldmatrix
// gives for 16 rows x 32 bytes (rows 0-7 and 8-15 of the first 16 bytes, then of the others).
struct Bytes {
  static constexpr int BLOCKS = 2, SHIFT = 0;
  static constexpr bool PACKED = false;
  // Registers of mma.m16n8k32 for the `half`-th block of `raw`, which holds one.
  static VDITC_DEVICE void registers(const uint32_t (&raw)[4], int, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = raw[i];
  }
  // Registers of mma.m16n8k64 on 4-bit codes, for two blocks: as Nibbles has them in memory.
  static VDITC_DEVICE void registers4(const uint32_t (&first)[4], const uint32_t (&second)[4], uint32_t (&a)[4]) {
    a[0] = pack(first[0], first[2]);
    a[1] = pack(first[1], first[3]);
    a[2] = pack(second[0], second[2]);
    a[3] = pack(second[1], second[3]);
  }

 private:
  static VDITC_DEVICE uint32_t pack(uint32_t low, uint32_t high) { return (low & LOW_NIBBLES) | (high << 4 & HIGH_NIBBLES); }
};

// Channels i and i + 16 of a block of 32 in byte i: lane l gets of ldmatrix inputs 4 (l % 4) + b in the low half of byte b and 16 more in
// the high one, as it does of W4's words.
struct Nibbles {
  static constexpr int BLOCKS = 4, SHIFT = 4;
  static constexpr bool PACKED = true;
  static VDITC_DEVICE void registers(const uint32_t (&raw)[4], int half, uint32_t (&a)[4]) {
    a[0] = raw[2 * half] << 4 & HIGH_NIBBLES;
    a[1] = raw[2 * half + 1] << 4 & HIGH_NIBBLES;
    a[2] = raw[2 * half] & HIGH_NIBBLES;
    a[3] = raw[2 * half + 1] & HIGH_NIBBLES;
  }
};

// Two of a register's four signed bytes as two bf16, exact: 128 + the low seven bits is a bf16 whose last bits they are, from which goes
// 128, or 256 where the byte is negative.
VDITC_DEVICE uint32_t widen(uint32_t bytes, int first) {
  const uint32_t pair = bytes >> (8 * first);
  const uint32_t spread = (pair & 0xffu) | (pair & 0xff00u) << 8;
  return subtract_bf16((spread & 0x007f007fu) | 0x43004300u, (spread & 0x00800080u) | 0x43004300u);
}

}  // namespace vditc::qlinear
