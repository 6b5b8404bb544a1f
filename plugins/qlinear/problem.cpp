#include "qlinear/problem.h"

#include <cstdio>

namespace vditc::qlinear {
namespace {

// Above it 128 * 128 * k leaves int32.
constexpr int MAX_K = (1 << 17) - 1;
constexpr int MAX_N = 1 << 30;

template <size_t size>
Status one_of(const char* name, int found, const int (&allowed)[size]) {
  char wanted[96] = "";
  size_t used = 0;
  for (size_t i = 0; i < size; ++i) {
    if (found == allowed[i]) return VDITC_OK;
    used += static_cast<size_t>(std::snprintf(wanted + used, sizeof wanted - used, "%s%d", i ? ", " : "", allowed[i]));
  }
  return fail(VDITC_BAD_ARGUMENT, "%s = %d; wanted one of %s", name, found, wanted);
}

Status between(const char* name, int64_t found, int64_t low, int64_t high) {
  if (found >= low && found <= high) return VDITC_OK;
  return fail(VDITC_BAD_ARGUMENT, "%s = %lld; wanted %lld to %lld", name, static_cast<long long>(found), static_cast<long long>(low),
              static_cast<long long>(high));
}

Status rows(const char* name, const vditc_rows& found) {
  if (found.inner > 0 && found.count > 0) return VDITC_OK;
  return fail(VDITC_BAD_ARGUMENT, "%s = {%lld, %lld}; wanted positive numbers", name, static_cast<long long>(found.inner),
              static_cast<long long>(found.count));
}

Status pointer(const char* name, const void* found) {
  if (!found) return fail(VDITC_BAD_ARGUMENT, "%s is null; the problem says that it is there", name);
  if (reinterpret_cast<uintptr_t>(found) % 16 == 0) return VDITC_OK;
  return fail(VDITC_BAD_ARGUMENT, "%s = %p; wanted an address that is a multiple of 16", name, found);
}

// The greatest magnitude of a code.
int64_t magnitude(int bits, bool is_unsigned) { return is_unsigned ? (1 << bits) - 1 : 1 << (bits - 1); }

}  // namespace

Status check_problem(const vditc_qlinear_problem* problem) {
  if (!problem) return fail(VDITC_BAD_ARGUMENT, "problem is null; wanted a vditc_qlinear_problem");
  const vditc_qlinear_problem& p = *problem;
  if (p.struct_bytes != sizeof p)
    return fail(VDITC_BAD_ARGUMENT, "problem.struct_bytes = %u; wanted %zu: the caller was built with another vditc_plugins.h", p.struct_bytes,
                sizeof p);
  VDITC_TRY(between("n", p.n, 1, MAX_N));
  VDITC_TRY(between("k", p.k, 1, MAX_K));
  VDITC_TRY(between("m", p.m, 0, int64_t{1} << 37));
  VDITC_TRY(one_of("bits", p.bits, {8, 4, 3}));
  VDITC_TRY(one_of("unsigned_weights", p.unsigned_weights, {0, 1}));
  if (p.unsigned_weights && p.bits != 4) return fail(VDITC_BAD_ARGUMENT, "unsigned_weights = 1 with bits = %d; wanted bits = 4", p.bits);
  VDITC_TRY(one_of("activation_bits", p.activation_bits, {8, 6, 4, 3}));
  VDITC_TRY(one_of("packed", p.packed, {0, 1}));
  if (p.packed && p.activation_bits > 4)
    return fail(VDITC_BAD_ARGUMENT, "packed = 1 with activation_bits = %d; wanted 4 or 3", p.activation_bits);
  if (p.packed && p.k % 32) return fail(VDITC_BAD_ARGUMENT, "packed = 1 with k = %d; wanted a multiple of 32", p.k);
  VDITC_TRY(one_of("layout", p.layout, {VDITC_LAYOUT}));
  VDITC_TRY(one_of("group", p.group, {0, 128}));
  if (p.group && p.k % p.group) return fail(VDITC_BAD_ARGUMENT, "group = %d with k = %d; wanted a multiple of it", p.group, p.k);
  VDITC_TRY(between("rank", p.rank, 0, 4));
  VDITC_TRY(one_of("low_rank", p.low_rank, {0, 16, 32, 48, 64}));
  VDITC_TRY(one_of("bias", p.bias, {0, 1}));
  VDITC_TRY(one_of("activation", p.activation, {VDITC_NO_ACTIVATION, VDITC_GELU, VDITC_GELU_TANH}));
  VDITC_TRY(one_of("gated", p.gated, {0, 1}));
  VDITC_TRY(one_of("output", p.output, {VDITC_FP32, VDITC_FP16, VDITC_BF16}));
  VDITC_TRY(one_of("scale_per_row", p.scale_per_row, {0, 1}));
  if (p.gated) {
    VDITC_TRY(rows("gate_rows", p.gate_rows));
    VDITC_TRY(rows("residual_rows", p.residual_rows));
  }
  return VDITC_OK;
}

Status check_tensors(const vditc_qlinear_problem& p, const vditc_qlinear_tensors* tensors, bool accumulators) {
  if (!tensors) return fail(VDITC_BAD_ARGUMENT, "tensors is null; wanted a vditc_qlinear_tensors");
  const vditc_qlinear_tensors& t = *tensors;
  VDITC_TRY(pointer("x", t.x));
  VDITC_TRY(pointer("weight", t.weight));
  if (accumulators) return VDITC_OK;
  VDITC_TRY(pointer("scale", t.scale));
  VDITC_TRY(pointer("weight_scale", t.weight_scale));
  if (p.rank) {
    VDITC_TRY(pointer("left", t.left));
    VDITC_TRY(pointer("right", t.right));
  }
  if (p.low_rank) {
    VDITC_TRY(pointer("down", t.down));
    VDITC_TRY(pointer("up", t.up));
  }
  if (p.bias) VDITC_TRY(pointer("bias", t.bias));
  if (p.gated) {
    VDITC_TRY(pointer("gate", t.gate));
    VDITC_TRY(pointer("residual", t.residual));
  }
  return pointer("y", t.y);
}

Status check_tactic(const vditc_qlinear_problem& p, int tactic) {
  const char* name = vditc_qlinear_tactic_name(tactic);
  if (!name) return fail(VDITC_BAD_ARGUMENT, "tactic %d; wanted one of vditc_qlinear_tactic", tactic);
  switch (tactic) {
    case VDITC_INT4:
      if (p.bits != 4 || p.activation_bits > 4)
        return fail(VDITC_NO_KERNEL, "%s: weights of %d and activations of %d bits; wanted 4 and at most 4", name, p.bits, p.activation_bits);
      break;
    case VDITC_CARRIER: {
      // float32 holds integers to 2^24, so sums of magnitudes up to that are exact in any order.
      const int64_t most = (int64_t{1} << 24) / (magnitude(p.bits, p.unsigned_weights != 0) * magnitude(p.activation_bits, false));
      if (p.k > most)
        return fail(VDITC_NO_KERNEL, "%s: k = %d; sums of products of %d-bit weights and %d-bit activations are exact up to k = %lld", name, p.k,
                    p.bits, p.activation_bits, static_cast<long long>(most));
      break;
    }
    case VDITC_EXPAND_SM80:
    case VDITC_EXPAND_SM90:
    case VDITC_EXPAND_SM100:
#ifdef VDITC_CUTLASS
      if (p.packed || p.low_rank || p.k % 16)
        return fail(VDITC_NO_KERNEL, "%s: packed = %d, low_rank = %d, k = %d; wanted neither and k a multiple of 16", name, p.packed, p.low_rank, p.k);
      break;
#else
      return fail(VDITC_NO_KERNEL, "%s: the library was built without CUTLASS", name);
#endif
    default:
      break;
  }
  const bool groups = tactic == VDITC_UNPACK_128 || tactic == VDITC_UNPACK_64;
  if (p.group && !groups) return fail(VDITC_NO_KERNEL, "%s: group = %d; wanted 0: groups are for unpack-128 and unpack-64", name, p.group);
  return VDITC_OK;
}

// Best guesses from rates of instructions and bytes; nobody measured them. TensorRT times what is listed and takes the fastest.
int listed(const vditc_qlinear_problem& p, int sm, int (&ids)[TACTIC_COUNT]) {
  int count = 0;
  const auto add = [&](int tactic) {
    if (check_tactic(p, tactic) == VDITC_OK) ids[count++] = tactic;
  };
  if (sm < 80) return 0;
  const bool ampere = sm < 90;
  // Expansion is a pass over the weights, which costs 9 to 26 % of the product at 4096 rows of datacentre GPUs and half of it at 1024.
  const bool tall = p.m >= 2048;
  // Blocks of 128 x 128 that do not fill a GPU of about 100 processors once: smaller ones use more of them.
  const bool few = (p.m + 127) / 128 * ((p.n + 127) / 128) < 100;
  if (ampere) add(VDITC_INT4);                            // twice the rate of int8; an emulation from sm_90 on
  if (sm == 103) add(VDITC_CARRIER);                      // int8 has 1/15 of the rate of bf16
  if (sm == 90 && tall) add(VDITC_EXPAND_SM90);           // mma.sync has no full rate on sm_90, 100, 110
  if ((sm == 100 || sm == 101 || sm == 110) && tall) add(VDITC_EXPAND_SM100);
  add(few ? VDITC_UNPACK_64 : VDITC_UNPACK_128);          // unpacking hides behind the products of sm_80 ... 89 and 120
  add(few ? VDITC_UNPACK_128 : VDITC_UNPACK_64);
  if (ampere || sm >= 120) add(VDITC_EXPAND_SM80);        // a leaner loop behind one more pass
  if (sm == 90 && !tall) add(VDITC_EXPAND_SM90);
  if ((sm == 100 || sm == 101 || sm == 110) && !tall) add(VDITC_EXPAND_SM100);
  return count;
}

}  // namespace vditc::qlinear
