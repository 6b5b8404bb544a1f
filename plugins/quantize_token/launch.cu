// vditc_quantize_token_launch: what may be asked for, and which instance of the kernel computes it.
#include <cmath>

#include "native/launch.h"
#include "quantize_token/kernel.h"

namespace vditc::quantize_token {
namespace {

constexpr int64_t MAX_M = (int64_t{1} << 31) - 1;  // blocks of a grid
constexpr int MAX_K = 1 << 17;                     // of more, sums of codes are no exact float32 numbers

struct Named {
  const char* name;
  int32_t value;
};

Status check(const vditc_quantize_token_problem& p) {
  const Named flags[] = {{"packed", p.packed}, {"given", p.given}, {"clip", p.clip}, {"gated", p.gated},
                         {"weight", p.weight}, {"bias", p.bias}, {"gain", p.gain}, {"shift", p.shift},
                         {"center", p.center}, {"balance", p.balance}, {"total", p.total}};
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
  if (p.norm && p.activation)
    return fail(VDITC_BAD_ARGUMENT, "activation %d in front of norm %d; wanted one of them", p.activation, p.norm);
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

Status check(const char* name, bool wanted, const void* pointer, size_t alignment) {
  if (!wanted) return VDITC_OK;
  if (!pointer) return fail(VDITC_BAD_ARGUMENT, "%s is null; wanted its address", name);
  if (reinterpret_cast<uintptr_t>(pointer) % alignment)
    return fail(VDITC_BAD_ARGUMENT, "%s lies at %p; wanted an address that is a multiple of %zu", name, pointer, alignment);
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

// The instances: of 72 and 96 registers where two blocks of the widest tokens fit, then wider ones; the last for any k.
using Short = Kernel<4, 14, true>;
using Long = Kernel<6, 10, true>;
using Wide = Kernel<6, MAX_WARPS, true>;
using Any = Kernel<MAX_K / (WIDTH * LANES * MAX_WARPS), MAX_WARPS, false>;

template <class Instance>
int warps(const Arguments& a) {  // of a token
  const int held = LANES * Instance::VECTORS_OF_A_THREAD;
  return (a.vectors + held - 1) / held;
}

template <class Instance>
Status start(Arguments& a, cudaStream_t stream) {
  a.warps = warps<Instance>(a);
  const bool single = a.warps == 1;
  const auto blocks = static_cast<unsigned>(single ? (static_cast<int64_t>(a.m) + SINGLES - 1) / SINGLES : a.m);
  return launch<Instance>(dim3(blocks), LANES * (single ? SINGLES : a.warps), SHARED, stream, a);
}

Status start(Arguments& a, cudaStream_t stream) {
  const int in_short = warps<Short>(a), in_long = warps<Long>(a);
  if (a.k % WIDTH || warps<Wide>(a) > Wide::WARPS) return start<Any>(a, stream);
  if (in_short > Short::WARPS && in_long > Long::WARPS) return start<Wide>(a, stream);
  // Where both hold the token, the one with fewer places that stay empty; of equal ones that with fewer warps.
  const bool less = Long::VECTORS_OF_A_THREAD * in_long <= Short::VECTORS_OF_A_THREAD * in_short;
  return in_short > Short::WARPS || (less && in_long <= Long::WARPS) ? start<Long>(a, stream) : start<Short>(a, stream);
}

Status run(const vditc_quantize_token_problem* problem, const vditc_quantize_token_tensors* tensors, cudaStream_t stream) {
  if (!problem || !tensors) return fail(VDITC_BAD_ARGUMENT, "%s is null; wanted its address", problem ? "tensors" : "problem");
  const vditc_quantize_token_problem& p = *problem;
  const vditc_quantize_token_tensors& t = *tensors;
  if (p.struct_bytes != sizeof p)
    return fail(VDITC_BAD_ARGUMENT, "struct_bytes %u; wanted %zu: build the caller with this library's vditc_plugins.h", p.struct_bytes,
                sizeof p);
  VDITC_TRY(check(p));
  if (p.gain) VDITC_TRY(check("gain", p.gain_rows));
  if (p.shift) VDITC_TRY(check("shift", p.shift_rows));
  if (p.gated) VDITC_TRY(check("gate", p.gate_rows));
  if (p.gated) VDITC_TRY(check("residual", p.residual_rows));
  if (p.m == 0) return VDITC_OK;

  Arguments a{};
  const auto take = [](const char* name, bool wanted, auto* pointer, auto*& into, size_t alignment = sizeof(float)) {
    into = wanted ? pointer : nullptr;
    return check(name, wanted, pointer, alignment);
  };
  // Rows are read and written in vectors of 16 bytes, or one by one where k is no number of vectors: rows behind the first are then not aligned.
  const auto rows_of = [&](size_t element) { return p.k % WIDTH ? element : 16; };
  const size_t wide = rows_of(sizeof(float)), own = rows_of(p.input == VDITC_FP32 ? 4 : 2);
  VDITC_TRY(take("x", true, t.x, a.x, own));
  VDITC_TRY(take("gate", p.gated, t.gate, a.gate, own));
  VDITC_TRY(take("residual", p.gated, t.residual, a.residual, own));
  VDITC_TRY(take("sum", p.gated, t.sum, a.sum, own));
  VDITC_TRY(take("weight", p.weight, t.weight, a.weight, wide));
  VDITC_TRY(take("bias", p.bias, t.bias, a.bias, wide));
  VDITC_TRY(take("gain", p.gain, t.gain, a.gain, wide));
  VDITC_TRY(take("shift", p.shift, t.shift, a.shift, wide));
  VDITC_TRY(take("center", p.center, t.center, a.center, wide));
  VDITC_TRY(take("balance", p.balance, t.balance, a.balance, wide));
  VDITC_TRY(take("clip", p.clip, t.clip, a.clip));
  VDITC_TRY(take("given", p.given, t.given, a.given));
  VDITC_TRY(take("alpha", p.shares, t.alpha, a.alpha, wide));
  VDITC_TRY(take("codes", true, t.codes, a.codes, rows_of(1)));
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
  a.part = 1.0f / static_cast<float>(p.k);
  a.rotated = p.rotation != 0;
  return start(a, stream);
}

}  // namespace
}  // namespace vditc::quantize_token

extern "C" vditc_status vditc_quantize_token_launch(const vditc_quantize_token_problem* problem,
                                                    const vditc_quantize_token_tensors* tensors, void* stream) {
  return vditc::quantize_token::run(problem, tensors, static_cast<cudaStream_t>(stream));
}
