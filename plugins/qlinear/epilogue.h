// What follows the integer product of QLinear, the same code in every tactic, one rounded operation after another:
//
//   y = (acc * weight_scale[n]) * scale[m]
//   y = y + sum_r left[m, r] right[r, n]        products rounded, added up from r = 0
//   y = y + branch                               the low-rank branch, summed in float32 by whoever calls
//   y = y + bias[n]
//   y = GELU(y)
//   y = residual[m, n] + gate[m, n] * y
//
// numpy's float32 gives the same bits (plugins/qlinear/reference.py), but for GELU and the branch.
#pragma once
#include "native/device.h"
#include "native/gelu.h"
#include "native/vditc_plugins.h"

namespace vditc::qlinear {

constexpr int MAX_RANK = 4;

struct Epilogue {
  const float* scale;
  const float* weight_scale;  // null: the sums come scaled by it (groups)
  const float* left;
  const float* right;
  const float* bias;
  const void* gate;
  const void* residual;
  void* y;                    // of type `output`; null: `accumulators` gets the integers instead
  int32_t* accumulators;
  vditc_rows gate_rows, residual_rows;
  int64_t m;
  int n;
  int rank;
  int activation;  // vditc_activation
  int output;      // vditc_float_type
  int scale_per_row;
  float unit;      // codes are stored as multiples of 1 / unit: 1, 1 / 16, 1 / 32, a power of two, so that the product with it is exact
};

// What the columns of one row share.
struct Row {
  int64_t m;
  float scale;
  float left[MAX_RANK];
  int64_t gate, residual;  // their rows
};

VDITC_DEVICE float read_float(const void* from, int64_t at, int type) {
  if (type == VDITC_FP32) return static_cast<const float*>(from)[at];
  const uint16_t bits = static_cast<const uint16_t*>(from)[at];
  return type == VDITC_FP16 ? from_fp16(bits) : from_bf16(bits);
}

// m / inner % count. Division of 64 bits is long: most tensors have fewer rows than 2^31.
VDITC_DEVICE int64_t row_in(const vditc_rows& rows, int64_t m) {
  if (rows.count == 1) return 0;
  if (rows.inner == 1 && m < rows.count) return m;
  if ((m | rows.inner | rows.count) >> 31) return m / rows.inner % rows.count;
  return static_cast<uint32_t>(m) / static_cast<uint32_t>(rows.inner) % static_cast<uint32_t>(rows.count);
}

VDITC_DEVICE Row row_of(const Epilogue& e, int64_t m) {
  Row row{m, e.scale[e.scale_per_row ? m : 0], {0, 0, 0, 0}, 0, 0};
#pragma unroll
  for (int r = 0; r < MAX_RANK; ++r)
    if (r < e.rank) row.left[r] = e.left[m * e.rank + r];
  if (e.gate) {
    row.gate = row_in(e.gate_rows, m);
    row.residual = row_in(e.residual_rows, m);
  }
  return row;
}

// What the rows of one column share.
struct Column {
  float scale;  // of the weights; 1 where sums come scaled
  float bias;
  float right[MAX_RANK];
};

VDITC_DEVICE Column column_of(const Epilogue& e, int n) {
  Column column{e.weight_scale ? e.weight_scale[n] : 1.0f, e.bias ? e.bias[n] : 0.0f, {0, 0, 0, 0}};
#pragma unroll
  for (int r = 0; r < MAX_RANK; ++r)
    if (r < e.rank) column.right[r] = e.right[static_cast<int64_t>(r) * e.n + n];
  return column;
}

// One output in float32. `scaled`: acc * weight_scale[n]. `branch`: of the low-rank branch, else 0. `gate`, `residual`: where e.gate is.
VDITC_DEVICE float finish(const Epilogue& e, const Row& row, const Column& column, float scaled, bool has_branch, float branch, float gate,
                          float residual) {
  float y = multiply(scaled, row.scale);
  if (e.rank) {
    float term = multiply(row.left[0], column.right[0]);
#pragma unroll
    for (int r = 1; r < MAX_RANK; ++r)
      if (r < e.rank) term = add(term, multiply(row.left[r], column.right[r]));
    y = add(y, term);
  }
  if (has_branch) y = add(y, branch);
  if (e.bias) y = add(y, column.bias);
  if (e.activation) y = gelu(y, e.activation == VDITC_GELU_TANH);
  if (e.gate) y = add(residual, multiply(gate, y));
  return y;
}

// The same of column n, whose values it reads.
VDITC_DEVICE float finish(const Epilogue& e, const Row& row, int n, float scaled, bool has_branch, float branch) {
  const float gate = e.gate ? read_float(e.gate, row.gate * e.n + n, e.output) : 0.0f;
  const float residual = e.gate ? read_float(e.residual, row.residual * e.n + n, e.output) : 0.0f;
  return finish(e, row, column_of(e, n), scaled, has_branch, branch, gate, residual);
}

VDITC_DEVICE float scaled(const Epilogue& e, int n, int acc) { return multiply(from_int(acc), multiply(e.weight_scale[n], e.unit)); }

}  // namespace vditc::qlinear
