// What lanes of a warp do together: shuffles, ldmatrix, mma.sync. Lanes leave their operands in the warp's buffer; of an mma, the last
// one that arrives computes all sums. Maps of fragments: PTX ISA, "Warp-level Matrix Instructions".
#include <algorithm>
#include <type_traits>

#include "native/emulator.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3")  // vectors for the sums, which are most of what the emulator does
#endif

namespace vditc {
namespace {

using emulator::exchange;
using emulator::lane;
using emulator::meet_warp;

using emulator::SLOT;
constexpr int LANES = 32;

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
  static short value(uint32_t bits) { return static_cast<int8_t>(bits); }
};
struct Unsigned8 : Signed8 {
  static short value(uint32_t bits) { return static_cast<short>(bits & 255); }
};
struct Signed4 {
  static constexpr int BITS = 4;
  using Sum = int;
  static short value(uint32_t bits) { return static_cast<short>(static_cast<int>((bits & 15) ^ 8) - 8); }
};
struct Unsigned4 : Signed4 {
  static short value(uint32_t bits) { return static_cast<short>(bits & 15); }
};
struct Half {
  static constexpr int BITS = 16;
  using Sum = float;
  static float value(uint32_t bits) { return from_fp16(static_cast<uint16_t>(bits)); }
};
struct Brain : Half {
  static float value(uint32_t bits) { return from_bf16(static_cast<uint16_t>(bits)); }
};

uint64_t bits_of_double(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
double double_of(uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// sums + a b of EIGHT products, as coarse as an A100, whose successors take more products or more places at a time: all nine numbers are
// aligned to the greatest and cut off PLACES binary places behind its first, and their sum is cut off to float32 (Fasi et al., "Numerical
// behavior of NVIDIA tensor cores", PeerJ Computer Science 7:e330, 2021). So errors of long sums all have one direction.
constexpr int EIGHT = 8, PLACES = 24;
void add_products(float (&sums)[8], const float* a, const float (*b)[8]) {
  double terms[EIGHT + 1][8], most[8], plain[8], unit[8], inverse[8];
  for (int column = 0; column < 8; ++column) {
    plain[column] = terms[EIGHT][column] = sums[column];
    most[column] = std::max(std::abs(plain[column]), 0x1p-200);
  }
  for (int k = 0; k < EIGHT; ++k)
    for (int column = 0; column < 8; ++column) {
      const double product = static_cast<double>(a[k]) * static_cast<double>(b[k][column]);
      terms[k][column] = product;
      plain[column] += product;
      most[column] = std::max(most[column], std::abs(product));
    }
  int whole[8] = {};
  for (int column = 0; column < 8; ++column) {
    const uint64_t first = bits_of_double(most[column]) >> 52 << 52;  // a power of two
    unit[column] = double_of(first - (uint64_t{PLACES} << 52));
    inverse[column] = double_of((uint64_t{2 * 1023 + PLACES} << 52) - first);
  }
  for (const auto& row : terms)
    for (int column = 0; column < 8; ++column) whole[column] += static_cast<int>(row[column] * inverse[column]);
  for (int column = 0; column < 8; ++column) {
    const double cut = double_of(bits_of_double(whole[column] * unit[column]) >> 29 << 29);  // 24 bits are left
    sums[column] = static_cast<float>(std::isfinite(plain[column]) ? cut : plain[column]);
  }
}

// From 4 registers of a, 2 of b and 4 sums in each lane's slot to its 4 sums there. Those of integers wrap, as without .satfinite.
template <class A, class B>
void products(unsigned char* buffer) {
  using Sum = typename A::Sum;
  using Value = decltype(A::value(0));
  constexpr int EACH = 32 / A::BITS, K = 8 * EACH;  // elements of a register; four lanes and two registers span K
  constexpr bool INTEGERS = std::is_same_v<Sum, int>;  // which compilers sum along K in vectors; others along columns, as order counts
  Value a[16][K], b[INTEGERS ? 8 : K][INTEGERS ? K : 8];
  Sum sums[16][8];
  const auto sum_of = [&](int l, int i) -> Sum& { return sums[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]; };
  for (int l = 0; l < LANES; ++l) {
    uint32_t words[6];
    std::memcpy(words, buffer + SLOT * l, sizeof words);
    for (int i = 0; i < 4; ++i) std::memcpy(&sum_of(l, i), buffer + SLOT * l + sizeof words + i * sizeof(Sum), sizeof(Sum));
    const int group = l / 4, first = l % 4 * EACH;
    for (int e = 0; e < EACH; ++e) {
      for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][first + i / 2 * (K / 2) + e] = A::value(words[i] >> (A::BITS * e));
      for (int i = 0; i < 2; ++i) {
        const int k = first + i * (K / 2) + e;
        b[INTEGERS ? group : k][INTEGERS ? k : group] = B::value(words[4 + i] >> (A::BITS * e));
      }
    }
  }
  for (int row = 0; row < 16; ++row) {
    if constexpr (INTEGERS) {
      for (int column = 0; column < 8; ++column) {
        int sum = 0;
        for (int k = 0; k < K; ++k) sum += a[row][k] * b[column][k];
        sums[row][column] = static_cast<int>(static_cast<uint32_t>(sums[row][column]) + static_cast<uint32_t>(sum));
      }
    } else {
      for (int k = 0; k < K; k += EIGHT) add_products(sums[row], a[row] + k, b + k);
    }
  }
  for (int l = 0; l < LANES; ++l)
    for (int i = 0; i < 4; ++i) std::memcpy(buffer + SLOT * l + i * sizeof(Sum), &sum_of(l, i), sizeof(Sum));
}

template <class A, class B, class D = typename A::Sum>
void multiplied(const char* what, D (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  unsigned char* slot = exchange() + SLOT * lane();
  std::memcpy(slot, a, 16);
  std::memcpy(slot + 16, &b0, 4);
  std::memcpy(slot + 20, &b1, 4);
  std::memcpy(slot + 24, d, sizeof d);
  meet_warp(what, products<A, B>);
  std::memcpy(d, slot, sizeof d);
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
