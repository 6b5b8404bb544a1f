// The kernel of vditc.QuantizeToken: plugins/quantize_token/op.py says what it computes, in this order.
//
// A token belongs to 1 ... 16 warps; its elements are read once and stay in registers as float32 (ROLLED: in local memory). A warp has
// VECTORS times 256 channels one behind the other, a lane 8 of each 256: 16 bytes of fp16 or bf16. Tokens of one warp need no barrier, and
// a block has four of them; of more warps, each reduction (sum, moments, greatest value, sums of codes) is one exchange through shared
// memory.
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
  int rotated;
  float epsilon;
  float part;      // of one channel in a mean: 1 / k
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
template <int VECTORS, int MOST_WARPS, bool WHOLE>
struct Kernel {
  using Arguments = quantize_token::Arguments;
  static constexpr int VECTORS_OF_A_THREAD = VECTORS;
  static constexpr int WARPS = MOST_WARPS;  // of a token
  static constexpr int THREADS = LANES * WARPS;
  static constexpr int BLOCKS_PER_SM = WARPS < MAX_WARPS ? 2 : 1;
  static constexpr bool ROLLED = !WHOLE;               // loops over vectors, which then lie in local memory: little code
  static constexpr int UNROLLED = ROLLED ? 1 : VECTORS;

  const Arguments& a;
  float* exchanged;  // [PLACES][MAX_WARPS]
  float v[VECTORS][WIDTH];

  static VDITC_DEVICE void run(const Arguments& a, unsigned char* shared) {
    Kernel token{a, reinterpret_cast<float*>(shared), {}};
    if (token.row() < a.m) token.compute();  // else whole warps, for which nobody waits
  }

  // Where this thread is: cheaper to compute again than to keep.
  static VDITC_DEVICE int lane() { return static_cast<int>(threadIdx.x) % LANES; }
  VDITC_DEVICE int warp() const { return a.warps == 1 ? 0 : static_cast<int>(threadIdx.x) / LANES; }  // of the token
  VDITC_DEVICE uint32_t row() const { return a.warps == 1 ? blockIdx.x * SINGLES + threadIdx.x / LANES : blockIdx.x; }
  VDITC_DEVICE int first() const { return warp() * VECTORS * LANES + lane(); }  // the first of its vectors; the others follow 32 apart

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
    if (a.weight) with(a.weight, 0, multiply);
    if (a.bias) with(a.bias, 0, add);
    if (a.gain) with(a.gain, row_of(a.gain_rows, row()), multiply);
    if (a.shift) with(a.shift, row_of(a.shift_rows, row()), add);
    if (a.center) with(a.center, 0, subtract);
    if (a.balance) with(a.balance, 0, multiply);
    if (a.rotated) rotate();
    quantize(a.given ? *a.given : scale());
  }

  // ---- which channels are whose -----------------------------------------------------------------------------------------------------

  // f(j) for the thread's vectors, the token's vectors first() + 32 j; those that are not there are zeros throughout.
  template <class F>
  static VDITC_DEVICE void each(F f) {
#pragma unroll UNROLLED
    for (int j = 0; j < VECTORS; ++j) f(j);
  }
  VDITC_DEVICE bool there(int j) const { return first() + LANES * j < a.vectors; }
  VDITC_DEVICE bool there(int j, int e) const { return WHOLE ? there(j) : (first() + LANES * j) * WIDTH + e < a.k; }
  VDITC_DEVICE int filled(int j) const {
    const int left = a.k - (first() + LANES * j) * WIDTH;
    return WHOLE || left > WIDTH ? WIDTH : left;
  }
  // Of a tensor [..., k]: the thread's first element of row `row`; vector j is `offset(j)` elements behind it.
  template <class Type>
  VDITC_DEVICE const typename Type::Element* begin(const void* tensor, int64_t row) const {
    return static_cast<const typename Type::Element*>(tensor) + (row * a.k + first() * WIDTH);
  }
  static constexpr VDITC_DEVICE int offset(int j) { return LANES * WIDTH * j; }

  template <class F>
  VDITC_DEVICE void all(F f) {  // f(0) is 0
    each([&](int j) {
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) v[j][e] = f(v[j][e]);
    });
  }

  template <class F>
  VDITC_DEVICE void with(const float* vector, int64_t row, F f) {  // f(0, 0) is 0
    const auto* from = begin<Float32>(vector, row);
    each([&](int j) {
      float other[WIDTH];
      Float32::unpack(Float32::template often<WHOLE>(from + offset(j), there(j), filled(j)), other);
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) v[j][e] = f(v[j][e], other[e]);
    });
  }

  // ---- sums over the token ----------------------------------------------------------------------------------------------------------

  // `numbers` of all threads of the token, which all get the result.
  template <class Operation, int N>
  VDITC_DEVICE void reduce(float (&numbers)[N], int place, float neutral) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int mask = LANES / 2; mask; mask /= 2) numbers[n] = Operation::of(numbers[n], shuffle_xor(numbers[n], mask));
    if (a.warps == 1) return;
    float* places = exchanged + place * MAX_WARPS;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (lane() == 0) places[n * MAX_WARPS + warp()] = numbers[n];
      if (warp() == 0 && lane() >= a.warps && lane() < MAX_WARPS) places[n * MAX_WARPS + lane()] = neutral;
    }
    barrier();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float result = neutral;
#pragma unroll 1
      for (int w = 0; w < a.warps; w += 4) {
        const float4 four = *reinterpret_cast<const float4*>(places + n * MAX_WARPS + w);
        result = Operation::of(result, Operation::of(Operation::of(four.x, four.y), Operation::of(four.z, four.w)));
      }
      numbers[n] = result;
    }
  }

  // Two rounds: of x - mean the mean once more, since that of x is rounded. A token of equal numbers becomes zeros, as it must.
  VDITC_DEVICE void layer_norm() {
    float sum[1] = {0.0f};
    all([&](float x) { return sum[0] += x, x; });
    reduce<Plus>(sum, SUM, 0.0f);
    const float mean = multiply(sum[0], a.part);
    float moments[2] = {0.0f, 0.0f};
    each([&](int j) {
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) {
        const float centred = there(j, e) ? subtract(v[j][e], mean) : 0.0f;
        moments[0] += centred;
        moments[1] = fused(centred, centred, moments[1]);
        v[j][e] = centred;
      }
    });
    reduce<Plus>(moments, MOMENTS, 0.0f);
    const float rest = multiply(moments[0], a.part);
    const float variance = larger(subtract(multiply(moments[1], a.part), multiply(rest, rest)), 0.0f);
    const float factor = rsqrtf(add(variance, a.epsilon));
    each([&](int j) {
#pragma unroll
      for (int e = 0; e < WIDTH; ++e) v[j][e] = there(j, e) ? multiply(subtract(v[j][e], rest), factor) : 0.0f;
    });
  }

  VDITC_DEVICE void rms_norm() {
    float squares[1] = {0.0f};
    all([&](float x) { return squares[0] = fused(x, x, squares[0]), x; });
    reduce<Plus>(squares, SUM, 0.0f);
    const float factor = rsqrtf(fused(squares[0], a.part, a.epsilon));
    all([&](float x) { return multiply(x, factor); });
  }

  // ---- reading ----------------------------------------------------------------------------------------------------------------------

  template <class Type>
  VDITC_DEVICE void read() {
    if (a.gate)
      read_gated<Type, ROLLED ? 1 : VECTORS / 2>();  // of two tensors
    else
      read_plain<Type, ROLLED ? 1 : VECTORS>();
  }

  // AT_ONCE vectors are asked for before the first of them is needed.
  template <class Type, int AT_ONCE>
  VDITC_DEVICE void read_plain() {
    const auto* from = begin<Type>(a.x, row());
#pragma unroll UNROLLED
    for (int j = 0; j < VECTORS; j += AT_ONCE) {
      Pieces<Type> x[AT_ONCE];
#pragma unroll
      for (int b = 0; b < AT_ONCE; ++b) x[b] = Type::template once<WHOLE>(from + offset(j + b), there(j + b), filled(j + b));
#pragma unroll
      for (int b = 0; b < AT_ONCE; ++b) Type::unpack(x[b], v[j + b]);
    }
  }

  template <class Type, int AT_ONCE>
  VDITC_DEVICE void read_gated() {
    const auto *x_from = begin<Type>(a.x, row()), *gate_from = begin<Type>(a.gate, row_of(a.gate_rows, row()));
    const auto* residual_from = begin<Type>(a.residual, row_of(a.residual_rows, row()));
    auto* to = static_cast<typename Type::Element*>(a.sum) + (static_cast<int64_t>(row()) * a.k + first() * WIDTH);
#pragma unroll UNROLLED
    for (int j = 0; j < VECTORS; j += AT_ONCE) {
      Pieces<Type> x[AT_ONCE], residual[AT_ONCE];
#pragma unroll
      for (int b = 0; b < AT_ONCE; ++b) {
        x[b] = Type::template once<WHOLE>(x_from + offset(j + b), there(j + b), filled(j + b));
        residual[b] = Type::template once<WHOLE>(residual_from + offset(j + b), there(j + b), filled(j + b));
      }
#pragma unroll
      for (int b = 0; b < AT_ONCE; ++b) {
        float(&u)[WIDTH] = v[j + b];
        float gate[WIDTH], other[WIDTH];
        Type::unpack(Type::template often<WHOLE>(gate_from + offset(j + b), there(j + b), filled(j + b)), gate);
        Type::unpack(x[b], u);
        Type::unpack(residual[b], other);
#pragma unroll
        for (int e = 0; e < WIDTH; ++e) u[e] = add(other[e], multiply(gate[e], u[e]));
        const Pieces<Type> sum = Type::pack(u);
        Type::template write<WHOLE>(to + offset(j + b), there(j + b), filled(j + b), sum);
        Type::unpack(sum, u);  // as who reads the sum sees it
      }
    }
  }

  // ---- rotation ---------------------------------------------------------------------------------------------------------------------

  // v H of blocks of 256 channels, a vector of each lane of a warp; H = sylvester(256) / 16 has a butterfly for each bit of the channel.
  // Three bits number the elements of a vector. For each bit of the lane, two lanes halve their elements between them: four shuffles of
  // the eight that leave everything in its place. So element 4 h + e of lane l holds channel 128 h + 4 l + e at the end.
  VDITC_DEVICE void rotate() {
    float unit[2] = {0.0625f, 0.0625f};  // signs that the lanes' halves still lack
#pragma unroll
    for (int mask = 1; mask < LANES; mask *= 2) {
      const bool upper = lane() & mask;
      unit[0] = upper ? unit[1] : unit[0];
      unit[1] = upper ? -unit[0] : unit[0];
    }
    each([&](int j) {  // all lanes take part, also where a token has no vectors left
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
        const bool upper = lane() & mask;
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

  // The first of the four channels next to each other that elements 4 h ... of vector j are.
  VDITC_DEVICE int channel(int j, int h) const {
    return (a.rotated ? (first() - lane()) * WIDTH + 128 * h + 4 * lane() : first() * WIDTH + 4 * h) + LANES * WIDTH * j;
  }

  // ---- codes ------------------------------------------------------------------------------------------------------------------------

  // NaN of a token that has a NaN or an infinity.
  VDITC_DEVICE float scale() {
    float top[1] = {0.0f};
    all([&](float x) { return top[0] = larger(top[0], fabsf(x)), x; });
    reduce<Greater>(top, TOP, 0.0f);
    top[0] = add(top[0], subtract(top[0], top[0]));
    if (a.clip) top[0] = multiply(top[0], *a.clip);
    const float found = larger(divide(top[0], from_int(a.high)), LEAST);
    if (warp() == 0 && lane() == 0) a.scale[row()] = found;
    return found;
  }

  // rint(v / scale) of the IEEE quotient, for all elements, which are bounded first so that nothing overflows. With the correctly rounded
  // reciprocal, a product and two fused operations give the correctly rounded quotient (Brisebarre, Muller and Raina, "Accelerating
  // Correctly Rounded Floating-Point Division when the Divisor Is Known in Advance", IEEE Transactions on Computers 53(8), 2004) where no
  // residual underflows: scales far from 1 are moved nearer by a power of two. A NaN, which only a given scale meets, is bounded to the least
  // code. What is no positive finite scale has the codes 0.
  VDITC_DEVICE void quantize(float scale) {
    const bool positive = scale > 0.0f && scale < INFINITY;
    const float step = positive ? scale : 0.0f;
    const float least = multiply(step, -from_int(a.high + 1)), most = multiply(step, from_int(a.high));
    const float unit = step < 0x1p-80f ? 0x1p64f : step > 0x1p80f ? 0x1p-64f : 1.0f;
    const float divisor = positive ? multiply(scale, unit) : 1.0f, reciprocal = divide(1.0f, divisor);
    int8_t* const codes = first_code();
    int sum = 0;
    each([&](int j) {
      uint32_t words[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t bits[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& x = v[j][4 * h + e];
          const float bounded = multiply(fminf(fmaxf(x, least), most), unit);
          const float near = multiply(bounded, reciprocal);
          const float ratio = fused(fused(-near, divisor, bounded), reciprocal, near);
          const float whole = add(ratio, ROUNDER);
          x = subtract(whole, ROUNDER);
          bits[e] = bits_of(whole);
        }
        words[h] = lowest_bytes(bits[0], bits[1], bits[2], bits[3]);
        sum = add_bytes(words[h], sum);
      }
      if (a.packed)
        write_packed(codes, j, words[0], words[1]);
      else
        write_codes(codes, j, words[0], words[1]);
    });
    if (a.total || a.shares) write_sums(from_int(sum), scale);
  }
  static constexpr float ROUNDER = 12582912.0f;  // 1.5 2^23: added, the lowest byte is the integer next to a number, half to even

  // The total, and the shares of the codes in v.
  VDITC_DEVICE void write_sums(float sum, float scale) {
#pragma unroll 1
    for (int n = 0; n <= a.shares; ++n) {
      if (n) sum = weighed(a.alpha + static_cast<int64_t>(n - 1) * a.k);
#pragma unroll
      for (int mask = LANES / 2; mask; mask /= 2) sum += shuffle_xor(sum, mask);
      if (a.warps > 1) {
        if (lane() == 0) exchanged[(CODES + n) * MAX_WARPS + warp()] = sum;
      } else if (lane() == 0) {
        write_sum(n, multiply(sum, scale));
      }
    }
    if (a.warps == 1) return;
    barrier();
    if (warp() != 0 || lane() > a.shares) return;
    sum = 0.0f;
    for (int w = 0; w < a.warps; ++w) sum += exchanged[(CODES + lane()) * MAX_WARPS + w];
    write_sum(lane(), multiply(sum, scale));
  }

  VDITC_DEVICE float weighed(const float* alpha) {
    const float* const halves[2] = {alpha + channel(0, 0), alpha + channel(0, 1)};
    float sum = 0.0f;
    each([&](int j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float four[4];
        Float32::four<WHOLE>(halves[h] + offset(j), there(j), a.k - channel(j, h), four);
        float part = multiply(v[j][4 * h], four[0]);
#pragma unroll
        for (int e = 1; e < 4; ++e) part = fused(v[j][4 * h + e], four[e], part);
        sum += part;
      }
    });
    return sum;
  }

  VDITC_DEVICE void write_sum(int n, float sum) {  // 0 is the total
    float* const to = n ? a.share[n - 1] : a.total;
    if (to) to[row()] = sum;
  }

  VDITC_DEVICE int8_t* first_code() const {
    const int64_t at = static_cast<int64_t>(row()) * a.k;
    if (!a.packed) return a.codes + at + channel(0, 0);
    const bool upper = lane() & apart();
    const int word = a.rotated ? lane() % 4 : 2 * (lane() % 2) + upper;
    return a.codes + at / 2 + channel(0, a.rotated && upper) / 32 * 16 + 4 * word;
  }

  VDITC_DEVICE void write_codes(int8_t* codes, int j, uint32_t low, uint32_t high) {
    if (!WHOLE) {
#pragma unroll
      for (int e = 0; e < WIDTH; ++e)
        if (there(j, e)) codes[channel(j, e / 4) - channel(0, 0) + e % 4] = static_cast<int8_t>((e < 4 ? low : high) >> (8 * (e % 4)));
    } else if (a.rotated) {
      if (there(j)) *reinterpret_cast<uint32_t*>(codes + offset(j)) = low;
      if (there(j)) *reinterpret_cast<uint32_t*>(codes + offset(j) + 128) = high;
    } else {
      if (there(j)) *reinterpret_cast<uint2*>(codes + offset(j)) = uint2{low, high};
    }
  }

  // Byte b of a block of 32 channels holds channels b and b + 16. They lie in lanes 2 apart, rotated 4 apart, which exchange a word.
  VDITC_DEVICE int apart() const { return a.rotated ? 4 : 2; }
  VDITC_DEVICE void write_packed(int8_t* codes, int j, uint32_t low, uint32_t high) {
    const bool upper = lane() & apart();
    const auto other = static_cast<uint32_t>(shuffle_xor(static_cast<int>(upper ? low : high), apart()));
    const uint32_t first_half = upper ? other : low, second_half = upper ? high : other;
    const uint32_t bytes = (first_half & 0x0f0f0f0fu) | (second_half & 0x0f0f0f0fu) << 4;
    if (there(j)) *reinterpret_cast<uint32_t*>(codes + offset(j) / 2) = bytes;
  }
};

}  // namespace vditc::quantize_token
