// What becomes of k and the mask before attention: k less its mean over the keys, as INT8 codes with a scale for every token (SageAttention,
// arXiv 2410.02367, section 4.2), and the mask in units of log2.
//
// The mean is the same number in every score of a query, which no softmax sees, so any rounding of it is as good; it is the same in every
// run, since parts are added in one order.
#pragma once
#include "qattention/kernel.h"

namespace vditc::qattention {

constexpr int PARTS = 32;              // of the keys, summed by a block each
constexpr float HIDDEN = -1e30f;       // least number of a mask: below every score, and far from where float32 ends
constexpr int LANES_OF_TOKEN = 16;     // of 8 channels each: up to 128
constexpr int TOKENS_AT_ONCE = 128 / LANES_OF_TOKEN;

struct KeyArguments {
  const void* k;
  float* parts;   // [batch, heads, PARTS, 128]: sums over the keys of each part
  int8_t* codes;  // [batch, heads, keys, width]
  float* scale;   // [batch, heads, row]
  Strides strides;
  int64_t row;
  int keys, head_dim, width;
  bool smooth;
};

template <class Element>
struct SumKeys {
  using Arguments = KeyArguments;
  static constexpr int THREADS = 128, BLOCKS_PER_SM = 4, SHARED = TOKENS_AT_ONCE * 128 * 4;

  static VDITC_DEVICE void run(const Arguments& a, unsigned char* shared) {
    const int thread = static_cast<int>(threadIdx.x), channel = thread % LANES_OF_TOKEN * 8, row = thread / LANES_OF_TOKEN;
    const int batch = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y), part = static_cast<int>(blockIdx.x);
    const int each = (a.keys + PARTS - 1) / PARTS, start = part * each, end = start + each < a.keys ? start + each : a.keys;
    float sums[8] = {};
    if (channel < a.head_dim)
      for (int key = start + row; key < end; key += TOKENS_AT_ONCE) {
        Eight eight;
        eight.read<Element>(a.k, a.strides.at(batch, key, head) + channel);
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] = add(sums[i], eight.x[i]);
      }
    float* of_rows = reinterpret_cast<float*>(shared);  // [TOKENS_AT_ONCE, 128]
#pragma unroll
    for (int i = 0; i < 8; ++i) of_rows[row * 128 + channel + i] = sums[i];
    barrier();
    float sum = 0;
    for (int r = 0; r < TOKENS_AT_ONCE; ++r) sum = add(sum, of_rows[r * 128 + thread]);
    const int64_t pair = static_cast<int64_t>(batch) * gridDim.y + head;
    a.parts[(pair * PARTS + part) * 128 + thread] = sum;
  }
};

template <class Element>
struct QuantizeKeys {
  using Arguments = KeyArguments;
  static constexpr int THREADS = 128, BLOCKS_PER_SM = 4, KEYS = 256, SHARED = 128 * 4;  // KEYS: of a block

  static VDITC_DEVICE void run(const Arguments& a, unsigned char* shared) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % LANES_OF_TOKEN, channel = 8 * lane;
    const int batch = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
    const int64_t pair = static_cast<int64_t>(batch) * gridDim.y + head;
    float* mean = reinterpret_cast<float*>(shared);
    float sum = 0;
    if (a.smooth)
      for (int part = 0; part < PARTS; ++part) sum = add(sum, a.parts[(pair * PARTS + part) * 128 + thread]);
    mean[thread] = divide(sum, from_int(a.keys));
    barrier();
    const int start = static_cast<int>(blockIdx.x) * KEYS;
    for (int i = thread / LANES_OF_TOKEN; i < KEYS; i += TOKENS_AT_ONCE) {  // all lanes of a warp together, for the shuffles
      const int key = start + i;
      const bool there = key < a.keys;
      Eight eight;
      eight.clear();
      if (there && channel < a.head_dim) {
        eight.read<Element>(a.k, a.strides.at(batch, key, head) + channel);
#pragma unroll
        for (int c = 0; c < 8; ++c) eight.x[c] = subtract(eight.x[c], mean[channel + c]);
      }
      const float scale = eight.scale(LANES_OF_TOKEN);
      if (there && channel < a.width) *reinterpret_cast<uint2*>(a.codes + (pair * a.keys + key) * a.width + channel) = eight.codes(scale);
      if (lane == 0 && key < a.row) a.scale[pair * a.row + key] = there ? scale : 0;
    }
  }
};

struct MaskArguments {
  const void* mask;
  float* bias;  // [gridDim.y, row]
  int64_t stride, row;
  int keys;
};

template <class Element>
struct PrepareMask {
  using Arguments = MaskArguments;
  static constexpr int THREADS = 128, BLOCKS_PER_SM = 4;

  static VDITC_DEVICE void run(const Arguments& a, unsigned char*) {
    const int key = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (key >= a.row) return;
    float found = 0;
    if (key < a.keys) found = fmaxf(Element::read(static_cast<const uint16_t*>(a.mask)[blockIdx.y * a.stride + key]), HIDDEN);
    a.bias[blockIdx.y * a.row + key] = multiply(found, LOG2_E);
  }
};

}  // namespace vditc::qattention
