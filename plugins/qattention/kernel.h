// softmax(q k^T scale + mask) v over any number of keys: products of INT8 codes (SageAttention, arXiv 2410.02367, section 4), an online
// softmax in float32 and products of 16-bit weights with v (FlashAttention-2, arXiv 2307.08691, algorithm 1).
//
// A block has QUERIES queries of one head, a warp TILES x 16 of them, and walks over the keys by KEYS at a time. Queries are quantized here,
// since nobody else reads them; codes of k and their scales come from prepare.h. Tile n + 1 is copied while tile n is computed with.
#pragma once
#include "native/device.h"

namespace vditc::qattention {

// Scores are in units of log2, so that a weight is one ex2.
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LEAST_SCALE = 1e-8f;  // vditc.numerics.EPS
constexpr float HIGH = 127.0f;
// Sums of products begin at this number's bits, 1.5 * 2^23. As they stay below 2^22 (128 * 127^2), the same bits read as a float are that
// number plus the sum: a subtraction takes the place of a conversion, which a GPU does at a quarter of the rate.
constexpr int SUM_START = 0x4b400000;
constexpr float SUM_OFFSET = 12582912.0f;
static_assert(128 * 127 * 127 < 1 << 22);

// Weights are 2^(x - greatest + LIFT): float16 has no numbers below 2^-24, and many keys that weigh little weigh something together.
struct Fp16 {
  static constexpr float LIFT = 14;  // float16 ends at 2^16; sums are float32
  static VDITC_DEVICE float read(uint32_t bits) { return from_fp16(static_cast<uint16_t>(bits)); }
  static VDITC_DEVICE uint32_t pack(float low, float high) { return pack_fp16(low, high); }
  static VDITC_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_fp16(d, a, b0, b1); }
};
struct Bf16 {
  static constexpr float LIFT = 0;
  static VDITC_DEVICE float read(uint32_t bits) { return from_bf16(static_cast<uint16_t>(bits)); }
  static VDITC_DEVICE uint32_t pack(float low, float high) { return pack_bf16(low, high); }
  static VDITC_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_bf16(d, a, b0, b1); }
};

// Elements from one batch, token, head to the next.
struct Strides {
  int64_t batch, token, head;
  VDITC_BOTH int64_t at(int64_t b, int64_t t, int64_t h) const { return b * batch + t * token + h * head; }
};

struct Arguments {
  const void *q, *v;
  void* y;
  const int8_t* codes;  // of k, [batch, heads, keys, width]
  const float* scale;   // of k, [batch, heads, row]
  const float* bias;    // [batch or 1, row], in units of log2
  int32_t* scores;      // [batch, heads, queries, keys]: of Scores
  Strides q_strides, v_strides, y_strides;
  int64_t row, bias_stride;
  int queries, keys, head_dim;
  float factor;  // scale * log2(e)
};

// Where 16 bytes of a row of ROW bytes lie in shared memory: eight neighbouring rows in different banks, for ldmatrix.
template <int ROW>
VDITC_DEVICE int place(int row, int chunk) {
  static_assert(ROW == 64 || ROW % 128 == 0);
  return row * ROW + ((chunk ^ (ROW == 64 ? row / 2 % 4 : row % 8)) << 4);
}

// Eight neighbouring channels of one token, quantized by all lanes that share the token.
struct Eight {
  float x[8];

  template <class Element>
  VDITC_DEVICE void read(const void* from, int64_t at) {
    const uint4 bits = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(from) + at);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = Element::read(words[i] & 0xffffu);
      x[2 * i + 1] = Element::read(words[i] >> 16);
    }
  }
  VDITC_DEVICE void clear() {
#pragma unroll
    for (float& value : x) value = 0;
  }
  // Greatest magnitude of the token over 127, at least LEAST_SCALE. `lanes`: how many neighbouring ones share it, a power of two.
  VDITC_DEVICE float scale(int lanes) const {
    float top = 0;
#pragma unroll
    for (float value : x) top = fmaxf(top, fabsf(value));
    for (int other = 1; other < lanes; other *= 2) top = fmaxf(top, shuffle_xor(top, other));
    return fmaxf(divide(top, HIGH), LEAST_SCALE);
  }
  VDITC_DEVICE uint2 codes(float scale) const {
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float code = fminf(fmaxf(round_even(divide(x[i], scale)), -HIGH), HIGH);
      words[i / 4] |= (static_cast<uint32_t>(to_int(code)) & 255u) << (8 * (i % 4));
    }
    return {words[0], words[1]};
  }
};

template <int WIDTH_>
struct Shape {
  static constexpr int WIDTH = WIDTH_;  // channels, head_dim rounded up
  static constexpr int KEYS = 64, STEP = 32, TILES = 2, WARPS = 4, QUERIES = 16 * TILES * WARPS, THREADS = 32 * WARPS;
  static constexpr int V_AT = KEYS * WIDTH, SCALE_AT = V_AT + 2 * KEYS * WIDTH, BIAS_AT = SCALE_AT + 4 * KEYS;
  static constexpr int STAGE = BIAS_AT + 4 * KEYS, SHARED = 2 * STAGE;  // bytes
  static_assert(QUERIES * WIDTH + 4 * QUERIES <= STAGE);
  static_assert(2 * (SHARED + 1024) <= LEAST_SHARED_OF_SM, "two blocks");
};

// One block's work. What is in registers belongs to a warp's TILES x 16 queries; fragments as PTX ISA has them for mma.m16n8.
template <class Shape, class Element, bool MASKED>
struct Block {
  static constexpr int WIDTH = Shape::WIDTH, KEYS = Shape::KEYS, TILES = Shape::TILES;
  static constexpr int GROUPS = Shape::STEP / 8;  // columns of mma

  const Arguments& a;
  unsigned char* const shared;
  const int batch, head, warp, lane;
  const int first;  // query of the block
  uint32_t queries[TILES][WIDTH / 32][4];
  float factor[TILES][2];  // from products of codes of q and k and the scale of k to scores; rows lane / 4 and lane / 4 + 8

  VDITC_DEVICE Block(const Arguments& a, unsigned char* shared)
      : a(a),
        shared(shared),
        batch(static_cast<int>(blockIdx.z)),
        head(static_cast<int>(blockIdx.y)),
        warp(static_cast<int>(threadIdx.x) / 32),
        lane(static_cast<int>(threadIdx.x) % 32),
        first(static_cast<int>(blockIdx.x) * Shape::QUERIES) {}

  VDITC_DEVICE int64_t pair() const { return static_cast<int64_t>(batch) * gridDim.y + head; }

  // Begins to copy tile `tile` of k, v and what belongs to its keys; zeros behind the last key and channel.
  VDITC_DEVICE void load(int tile, bool with_v) const {
    unsigned char* stage = shared + (tile & 1) * Shape::STAGE;
    const int thread = static_cast<int>(threadIdx.x), start = tile * KEYS, left = a.keys - start;
    // A thread has one chunk of every ROWS-th row, and ROWS is a multiple of 8, so that all its places are apart by the same.
    {
      constexpr int CHUNKS = WIDTH / 16, ROWS = Shape::THREADS / CHUNKS;
      const int row = thread / CHUNKS, chunk = thread % CHUNKS;
      const int8_t* from = a.codes + (pair() * a.keys + start + row) * WIDTH + 16 * chunk;
      unsigned char* to = stage + place<WIDTH>(row, chunk);
#pragma unroll
      for (int i = 0; i < KEYS; i += ROWS) copy_async(to + i * WIDTH, from + i * WIDTH, row + i < left);
    }
    if (with_v) {
      constexpr int CHUNKS = WIDTH / 8, ROWS = Shape::THREADS / CHUNKS;
      const int row = thread / CHUNKS, chunk = thread % CHUNKS;
      const uint16_t* from = static_cast<const uint16_t*>(a.v) + a.v_strides.at(batch, start + row, head) + 8 * chunk;
      unsigned char* to = stage + Shape::V_AT + place<2 * WIDTH>(row, chunk);
      const int known = 8 * chunk < a.head_dim ? left : 0;
      const int64_t next = ROWS * a.v_strides.token;
#pragma unroll
      for (int i = 0; i < KEYS; i += ROWS, from += next) copy_async(to + i * 2 * WIDTH, from, row + i < known);
    }
    if (thread < KEYS / 4) {  // rows of scales and biases are as long as whole chunks
      const int at = start + 4 * thread;
      copy_async(stage + Shape::SCALE_AT + 16 * thread, a.scale + pair() * a.row + at, at < a.keys);
      if (MASKED) copy_async(stage + Shape::BIAS_AT + 16 * thread, a.bias + batch * a.bias_stride + at, at < a.keys);
    }
    copy_commit();
  }

  // Quantizes the warp's queries, by way of the second stage's memory, which no tile is copied to before the loop's first barrier.
  VDITC_DEVICE void take_queries() {
    unsigned char* codes = shared + Shape::STAGE;
    float* scales = reinterpret_cast<float*>(codes + Shape::QUERIES * WIDTH);
    constexpr int LANES = WIDTH / 8, AT_ONCE = 32 / LANES;
    const int start = warp * 16 * TILES, channel = 8 * (lane % LANES);
    for (int i = lane / LANES; i < 16 * TILES; i += AT_ONCE) {
      const int row = start + i;
      Eight part;
      if (first + row < a.queries && channel < a.head_dim)
        part.read<Element>(a.q, a.q_strides.at(batch, first + row, head) + channel);
      else
        part.clear();
      const float scale = part.scale(LANES);
      const uint2 found = part.codes(scale);
      *reinterpret_cast<uint2*>(codes + place<WIDTH>(row, channel / 16) + channel % 16) = found;
      if (channel == 0) scales[row] = scale;
    }
    warp_barrier();
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      const int row = start + 16 * t + lane % 16;
#pragma unroll
      for (int c = 0; c < WIDTH / 32; ++c) load_matrices(queries[t][c], codes + place<WIDTH>(row, 2 * c + lane / 16));
#pragma unroll
      for (int r = 0; r < 2; ++r) factor[t][r] = scales[start + 16 * t + lane / 4 + 8 * r] * a.factor;
    }
  }

  // Products of the codes of the warp's queries and of STEP keys of a tile from `start` on, counted from SUM_START.
  VDITC_DEVICE void multiply_keys(int (&sums)[TILES][GROUPS][4], const unsigned char* stage, int start) const {
    const int row = start + lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[t][g][i] = SUM_START;
#pragma unroll
    for (int c = 0; c < WIDTH / 32; ++c) {
#pragma unroll
      for (int g = 0; g < GROUPS; g += 2) {
        uint32_t keys[4];
        load_matrices(keys, stage + place<WIDTH>(8 * g + row, 2 * c + half));
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          mma_s8(sums[t][g], queries[t][c], keys[0], keys[1]);
          mma_s8(sums[t][g + 1], queries[t][c], keys[2], keys[3]);
        }
      }
    }
  }
};

template <int WIDTH, class Element, bool MASKED>
struct Attention {
  using Arguments = qattention::Arguments;
  using Shape = qattention::Shape<WIDTH>;
  static constexpr int THREADS = Shape::THREADS, BLOCKS_PER_SM = 2;
  static constexpr int KEYS = Shape::KEYS, STEP = Shape::STEP, TILES = Shape::TILES, GROUPS = STEP / 8;

  static VDITC_DEVICE void run(const Arguments& a, unsigned char* shared) {
    Block<Shape, Element, MASKED> block(a, shared);
    const int lane = block.lane;
    block.load(0, true);
    block.take_queries();
    float out[TILES][WIDTH / 8][4];
    float zero[TILES][2], total[TILES][2];  // of each row so far: where a weight is 1, this thread's part of the sum of weights
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        zero[t][r] = -INFINITY;
        total[t][r] = 0;
      }
#pragma unroll
      for (int g = 0; g < WIDTH / 8; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[t][g][i] = 0;
    }
    const int tiles = (a.keys + KEYS - 1) / KEYS;
    for (int tile = 0; tile < tiles; ++tile) {
      copy_wait<0>();
      barrier();  // the tile is there for all, and nobody is still at the one before it
      if (tile + 1 < tiles) block.load(tile + 1, true);
      const unsigned char* stage = shared + (tile & 1) * Shape::STAGE;
#pragma unroll 1
      for (int start = 0; start < KEYS; start += STEP) {
        const int left = a.keys - tile * KEYS - start;
        if (left <= 0) break;  // there is a key in every step, so that the greatest score is a number
        int sums[TILES][GROUPS][4];
        block.multiply_keys(sums, stage, start);
        float scores[TILES][GROUPS][4];
        score(scores, sums, block, stage, start, left);
        weigh(scores, zero, total, out, block);
        add_values(out, scores, stage + Shape::V_AT, start, lane);
      }
    }
    write(out, total, block);
  }

 private:
  using Work = Block<Shape, Element, MASKED>;

  // Products to float32: times the scale of k, where there is a mask whole scores. -infinity behind the last of `left` keys.
  static VDITC_DEVICE void score(float (&scores)[TILES][GROUPS][4], const int (&sums)[TILES][GROUPS][4], const Work& block, const unsigned char* stage,
                                 int start, int left) {
    const int column = 2 * (block.lane % 4);
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
      const float2 scale = reinterpret_cast<const float2*>(stage + Shape::SCALE_AT)[(start + 8 * g + column) / 2];
      float2 bias{0, 0};
      if (MASKED) bias = reinterpret_cast<const float2*>(stage + Shape::BIAS_AT)[(start + 8 * g + column) / 2];
#pragma unroll
      for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float x = (float_of_bits(sums[t][g][i]) - SUM_OFFSET) * (i % 2 ? scale.y : scale.x);
          if (MASKED) x = fmaf(x, block.factor[t][i / 2], i % 2 ? bias.y : bias.x);
          scores[t][g][i] = x;
        }
    }
    if (left < STEP) {
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (8 * g + column + i % 2 >= left) scores[t][g][i] = -INFINITY;
    }
  }

  // Scores to weights relative to the greatest score so far, and what there is already to the same (FlashAttention-2, equation 4 ff.).
  static VDITC_DEVICE void weigh(float (&scores)[TILES][GROUPS][4], float (&zero)[TILES][2], float (&total)[TILES][2],
                                 float (&out)[TILES][WIDTH / 8][4], const Work& block) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      float now[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float most = scores[t][0][2 * r];
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) most = fmaxf(most, fmaxf(scores[t][g][2 * r], scores[t][g][2 * r + 1]));
        most = fmaxf(most, shuffle_xor(most, 1));
        most = fmaxf(most, shuffle_xor(most, 2));
        most = MASKED ? most - Element::LIFT : fmaf(most, block.factor[t][r], -Element::LIFT);
        now[r] = fmaxf(zero[t][r], most);
      }
      // The greatest score moves in the first tiles and seldom later.
      if (any_of_warp(now[0] != zero[t][0] || now[1] != zero[t][1])) {
        const float shrunk[2] = {power_of_two(zero[t][0] - now[0]), power_of_two(zero[t][1] - now[1])};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          total[t][r] *= shrunk[r];
          zero[t][r] = now[r];
        }
#pragma unroll
        for (int g = 0; g < WIDTH / 8; ++g)
#pragma unroll
          for (int i = 0; i < 4; ++i) out[t][g][i] *= shrunk[i / 2];
      }
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float x = scores[t][g][i];
          const float weight = power_of_two(MASKED ? x - zero[t][i / 2] : fmaf(x, block.factor[t][i / 2], -zero[t][i / 2]));
          total[t][i / 2] += weight;
          scores[t][g][i] = weight;
        }
    }
  }

  // out += weights v. The sums of one product are the first operand of the next as they lie, but for their type.
  static VDITC_DEVICE void add_values(float (&out)[TILES][WIDTH / 8][4], const float (&weights)[TILES][GROUPS][4], const unsigned char* v, int start,
                                      int lane) {
    const int row = start + lane % 16, half = lane / 16;
#pragma unroll
    for (int k = 0; k < STEP / 16; ++k) {
      uint32_t left[TILES][4];
#pragma unroll
      for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&two)[4] = weights[t][2 * k + i / 2];
          left[t][i] = Element::pack(two[i % 2 * 2], two[i % 2 * 2 + 1]);
        }
#pragma unroll
      for (int g = 0; g < WIDTH / 8; g += 2) {
        uint32_t values[4];
        load_matrices_transposed(values, v + place<2 * WIDTH>(16 * k + row, g + half));
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          Element::mma(out[t][g], left[t], values[0], values[1]);
          Element::mma(out[t][g + 1], left[t], values[2], values[3]);
        }
      }
    }
  }

  static VDITC_DEVICE void write(const float (&out)[TILES][WIDTH / 8][4], const float (&total)[TILES][2], const Work& block) {
    const Arguments& a = block.a;
    const int row = block.lane / 4, column = 2 * (block.lane % 4);
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float sum = total[t][r];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        const float inverse = divide(1.0f, sum);
        const int query = block.first + (block.warp * TILES + t) * 16 + 8 * r + row;
        if (query >= a.queries) continue;
        uint16_t* y = static_cast<uint16_t*>(a.y) + a.y_strides.at(block.batch, query, block.head) + column;
#pragma unroll
        for (int g = 0; g < WIDTH / 8; ++g)
          if (8 * g < a.head_dim) {
            *reinterpret_cast<uint32_t*>(y + 8 * g) = Element::pack(out[t][g][2 * r] * inverse, out[t][g][2 * r + 1] * inverse);
          }
      }
  }
};

// The products of codes alone, for tests.
template <int WIDTH, class Element>
struct Scores {
  using Arguments = qattention::Arguments;
  using Shape = qattention::Shape<WIDTH>;
  static constexpr int THREADS = Shape::THREADS, BLOCKS_PER_SM = 1, KEYS = Shape::KEYS, STEP = Shape::STEP;

  static VDITC_DEVICE void run(const Arguments& a, unsigned char* shared) {
    Block<Shape, Element, false> block(a, shared);
    block.load(0, false);
    block.take_queries();
    const int tiles = (a.keys + KEYS - 1) / KEYS;
    for (int tile = 0; tile < tiles; ++tile) {
      copy_wait<0>();
      barrier();
      if (tile + 1 < tiles) block.load(tile + 1, false);
      for (int start = 0; start < KEYS; start += STEP) {
        int sums[Shape::TILES][STEP / 8][4];
        block.multiply_keys(sums, shared + (tile & 1) * Shape::STAGE, start);
#pragma unroll
        for (int t = 0; t < Shape::TILES; ++t)
#pragma unroll
          for (int g = 0; g < STEP / 8; ++g)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int query = block.first + (block.warp * Shape::TILES + t) * 16 + i / 2 * 8 + block.lane / 4;
              const int key = tile * KEYS + start + 8 * g + 2 * (block.lane % 4) + i % 2;
              if (query < a.queries && key < a.keys) a.scores[(block.pair() * a.queries + query) * a.keys + key] = sums[t][g][i] - SUM_START;
            }
      }
    }
  }
};

}  // namespace vditc::qattention
