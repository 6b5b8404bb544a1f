// The epilogue of QLinear (epilogue.h) for eight columns of a row at a time: 16-byte loads and stores where rows are aligned to them, and
// the same operations in the same order, so the same bits. What the rows of a thread share is loaded once: the terms of its columns.
#pragma once
#include "qlinear/epilogue.h"

namespace vditc::qlinear {

constexpr int VECTOR = 8;

// Terms of the columns n ... n + 7, the same in every row. Zeros where there is no such column.
struct Columns {
  float weight_scale[VECTOR];  // times `unit`
  float bias[VECTOR];
};

// gate and residual of a row in eight columns, of 16 bits each, two a word. Those of float32 are read where they are used: kept from early on, they
// would cost the registers of another row.
struct Sources {
  uint32_t gate[VECTOR / 2];
  uint32_t residual[VECTOR / 2];
};

// Whether columns come in whole vectors, so that all rows are aligned to 16 bytes.
VDITC_DEVICE bool whole_vectors(const Epilogue& e) { return e.n % VECTOR == 0; }

VDITC_DEVICE void load_floats(const Epilogue& e, const float* row, int n, float (&out)[VECTOR]) {
  if (whole_vectors(e)) {
    const float4 low = *reinterpret_cast<const float4*>(row + n), high = *reinterpret_cast<const float4*>(row + n + 4);
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) out[i] = n + i < e.n ? row[n + i] : 0.0f;
}

VDITC_DEVICE void load_halves(const Epilogue& e, const void* from, int64_t row, int n, uint32_t (&out)[VECTOR / 2]) {
  const uint16_t* halves = static_cast<const uint16_t*>(from) + row * e.n + n;
  if (whole_vectors(e)) {
    const uint4 words = *reinterpret_cast<const uint4*>(halves);
    out[0] = words.x, out[1] = words.y, out[2] = words.z, out[3] = words.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < VECTOR; i += 2)
    out[i / 2] = (n + i < e.n ? halves[i] : 0u) | static_cast<uint32_t>(n + i + 1 < e.n ? halves[i + 1] : 0u) << 16;
}

VDITC_DEVICE float half_at(const uint32_t (&words)[VECTOR / 2], int i, int type) {
  const auto bits = static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2));
  return type == VDITC_FP16 ? from_fp16(bits) : from_bf16(bits);
}

VDITC_DEVICE Columns columns_of(const Epilogue& e, int n) {
  Columns columns;
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) columns.weight_scale[i] = columns.bias[i] = 0.0f;
  if (!e.y || n >= e.n) return columns;
  load_floats(e, e.weight_scale, n, columns.weight_scale);
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) columns.weight_scale[i] = multiply(columns.weight_scale[i], e.unit);
  if (e.bias) load_floats(e, e.bias, n, columns.bias);
  return columns;
}

// Worth calling early: what these loads wait for is far away. Nothing is read where there is no such row or column.
VDITC_DEVICE void sources_of(const Epilogue& e, const Row& row, int n, Sources& sources) {
  if (!e.gate || e.output == VDITC_FP32 || row.m >= e.m || n >= e.n) return;
  load_halves(e, e.gate, row.gate, n, sources.gate);
  load_halves(e, e.residual, row.residual, n, sources.residual);
}

VDITC_DEVICE void store(const Epilogue& e, int64_t m, int n, const float (&y)[VECTOR]) {
  const int64_t at = m * e.n + n;
  if (e.output == VDITC_FP32) {
    float* to = static_cast<float*>(e.y) + at;
    if (whole_vectors(e)) {
      *reinterpret_cast<float4*>(to) = {y[0], y[1], y[2], y[3]};
      *reinterpret_cast<float4*>(to + 4) = {y[4], y[5], y[6], y[7]};
      return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i)
      if (n + i < e.n) to[i] = y[i];
    return;
  }
  uint16_t halves[VECTOR];
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) halves[i] = e.output == VDITC_FP16 ? to_fp16(y[i]) : to_bf16(y[i]);
  uint16_t* to = static_cast<uint16_t*>(e.y) + at;
  if (whole_vectors(e)) {
    uint32_t words[VECTOR / 2];
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i) words[i] = halves[2 * i] | static_cast<uint32_t>(halves[2 * i + 1]) << 16;
    *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < VECTOR; ++i)
    if (n + i < e.n) to[i] = halves[i];
}

VDITC_DEVICE void store_accumulators(const Epilogue& e, int64_t m, int n, const int (&sums)[VECTOR]) {
  int32_t* to = e.accumulators + m * e.n + n;
  if (whole_vectors(e)) {
    *reinterpret_cast<uint4*>(to) = {static_cast<uint32_t>(sums[0]), static_cast<uint32_t>(sums[1]), static_cast<uint32_t>(sums[2]),
                                     static_cast<uint32_t>(sums[3])};
    *reinterpret_cast<uint4*>(to + 4) = {static_cast<uint32_t>(sums[4]), static_cast<uint32_t>(sums[5]), static_cast<uint32_t>(sums[6]),
                                         static_cast<uint32_t>(sums[7])};
    return;
  }
#pragma unroll
  for (int i = 0; i < VECTOR; ++i)
    if (n + i < e.n) to[i] = sums[i];
}

// The outputs of a row in columns n ... n + 7 from their integer sums; rows and columns that there are not are left out. n is a multiple of 8.
VDITC_DEVICE void finish_vector(const Epilogue& e, const Row& row, int n, const Columns& columns, const Sources& sources,
                                const int (&sums)[VECTOR]) {
  if (row.m >= e.m || n >= e.n) return;
  if (!e.y) return store_accumulators(e, row.m, n, sums);
  float y[VECTOR];
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) y[i] = multiply(multiply(from_int(sums[i]), columns.weight_scale[i]), row.scale);
  if (e.rank) {
    float right[VECTOR], term[VECTOR];
    load_floats(e, e.right, n, right);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) term[i] = multiply(row.left[0], right[i]);
#pragma unroll
    for (int r = 1; r < MAX_RANK; ++r)
      if (r < e.rank) {
        load_floats(e, e.right + static_cast<int64_t>(r) * e.n, n, right);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) term[i] = add(term[i], multiply(row.left[r], right[i]));
      }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) y[i] = add(y[i], term[i]);
  }
  if (e.bias) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) y[i] = add(y[i], columns.bias[i]);
  }
  if (e.activation == VDITC_GELU_TANH) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) y[i] = gelu(y[i], true);
  } else if (e.activation) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) y[i] = gelu(y[i], false);
  }
  if (e.gate && e.output == VDITC_FP32) {
    float gate[VECTOR], residual[VECTOR];
    load_floats(e, static_cast<const float*>(e.gate) + row.gate * e.n, n, gate);
    load_floats(e, static_cast<const float*>(e.residual) + row.residual * e.n, n, residual);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) y[i] = add(residual[i], multiply(gate[i], y[i]));
  } else if (e.gate) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) y[i] = add(half_at(sources.residual, i, e.output), multiply(half_at(sources.gate, i, e.output), y[i]));
  }
  store(e, row.m, n, y);
}

// The row at m; of a row that there is not, one that finish_vector leaves out.
VDITC_DEVICE Row row_or_none(const Epilogue& e, int64_t m) {
  if (m < e.m && e.y) return row_of(e, m);
  return Row{m, 0.0f, {0, 0, 0, 0}, 0, 0};
}

// Accumulator fragments of m16n8 and wgmma give lane q of each four columns 2q and 2q + 1 of a group of eight. From four such groups
// of one row, `held[group][column]`, lane q gets all eight columns of group q. All 32 lanes call it.
VDITC_DEVICE void gather_group(const int (&held)[4][2], int lane, int (&out)[VECTOR]) {
  const bool upper = lane & 2, odd = lane & 1;
  int pieces[2][2][2];  // of lane / 2 of the source, group of the two that stay, column
#pragma unroll
  for (int g = 0; g < 2; ++g)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int kept = upper ? held[2 + g][c] : held[g][c];
      const int got = shuffle_xor(upper ? held[g][c] : held[2 + g][c], 2);
      pieces[0][g][c] = upper ? got : kept;
      pieces[1][g][c] = upper ? kept : got;
    }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int kept = odd ? pieces[half][1][c] : pieces[half][0][c];
      const int got = shuffle_xor(odd ? pieces[half][0][c] : pieces[half][1][c], 1);
      out[4 * half + c] = odd ? got : kept;
      out[4 * half + 2 + c] = odd ? kept : got;
    }
}

}  // namespace vditc::qlinear
