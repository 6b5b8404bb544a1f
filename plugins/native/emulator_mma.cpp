// What lanes of a warp do together: shuffles, ldmatrix, mma.sync. Lanes leave their operands in the warp's buffer; of an mma, the last
// one that arrives computes all sums. Maps of fragments: PTX ISA, "Warp-level Matrix Instructions".
#include <type_traits>

#include "native/emulator.h"

namespace vditc {
namespace {

using emulator::exchange;
using emulator::lane;
using emulator::meet_warp;

constexpr int LANES = 32, SLOT = 32;

template <class T>
T shuffled(T value, int mask) {
  unsigned char* buffer = exchange();
  std::memcpy(buffer + SLOT * lane(), &value, sizeof value);
  meet_warp("shuffle_xor");
  std::memcpy(&value, buffer + SLOT * ((lane() ^ mask) % LANES), sizeof value);
  return value;
}

// Row r of matrix i begins where lane 8 i + r said.
const unsigned char* row_of(const unsigned char* buffer, int matrix, int row) {
  const unsigned char* found;
  std::memcpy(&found, buffer + SLOT * (8 * matrix + row), sizeof found);
  return found;
}

unsigned char* leave_row(const void* row) {
  unsigned char* buffer = exchange();
  std::memcpy(buffer + SLOT * lane(), &row, sizeof row);
  return buffer;
}

// Elements of operands, by the width of one: a [16, K] and b [K, 8] in registers whose 32 bits lie along K.
struct Signed8 {
  static constexpr int BITS = 8;
  using Sum = int;
  static int value(uint32_t bits) { return static_cast<int8_t>(bits); }
};
struct Unsigned8 : Signed8 {
  static int value(uint32_t bits) { return static_cast<int>(bits & 255); }
};
struct Signed4 {
  static constexpr int BITS = 4;
  using Sum = int;
  static int value(uint32_t bits) { return static_cast<int>((bits & 15) ^ 8) - 8; }
};
struct Unsigned4 : Signed4 {
  static int value(uint32_t bits) { return static_cast<int>(bits & 15); }
};
struct Half {
  static constexpr int BITS = 16;
  using Sum = double;
  static float value(uint32_t bits) { return from_fp16(static_cast<uint16_t>(bits)); }
};
struct Brain : Half {
  static float value(uint32_t bits) { return from_bf16(static_cast<uint16_t>(bits)); }
};

// From 4 registers of a and 2 of b in each lane's slot to its 4 sums there. Products and sums are exact but for those of Half, in double.
template <class A, class B>
void products(unsigned char* buffer) {
  using Sum = typename A::Sum;
  using Value = decltype(A::value(0));
  constexpr int EACH = 32 / A::BITS, K = 8 * EACH;  // elements of a register; four lanes and two registers span K
  Value a[16][K], b[8][K];
  for (int l = 0; l < LANES; ++l) {
    uint32_t words[6];
    std::memcpy(words, buffer + SLOT * l, sizeof words);
    const int group = l / 4, first = l % 4 * EACH;
    for (int e = 0; e < EACH; ++e) {
      for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][first + i / 2 * (K / 2) + e] = A::value(words[i] >> (A::BITS * e));
      for (int i = 0; i < 2; ++i) b[group][first + i * (K / 2) + e] = B::value(words[4 + i] >> (A::BITS * e));
    }
  }
  for (int l = 0; l < LANES; ++l) {
    Sum sums[4];
    for (int i = 0; i < 4; ++i) {
      const Value* left = a[l / 4 + i / 2 * 8];
      const Value* right = b[l % 4 * 2 + i % 2];
      Sum sum = 0;
      for (int k = 0; k < K; ++k) sum += static_cast<Sum>(left[k]) * static_cast<Sum>(right[k]);
      sums[i] = sum;
    }
    std::memcpy(buffer + SLOT * l, sums, sizeof sums);
  }
}

template <class A, class B, class D>
void multiplied(const char* what, D (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  unsigned char* slot = exchange() + SLOT * lane();
  std::memcpy(slot, a, 16);
  std::memcpy(slot + 16, &b0, 4);
  std::memcpy(slot + 20, &b1, 4);
  meet_warp(what, products<A, B>);
  typename A::Sum sums[4];
  std::memcpy(sums, slot, sizeof sums);
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<D, int>)
      d[i] = static_cast<int>(static_cast<uint32_t>(d[i]) + static_cast<uint32_t>(sums[i]));  // wraps, as without .satfinite
    else
      d[i] = static_cast<float>(static_cast<double>(d[i]) + sums[i]);
  }
}

}  // namespace

float shuffle_xor(float value, int mask) { return shuffled(value, mask); }
int shuffle_xor(int value, int mask) { return shuffled(value, mask); }

bool any_of_warp(bool yes) {
  unsigned char* buffer = exchange();
  buffer[SLOT * lane()] = yes;
  meet_warp("any_of_warp");
  for (int l = 0; l < LANES; ++l)
    if (buffer[SLOT * l]) return true;
  return false;
}

void load_matrices(uint32_t (&out)[4], const void* row) {
  unsigned char* buffer = leave_row(row);
  meet_warp("load_matrices");
  for (int i = 0; i < 4; ++i) std::memcpy(&out[i], row_of(buffer, i, lane() / 4) + 4 * (lane() % 4), 4);
}

void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  unsigned char* buffer = leave_row(row);
  meet_warp("load_matrices_transposed");
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) std::memcpy(&pair[e], row_of(buffer, i, 2 * (lane() % 4) + e) + 2 * (lane() / 4), 2);
    std::memcpy(&out[i], pair, 4);
  }
}

#define VDITC_MMA(name, A, B, number) \
  void name(number(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) { multiplied<A, B>(#name, d, a, b0, b1); }
VDITC_MMA(mma_s8, Signed8, Signed8, int)
VDITC_MMA(mma_s8_u8, Signed8, Unsigned8, int)
VDITC_MMA(mma_s4, Signed4, Signed4, int)
VDITC_MMA(mma_s4_u4, Signed4, Unsigned4, int)
VDITC_MMA(mma_fp16, Half, Half, float)
VDITC_MMA(mma_bf16, Brain, Brain, float)
#undef VDITC_MMA

}  // namespace vditc
