// The kernel of vditc.QuantizeToken: plugins/quantize_token/op.py says what it computes, in this order.
//
// A token belongs to 1 ... 16 warps; its elements are read once and stay in registers as float32. A thread holds VECTORS times 8 channels that
// lie next to each other, vector i = thread + threads * j: 16 bytes of fp16 or bf16. Tokens of one warp need no barrier, and a block has four
// of them; of more warps, each reduction (sum, moments, greatest value, sums of codes) is one exchange through shared memory.
#pragma once
#include "native/elementwise.h"
#include "native/gelu.h"
#include "native/vditc_plugins.h"
#include "quantize_token/element.h"

namespace vditc::quantize_token {

constexpr int WIDTH = 8;        // channels of a vector
constexpr int LANES = 32;
constexpr int MAX_WARPS = 16;   // of a token
constexpr int SINGLES = 4;      // tokens of a block, of one warp each
constexpr int MAX_SHARES = 4;
constexpr float LEAST = 1e-8f;  // vditc.numerics.EPS

// Places in shared memory, each of a number for every warp: a reduction has its own, so that nobody waits for those who still read.
enum Place { SUM, MOMENTS, TOP = MOMENTS + 2, CODES, PLACES = CODES + 1 + MAX_SHARES };
constexpr size_t SHARED = sizeof(float) * PLACES * MAX_WARPS;

// n / divisor for n < 2^31, without a division: Granlund and Montgomery, "Division by Invariant Integers using Multiplication", 1994.
struct Divisor {
  uint32_t multiplier, shift;
};
struct RowMap {
  Divisor inner, count;
  uint32_t rows;
};

struct Arguments {  // pointers are null where the problem leaves something out
  const void *x, *gate, *residual;
  const float *weight, *bias, *gain, *shift, *center, *balance, *clip, *given, *alpha;
  int8_t* codes;
  float *scale, *total, *share[MAX_SHARES];
  void* sum;
  RowMap gain_rows, shift_rows, gate_rows, residual_rows;
  uint32_t m;
  int k, vectors;  // channels, and how many times 8 they are, rounded up
  int warps;       // of a token
  int input;       // vditc_float_type
  int norm;        // vditc_norm
  int activation;  // vditc_activation
  int high;        // the greatest code
  int shares;
  int packed;
  float epsilon;
};

VDITC_DEVICE uint32_t quotient(uint32_t n, Divisor divisor) {
  return static_cast<uint32_t>(static_cast<uint64_t>(n) * divisor.multiplier >> (31 + divisor.shift));
}

VDITC_DEVICE int64_t row_of(const RowMap& map, uint32_t row) {
  const uint32_t outer = quotient(row, map.inner);
  return outer - quotient(outer, map.count) * map.rows;
}

struct Plus {
  static VDITC_DEVICE float of(float a, float b) { return a + b; }
};
struct Greater {
  static VDITC_DEVICE float of(float a, float b) { return larger(a, b); }
};

// WHOLE: k is a multiple of 8, so that all vectors are aligned and full; otherwise elements are read and written one by one.
template <int VECTORS, bool ROTATED, bool WHOLE>
struct Kernel {
  using Arguments = quantize_token::Arguments;
  static constexpr int THREADS = LANES * MAX_WARPS;
  static constexpr int BLOCKS_PER_SM = 1;

  const Arguments& a;
  float* exchanged;  // [PLACES][MAX_WARPS]
  uint32_t row;
  int warp, lane;     // of the token
  int first, stride;  // its vectors of this thread
  float v[VECTORS][WIDTH];

  static VDITC_DEVICE void run(const Arguments& a, unsigned char* shared) {
    const int warp = static_cast<int>(threadIdx.x) / LANES, lane = static_cast<int>(threadIdx.x) % LANES;
    const bool single = a.warps == 1;
    const uint32_t row = single ? blockIdx.x * SINGLES + warp : blockIdx.x;
    if (row >= a.m) return;  // whole warps, which nobody waits for
    Kernel token{a, reinterpret_cast<float*>(shared), row, single ? 0 : warp, lane, 0, a.warps * LANES, {}};
    token.first = token.warp * LANES + lane;
    token.compute();
  }

  VDITC_DEVICE void compute() {
    if (a.input == VDITC_FP32)
      read<Float32>();
    else if (a.input == VDITC_FP16)
      read<Float16>();
    else
      read<BFloat16>();
    if (a.activation) all([&](float x) { return gelu(x, a.activation == VDITC_GELU_TANH); });
    if (a.norm == VDITC_LAYER_NORM) layer_norm();
    if (a.norm == VDITC_RMS_NORM) rms_norm();
    if (a.weight) with(a.weight, multiply);
    if (a.bias) with(a.bias, add);
    if (a.gain) with(a.gain + row_of(a.gain_rows, row) * a.k, multiply);
    if (a.shift) with(a.shift + row_of(a.shift_rows, row) * a.k, add);
    if (a.center) with(a.center, subtract);
    if (a.balance) with(a.balance, multiply);
    if (ROTATED) rotate();
    quantize(a.given ? *a.given : scale());
  }

  // ---- which channels are whose -----------------------------------------------------------------------------------------------------

  template <class F>
  VDITC_DEVICE void vectors(F f) {  // f(j, i): the thread's vector j is the token's vector i
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
      const int i = first + stride * j;
      if (i < a.vectors) f(j, i);
    }
  }
  VDITC_DEVICE bool inside(int i, int e) const { return WHOLE || i * WIDTH + e < a.k; }
  VDITC_DEVICE int filled(int i) const { return WHOLE || (i + 1) * WIDTH <= a.k ? WIDTH : a.k - i * WIDTH; }

  template <class F>
  VDITC_DEVICE void all(F f) {  // what is outside of the token stays 0 throughout
    vectors([&](int j, int i) {
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) v[j][e] = inside(i, e) ? f(v[j][e]) : 0.0f;
    });
  }

  template <class F>
  VDITC_DEVICE void with(const float* vector, F f) {
    vectors([&](int j, int i) {
      float other[WIDTH];
      Float32::values<WHOLE>(vector, i * WIDTH, filled(i), other);
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) v[j][e] = inside(i, e) ? f(v[j][e], other[e]) : 0.0f;
    });
  }

  // ---- sums over the token ----------------------------------------------------------------------------------------------------------

  // `numbers` of all threads of the token, which all get the result; the first `used` of them.
  template <class Operation, int N>
  VDITC_DEVICE void reduce(float (&numbers)[N], int place, float neutral, int used = N) {
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (n < used) {
#pragma unroll
        for (int mask = LANES / 2; mask; mask /= 2) numbers[n] = Operation::of(numbers[n], shuffle_xor(numbers[n], mask));
      }
    if (a.warps == 1) return;
    float* places = exchanged + place * MAX_WARPS;
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (n < used) {
        if (lane == 0) places[n * MAX_WARPS + warp] = numbers[n];
        if (warp == 0 && lane >= a.warps && lane < MAX_WARPS) places[n * MAX_WARPS + lane] = neutral;
      }
    barrier();
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (n < used) {
        float result = neutral;
        for (int w = 0; w < a.warps; w += 4) {
          const float4 four = *reinterpret_cast<const float4*>(places + n * MAX_WARPS + w);
          result = Operation::of(result, Operation::of(Operation::of(four.x, four.y), Operation::of(four.z, four.w)));
        }
        numbers[n] = result;
      }
  }

  // Two rounds: of x - mean the mean once more, since that of x is rounded. A token of equal numbers becomes zeros, as it must.
  VDITC_DEVICE void layer_norm() {
    const float k = from_int(a.k);
    float sum[1] = {0.0f};
    all([&](float x) { return sum[0] += x, x; });
    reduce<Plus>(sum, SUM, 0.0f);
    const float mean = divide(sum[0], k);
    float moments[2] = {0.0f, 0.0f};
    all([&](float x) {
      const float centred = subtract(x, mean);
      moments[0] += centred;
      moments[1] = fused(centred, centred, moments[1]);
      return centred;
    });
    reduce<Plus>(moments, MOMENTS, 0.0f);
    const float rest = divide(moments[0], k);
    const float variance = larger(subtract(divide(moments[1], k), multiply(rest, rest)), 0.0f);
    const float factor = divide(1.0f, square_root(add(variance, a.epsilon)));
    all([&](float x) { return multiply(subtract(x, rest), factor); });
  }

  VDITC_DEVICE void rms_norm() {
    float squares[1] = {0.0f};
    all([&](float x) { return squares[0] = fused(x, x, squares[0]), x; });
    reduce<Plus>(squares, SUM, 0.0f);
    const float factor = divide(1.0f, square_root(add(divide(squares[0], from_int(a.k)), a.epsilon)));
    all([&](float x) { return multiply(x, factor); });
  }

  // ---- reading ----------------------------------------------------------------------------------------------------------------------

  template <class Type>
  VDITC_DEVICE void read() {
    const int64_t at = static_cast<int64_t>(row) * a.k;
    Pieces<Type> x[VECTORS];
#pragma unroll
    for (int j = 0; j < VECTORS; ++j)
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) v[j][e] = 0.0f;
    vectors([&](int j, int i) { x[j] = Type::template once<WHOLE>(a.x, at + i * WIDTH, filled(i)); });
    if (!a.gate) {
      vectors([&](int j, int) { Type::unpack(x[j], v[j]); });
      return;
    }
    const int64_t gate_at = row_of(a.gate_rows, row) * a.k, residual_at = row_of(a.residual_rows, row) * a.k;
    Pieces<Type> residual[VECTORS];
    vectors([&](int j, int i) { residual[j] = Type::template once<WHOLE>(a.residual, residual_at + i * WIDTH, filled(i)); });
    vectors([&](int j, int i) {
      float gate[WIDTH], other[WIDTH];
      Type::unpack(x[j], v[j]);
      Type::unpack(residual[j], other);
      Type::template values<WHOLE>(a.gate, gate_at + i * WIDTH, filled(i), gate);
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) v[j][e] = add(other[e], multiply(gate[e], v[j][e]));
      x[j] = Type::pack(v[j]);
      Type::template write<WHOLE>(a.sum, at + i * WIDTH, filled(i), x[j]);
      Type::unpack(x[j], v[j]);  // as who reads the sum sees it
    });
  }

  // ---- rotation ---------------------------------------------------------------------------------------------------------------------

  // v H of blocks of 256 channels, a vector of each lane of a warp; H = sylvester(256) / 16 has a butterfly for each bit of the channel.
  // Three bits number the elements of a vector. For each bit of the lane, two lanes halve their elements between them: four shuffles of
  // the eight that leave everything in its place. So element 4 h + e of lane l holds channel 128 h + 4 l + e at the end.
  VDITC_DEVICE void rotate() {
    float unit[2] = {0.0625f, 0.0625f};  // signs that the lanes' halves still lack
#pragma unroll
    for (int mask = 1; mask < LANES; mask *= 2) {
      const bool upper = lane & mask;
      unit[0] = upper ? unit[1] : unit[0];
      unit[1] = upper ? -unit[0] : unit[0];
    }
    vectors([&](int j, int) {  // the same for all lanes of a warp
      float(&u)[WIDTH] = v[j];
#pragma unroll
      for (int bit = 1; bit < WIDTH; bit *= 2)
#pragma unroll
        for (int e = 0; e < WIDTH; ++e)
          if (!(e & bit)) {
            const float low = u[e], high = u[e | bit];
            u[e] = low + high;
            u[e | bit] = low - high;
          }
#pragma unroll
      for (int mask = 1; mask < LANES; mask *= 2) {
        const bool upper = lane & mask;
#pragma unroll
        for (int e = 0; e < WIDTH / 2; ++e) {
          const float kept = upper ? u[e + 4] : u[e];
          const float other = shuffle_xor(upper ? u[e] : u[e + 4], mask);
          u[e] = kept + other;
          u[e + 4] = kept - other;  // of the upper lane the negative, and from then on: `unit`
        }
      }
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) u[e] *= unit[e / 4];
    });
  }

  // The first of four channels next to each other that elements 4 h ... of vector i are.
  VDITC_DEVICE int channel(int i, int h) const { return ROTATED ? i / LANES * 256 + 128 * h + 4 * lane : i * WIDTH + 4 * h; }

  // ---- codes ------------------------------------------------------------------------------------------------------------------------

  VDITC_DEVICE float scale() {
    float top[1] = {0.0f};
#pragma unroll
    for (int j = 0; j < VECTORS; ++j)
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) top[0] = larger(top[0], fabsf(v[j][e]));
    reduce<Greater>(top, TOP, 0.0f);
    if (a.clip) top[0] = multiply(top[0], *a.clip);
    const float found = larger(divide(top[0], from_int(a.high)), LEAST);
    if (warp == 0 && lane == 0) a.scale[row] = found;
    return found;
  }

  // rint(v / scale) of the IEEE quotient, for all elements, which are bounded first so that nothing overflows. With the correctly rounded
  // reciprocal, a product and two fused operations give the correctly rounded quotient (Brisebarre, Muller and Raina, "Accelerating
  // Correctly Rounded Floating-Point Division when the Divisor Is Known in Advance", IEEE Transactions on Computers 53(8), 2004) where no
  // residual underflows: scales far from 1 are moved nearer by a power of two.
  VDITC_DEVICE void quantize(float scale) {
    const float least = multiply(scale, -from_int(a.high + 1)), most = multiply(scale, from_int(a.high));
    const float unit = scale < 0x1p-80f ? 0x1p64f : scale > 0x1p80f ? 0x1p-64f : 1.0f;
    const float divisor = multiply(scale, unit), reciprocal = divide(1.0f, divisor);
    float sums[1 + MAX_SHARES] = {};
    int sum = 0;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
      const int i = first + stride * j;
      uint32_t words[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t bits[4];
        float codes[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float bounded = multiply(fminf(fmaxf(v[j][4 * h + e], least), most), unit);
          const float near = multiply(bounded, reciprocal);
          const float ratio = fused(fused(-near, divisor, bounded), reciprocal, near);
          const float whole = add(ratio, ROUNDER);
          codes[e] = subtract(whole, ROUNDER);
          bits[e] = bits_of(whole);
        }
        words[h] = lowest_bytes(bits[0], bits[1], bits[2], bits[3]);
        sum = add_bytes(words[h], sum);
        if (a.shares && i < a.vectors) share(sums, codes, channel(i, h));
      }
      write_codes(i, words[0], words[1]);
    }
    sums[0] = from_int(sum);
    write_sums(sums, scale);
  }
  static constexpr float ROUNDER = 12582912.0f;  // 1.5 2^23: added, the lowest byte is the integer next to a number, half to even

  VDITC_DEVICE void share(float (&sums)[1 + MAX_SHARES], const float (&codes)[4], int channel) {
#pragma unroll
    for (int r = 0; r < MAX_SHARES; ++r)
      if (r < a.shares) {
        float alpha[4];
        Float32::four<WHOLE>(a.alpha, static_cast<int64_t>(r) * a.k + channel, a.k - channel, alpha);
        float part = multiply(codes[0], alpha[0]);
#pragma unroll
        for (int e = 1; e < 4; ++e) part = fused(codes[e], alpha[e], part);
        sums[1 + r] += part;
      }
  }

  VDITC_DEVICE void write_sums(float (&sums)[1 + MAX_SHARES], float scale) {
    if (!a.total && !a.shares) return;
    reduce<Plus>(sums, CODES, 0.0f, 1 + a.shares);
    if (warp != 0 || lane != 0) return;
    if (a.total) a.total[row] = multiply(sums[0], scale);
#pragma unroll
    for (int r = 0; r < MAX_SHARES; ++r)
      if (r < a.shares) a.share[r][row] = multiply(sums[1 + r], scale);
  }

  // Packed, byte b of a block of 32 channels holds channels b and b + 16. They lie in lanes 2 apart, rotated 4 apart, which exchange a word.
  VDITC_DEVICE void write_codes(int i, uint32_t low, uint32_t high) {
    const int64_t at = static_cast<int64_t>(row) * a.k;
    if (a.packed) {
      const int apart = ROTATED ? 4 : 2;
      const bool upper = lane & apart;
      const auto other = static_cast<uint32_t>(shuffle_xor(static_cast<int>(upper ? low : high), apart));
      const uint32_t first_half = upper ? other : low, second_half = upper ? high : other;
      const uint32_t bytes = (first_half & 0x0f0f0f0fu) | (second_half & 0x0f0f0f0fu) << 4;
      const int block = (channel(i, ROTATED && upper)) / 32, word = ROTATED ? lane & 3 : 2 * (lane & 1) + upper;
      if (i < a.vectors) *reinterpret_cast<uint32_t*>(a.codes + at / 2 + block * 16 + 4 * word) = bytes;
    } else if (i < a.vectors) {
      int8_t* codes = a.codes + at;
      if (ROTATED) {
        *reinterpret_cast<uint32_t*>(codes + channel(i, 0)) = low;
        *reinterpret_cast<uint32_t*>(codes + channel(i, 1)) = high;
      } else if (WHOLE) {
        *reinterpret_cast<uint2*>(codes + i * WIDTH) = uint2{low, high};
      } else {
#pragma unroll
        for (int e = 0; e < WIDTH; ++e)
          if (inside(i, e)) codes[i * WIDTH + e] = static_cast<int8_t>((e < 4 ? low : high) >> (8 * (e % 4)));
      }
    }
  }
};

}  // namespace vditc::quantize_token
