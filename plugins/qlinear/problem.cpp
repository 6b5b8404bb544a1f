#include "qlinear/problem.h"

#include <cstdio>

namespace vditc::qlinear {
namespace {

// Above it 128 * 128 * k leaves int32.
constexpr int MAX_K = (1 << 17) - 1;
constexpr int MAX_N = 1 << 30;
// Of CUTLASS: m and what it is rounded up to are int, and columns are 65535 blocks along a grid's second axis at most.
constexpr int64_t MAX_CUTLASS_M = (int64_t{1} << 31) - 1024;
constexpr int MAX_CUTLASS_N = 65535 * 128;
constexpr int64_t MAX_BLOCKS = 0x7fffffff;  // of a grid

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

// Whether the library has the tactic: CUTLASS's are compiled for generations of GPUs.
constexpr bool built(int tactic) {
#ifdef VDITC_CUTLASS_SM80
  if (tactic == VDITC_EXPAND_SM80) return true;
#endif
#ifdef VDITC_CUTLASS_SM90
  if (tactic == VDITC_EXPAND_SM90) return true;
#endif
#ifdef VDITC_CUTLASS_SM100
  if (tactic == VDITC_EXPAND_SM100) return true;
#endif
  return tactic < VDITC_EXPAND_SM80;
}

// The greatest magnitude of a code.
int64_t magnitude(int bits, bool is_unsigned) { return is_unsigned ? (1 << bits) - 1 : 1 << (bits - 1); }

}  // namespace

Status check_pointer(const char* name, const void* found, int alignment) {
  if (!found) return fail(VDITC_BAD_ARGUMENT, "%s is null; wanted a tensor, as the problem has it", name);
  if (reinterpret_cast<uintptr_t>(found) % static_cast<unsigned>(alignment) == 0) return VDITC_OK;
  return fail(VDITC_BAD_ARGUMENT, "%s = %p; wanted an address that is a multiple of %d", name, found, alignment);
}

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
  VDITC_TRY(check_pointer("x", t.x));
  VDITC_TRY(check_pointer("weight", t.weight));
  if (accumulators) return VDITC_OK;
  VDITC_TRY(check_pointer("scale", t.scale, 4));
  VDITC_TRY(check_pointer("weight_scale", t.weight_scale));
  if (p.rank) {
    VDITC_TRY(check_pointer("left", t.left, 4));
    VDITC_TRY(check_pointer("right", t.right));
  }
  if (p.low_rank) {
    VDITC_TRY(check_pointer("down", t.down));
    VDITC_TRY(check_pointer("up", t.up));
  }
  if (p.bias) VDITC_TRY(check_pointer("bias", t.bias));
  if (p.gated) {
    VDITC_TRY(check_pointer("gate", t.gate));
    VDITC_TRY(check_pointer("residual", t.residual));
  }
  return check_pointer("y", t.y);
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
      if (!built(tactic)) return fail(VDITC_NO_KERNEL, "%s: the library was built without it", name);
      if (p.packed || p.low_rank || p.k % 16)
        return fail(VDITC_NO_KERNEL, "%s: packed = %d, low_rank = %d, k = %d; wanted neither and k a multiple of 16", name, p.packed,
                    p.low_rank, p.k);
      if (p.m > MAX_CUTLASS_M || p.n > MAX_CUTLASS_N)
        return fail(VDITC_NO_KERNEL, "%s: m = %lld, n = %d; wanted at most %lld and %d", name, static_cast<long long>(p.m), p.n,
                    static_cast<long long>(MAX_CUTLASS_M), MAX_CUTLASS_N);
      break;
    default:
      break;
  }
  const int64_t edge = tile_edge(tactic), tiles_m = (p.m + edge - 1) / edge, tiles_n = (p.n + edge - 1) / edge;
  if (tiles_m > MAX_BLOCKS / tiles_n)
    return fail(VDITC_NO_KERNEL, "%s: m = %lld, n = %d: %lld x %lld blocks; wanted at most %lld", name, static_cast<long long>(p.m), p.n,
                static_cast<long long>(tiles_m), static_cast<long long>(tiles_n), static_cast<long long>(MAX_BLOCKS));
  const bool groups = tactic == VDITC_UNPACK_128 || tactic == VDITC_UNPACK_64;
  if (p.group && !groups) return fail(VDITC_NO_KERNEL, "%s: group = %d; wanted 0: groups are for unpack-128 and unpack-64", name, p.group);
  return VDITC_OK;
}

// Best guesses from rates of instructions and bytes; nobody measured them. TensorRT times what is listed and takes the fastest.
Status list_tactics(const vditc_qlinear_problem& p, int sm, int (&ids)[TACTIC_COUNT], int& count) {
  count = 0;
  const auto add = [&](int tactic) {
    if (check_tactic(p, tactic) == VDITC_OK) ids[count++] = tactic;
  };
  if (sm < 80) return fail(VDITC_NO_KERNEL, "sm_%d; wanted sm_80 or later", sm);
  const bool ampere = sm < 90;
  // Expansion is a pass over the weights: by bytes, 9 to 26 % of the product's time at 4096 rows of datacentre GPUs, more of fewer rows.
  const bool tall = p.m >= 2048;
  // Blocks of 128 x 128 that do not fill the GPU's processors once, or of which half has no rows: smaller ones keep more of them busy.
  const int64_t processors = sm == 87 ? 16 : sm == 101 || sm == 110 ? 20 : 100;  // AGX Orin, Thor; others have 60 to 190
  const bool few = p.m <= 64 || (p.m + 127) / 128 * ((p.n + 127) / 128) < processors;
  if (ampere) add(VDITC_INT4);                            // twice the rate of int8; an emulation from sm_90 on
  if (sm == 103) add(VDITC_CARRIER);                      // int8 has 1/15 of the rate of bf16
  if (sm == 90 && tall) add(VDITC_EXPAND_SM90);           // mma.sync has no full rate on sm_90, 100, 110
  if ((sm == 100 || sm == 101 || sm == 110) && tall) add(VDITC_EXPAND_SM100);
  add(few ? VDITC_UNPACK_64 : VDITC_UNPACK_128);          // unpacking hides behind the products of sm_80 ... 89 and 120
  add(few ? VDITC_UNPACK_128 : VDITC_UNPACK_64);
  if (ampere || sm >= 120) add(VDITC_EXPAND_SM80);        // another loop, behind one more pass
  if (sm == 90 && !tall) add(VDITC_EXPAND_SM90);
  if ((sm == 100 || sm == 101 || sm == 110) && !tall) add(VDITC_EXPAND_SM100);
  return count ? VDITC_OK : check_tactic(p, VDITC_UNPACK_128);
}

}  // namespace vditc::qlinear
