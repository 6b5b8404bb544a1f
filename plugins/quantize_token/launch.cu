// vditc_quantize_token_launch: what may be asked for, and which instance of the kernel computes it.
#include <cmath>

#include "native/launch.h"
#include "quantize_token/kernel.h"

namespace vditc::quantize_token {
namespace {

constexpr int64_t MAX_M = (int64_t{1} << 31) - 1;  // blocks of a grid
constexpr int WIDEST = 8;                          // vectors of a thread
constexpr int MAX_K = WIDEST * LANES * WIDTH * MAX_WARPS;

struct Named {
  const char* name;
  int32_t value;
};

Status check(const vditc_quantize_token_problem& p) {
  const Named flags[] = {{"packed", p.packed}, {"given", p.given}, {"clip", p.clip},     {"gated", p.gated},     {"weight", p.weight}, {"bias", p.bias},
                         {"gain", p.gain},     {"shift", p.shift}, {"center", p.center}, {"balance", p.balance}, {"total", p.total}};
  if (p.k < 1 || p.k > MAX_K) return fail(VDITC_BAD_ARGUMENT, "k %d; wanted 1 ... %d channels", p.k, MAX_K);
  if (p.m < 0 || p.m > MAX_M)
    return fail(VDITC_BAD_ARGUMENT, "m %lld; wanted 0 ... %lld tokens", static_cast<long long>(p.m), static_cast<long long>(MAX_M));
  if (p.input < VDITC_FP32 || p.input > VDITC_BF16) return fail(VDITC_BAD_ARGUMENT, "input %d; wanted a vditc_float_type", p.input);
  if (p.bits != 8 && p.bits != 6 && p.bits != 4 && p.bits != 3) return fail(VDITC_BAD_ARGUMENT, "bits %d; wanted 8, 6, 4 or 3", p.bits);
  for (const Named& flag : flags)
    if (flag.value != 0 && flag.value != 1) return fail(VDITC_BAD_ARGUMENT, "%s %d; wanted 0 or 1", flag.name, flag.value);
  if (p.packed && (p.bits > 4 || p.k % 32))
    return fail(VDITC_BAD_ARGUMENT, "packed codes of %d bits, k %d; wanted 4 or 3 bits and a multiple of 32", p.bits, p.k);
  if (p.given && p.clip) return fail(VDITC_BAD_ARGUMENT, "a clip of a given scale; wanted one of them");
  if (p.activation < VDITC_NO_ACTIVATION || p.activation > VDITC_GELU_TANH)
    return fail(VDITC_BAD_ARGUMENT, "activation %d; wanted a vditc_activation", p.activation);
  if (p.norm < VDITC_NO_NORM || p.norm > VDITC_RMS_NORM) return fail(VDITC_BAD_ARGUMENT, "norm %d; wanted a vditc_norm", p.norm);
  if (p.norm && p.activation) return fail(VDITC_BAD_ARGUMENT, "activation %d in front of norm %d; wanted one of them", p.activation, p.norm);
  if (!p.norm && (p.weight || p.bias)) return fail(VDITC_BAD_ARGUMENT, "weight %d, bias %d without a norm; wanted 0", p.weight, p.bias);
  if (p.norm && !(p.epsilon > 0 && std::isfinite(p.epsilon)))
    return fail(VDITC_BAD_ARGUMENT, "epsilon %g of a norm; wanted a positive number", static_cast<double>(p.epsilon));
  if (p.rotation && (p.rotation != 256 || p.k % 256))
    return fail(VDITC_BAD_ARGUMENT, "rotation %d, k %d; wanted 0, or 256 and a multiple of it", p.rotation, p.k);
  if (p.shares < 0 || p.shares > MAX_SHARES) return fail(VDITC_BAD_ARGUMENT, "shares %d; wanted 0 ... %d", p.shares, MAX_SHARES);
  return VDITC_OK;
}

Status check(const char* name, const vditc_rows& rows) {
  if (rows.inner >= 1 && rows.count >= 1) return VDITC_OK;
  return fail(VDITC_BAD_ARGUMENT, "%s_rows {inner %lld, count %lld}; wanted positive numbers", name, static_cast<long long>(rows.inner),
              static_cast<long long>(rows.count));
}

Status check(const char* name, bool wanted, const void* pointer) {
  if (!wanted) return VDITC_OK;
  if (!pointer) return fail(VDITC_BAD_ARGUMENT, "%s is null; wanted its address", name);
  if (reinterpret_cast<uintptr_t>(pointer) % 16)
    return fail(VDITC_BAD_ARGUMENT, "%s lies at %p; wanted an address that is a multiple of 16", name, pointer);
  return VDITC_OK;
}

Divisor divisor(int64_t number) {  // 1 ... 2^31 - 1
  uint32_t shift = 0;
  while ((int64_t{1} << shift) < number) ++shift;
  const uint64_t power = uint64_t{1} << (31 + shift), by = static_cast<uint64_t>(number);
  return {static_cast<uint32_t>((power + by - 1) / by), shift};
}

RowMap row_map(const vditc_rows& rows) {  // rows are fewer than 2^31: a greater divisor leaves the same quotient, 0
  const int64_t inner = rows.inner < MAX_M ? rows.inner : MAX_M, count = rows.count < MAX_M ? rows.count : MAX_M;
  return {divisor(inner), divisor(count), static_cast<uint32_t>(count)};
}

template <int VECTORS, bool ROTATED, bool WHOLE>
Status start(const Arguments& a, cudaStream_t stream) {
  const bool single = a.warps == 1;
  const auto blocks = static_cast<unsigned>(single ? (static_cast<int64_t>(a.m) + SINGLES - 1) / SINGLES : a.m);
  return launch<Kernel<VECTORS, ROTATED, WHOLE>>(dim3(blocks), LANES * (single ? SINGLES : a.warps), SHARED, stream, a);
}

// Warps of a token and vectors of a thread: as few places as hold the token; of two ways the one with fewer warps.
Status start(Arguments& a, bool rotated, cudaStream_t stream) {
  const int pieces = (a.vectors + LANES - 1) / LANES;  // vectors of a whole warp
  const auto warps = [&](int vectors) { return (pieces + vectors - 1) / vectors; };
  int chosen = WIDEST;
  if (a.k % WIDTH == 0)
    for (const int vectors : {4, 5, 6})
      if (warps(vectors) <= MAX_WARPS && (chosen == WIDEST || warps(vectors) * vectors <= warps(chosen) * chosen)) chosen = vectors;
  a.warps = warps(chosen);
  if (a.k % WIDTH) return start<WIDEST, false, false>(a, stream);
  if (chosen == 4) return rotated ? start<4, true, true>(a, stream) : start<4, false, true>(a, stream);
  if (chosen == 5) return rotated ? start<5, true, true>(a, stream) : start<5, false, true>(a, stream);
  if (chosen == 6) return rotated ? start<6, true, true>(a, stream) : start<6, false, true>(a, stream);
  return rotated ? start<WIDEST, true, true>(a, stream) : start<WIDEST, false, true>(a, stream);
}

Status run(const vditc_quantize_token_problem* problem, const vditc_quantize_token_tensors* tensors, cudaStream_t stream) {
  if (!problem || !tensors) return fail(VDITC_BAD_ARGUMENT, "%s is null; wanted its address", problem ? "tensors" : "problem");
  const vditc_quantize_token_problem& p = *problem;
  const vditc_quantize_token_tensors& t = *tensors;
  if (p.struct_bytes != sizeof p)
    return fail(VDITC_BAD_ARGUMENT, "struct_bytes %u; wanted %zu: build the caller with this library's vditc_plugins.h", p.struct_bytes, sizeof p);
  VDITC_TRY(check(p));
  if (p.gain) VDITC_TRY(check("gain", p.gain_rows));
  if (p.shift) VDITC_TRY(check("shift", p.shift_rows));
  if (p.gated) VDITC_TRY(check("gate", p.gate_rows));
  if (p.gated) VDITC_TRY(check("residual", p.residual_rows));
  if (p.m == 0) return VDITC_OK;

  Arguments a{};
  const auto take = [](const char* name, bool wanted, auto* pointer, auto*& into) {
    into = wanted ? pointer : nullptr;
    return check(name, wanted, pointer);
  };
  VDITC_TRY(take("x", true, t.x, a.x));
  VDITC_TRY(take("gate", p.gated, t.gate, a.gate));
  VDITC_TRY(take("residual", p.gated, t.residual, a.residual));
  VDITC_TRY(take("sum", p.gated, t.sum, a.sum));
  VDITC_TRY(take("weight", p.weight, t.weight, a.weight));
  VDITC_TRY(take("bias", p.bias, t.bias, a.bias));
  VDITC_TRY(take("gain", p.gain, t.gain, a.gain));
  VDITC_TRY(take("shift", p.shift, t.shift, a.shift));
  VDITC_TRY(take("center", p.center, t.center, a.center));
  VDITC_TRY(take("balance", p.balance, t.balance, a.balance));
  VDITC_TRY(take("clip", p.clip, t.clip, a.clip));
  VDITC_TRY(take("given", p.given, t.given, a.given));
  VDITC_TRY(take("alpha", p.shares, t.alpha, a.alpha));
  VDITC_TRY(take("codes", true, t.codes, a.codes));
  VDITC_TRY(take("scale", !p.given, t.scale, a.scale));
  VDITC_TRY(take("total", p.total, t.total, a.total));
  const char* const shares[] = {"share[0]", "share[1]", "share[2]", "share[3]"};
  for (int r = 0; r < MAX_SHARES; ++r) VDITC_TRY(take(shares[r], r < p.shares, t.share[r], a.share[r]));
  if (p.gain) a.gain_rows = row_map(p.gain_rows);
  if (p.shift) a.shift_rows = row_map(p.shift_rows);
  if (p.gated) a.gate_rows = row_map(p.gate_rows);
  if (p.gated) a.residual_rows = row_map(p.residual_rows);
  a.m = static_cast<uint32_t>(p.m);
  a.k = p.k;
  a.vectors = (p.k + WIDTH - 1) / WIDTH;
  a.input = p.input;
  a.norm = p.norm;
  a.activation = p.activation;
  a.high = (1 << (p.bits - 1)) - 1;
  a.shares = p.shares;
  a.packed = p.packed;
  a.epsilon = p.epsilon;
  return start(a, p.rotation != 0, stream);
}

}  // namespace
}  // namespace vditc::quantize_token

extern "C" vditc_status vditc_quantize_token_launch(const vditc_quantize_token_problem* problem, const vditc_quantize_token_tensors* tensors,
                                                    void* stream) {
  return vditc::quantize_token::run(problem, tensors, static_cast<cudaStream_t>(stream));
}
