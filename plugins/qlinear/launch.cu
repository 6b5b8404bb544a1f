// The C functions of QLinear (native/vditc_plugins.h).
#include "native/launch.h"
#include "qlinear/problem.h"
#include "qlinear/tactics.h"
#include "qlinear/unpack_kernel.h"

namespace vditc::qlinear {
namespace {

Status workspace_of(const vditc_qlinear_problem& p, int tactic, size_t* bytes) {
  *bytes = 0;
  if (p.m == 0) return VDITC_OK;
  if (!expands(tactic)) {
    if (padded(p)) *bytes = static_cast<size_t>(p.m) * static_cast<size_t>(row_bytes(p));
    return VDITC_OK;
  }
#ifdef VDITC_CUTLASS
  size_t more = 0;
  if (tactic == VDITC_EXPAND_SM80) more = cutlass_sm80_workspace(p.m, p.n, p.k);
  if (tactic == VDITC_EXPAND_SM90) more = cutlass_sm90_workspace(p.m, p.n, p.k);
  if (tactic == VDITC_EXPAND_SM100) more = cutlass_sm100_workspace(p.m, p.n, p.k);
  *bytes = expanded_bytes(p) + more;
#endif
  return VDITC_OK;
}

Epilogue epilogue_of(const vditc_qlinear_problem& p, const vditc_qlinear_tensors& t, int32_t* accumulators) {
  Epilogue e{};
  e.m = p.m;
  e.n = p.n;
  e.unit = 1.0f;
  e.accumulators = accumulators;
  if (accumulators) return e;
  e.scale = t.scale;
  e.weight_scale = p.group ? nullptr : t.weight_scale;
  e.rank = p.rank;
  e.left = p.rank ? t.left : nullptr;
  e.right = p.rank ? t.right : nullptr;
  e.bias = p.bias ? t.bias : nullptr;
  e.gate = p.gated ? t.gate : nullptr;
  e.residual = p.gated ? t.residual : nullptr;
  e.gate_rows = p.gate_rows;
  e.residual_rows = p.residual_rows;
  e.y = t.y;
  e.activation = p.activation;
  e.output = p.output;
  e.scale_per_row = p.scale_per_row;
  return e;
}

Status unpack(const vditc_qlinear_problem& p, const vditc_qlinear_tensors& t, int tactic, const Epilogue& epilogue, void* workspace,
              cudaStream_t stream) {
  const int8_t* x = t.x;
  if (padded(p)) {
    auto* rows = static_cast<int8_t*>(workspace);
    VDITC_TRY(pad_rows(x, rows, p.m, p.k, row_bytes(p), stream));
    x = rows;
  }
  UnpackArguments a{};
  a.epilogue = epilogue;
  if (p.low_rank && epilogue.y)
    a.branch = {static_cast<const uint16_t*>(t.down), static_cast<const uint16_t*>(t.up), p.low_rank, p.output == VDITC_BF16};
  a.x = reinterpret_cast<const unsigned char*>(x);
  a.weight = reinterpret_cast<const unsigned char*>(t.weight);
  a.group_scale = p.group ? t.weight_scale : nullptr;
  a.row_bytes = row_bytes(p);
  a.k_blocks = (p.k + 31) / 32;
  a.n_blocks = (p.n + 31) / 32;
  const bool packed = p.packed != 0;
  if (p.bits == 8) return launch_w8(tactic, packed, a, stream);
  if (p.bits == 3) return launch_w3(tactic, packed, a, stream);
  return p.unsigned_weights ? launch_u4(tactic, packed, a, stream) : launch_w4(tactic, packed, a, stream);
}

#ifdef VDITC_CUTLASS
Status expand(const vditc_qlinear_problem& p, const vditc_qlinear_tensors& t, int tactic, const Epilogue& epilogue, void* workspace, size_t bytes,
              cudaStream_t stream) {
  auto* weight = static_cast<int8_t*>(workspace);
  void* rest = weight + expanded_bytes(p);
  bytes -= expanded_bytes(p);
  VDITC_TRY(expand_weights(p, t.weight, weight, stream));
  if (tactic == VDITC_EXPAND_SM80) return launch_cutlass_sm80(epilogue, t.x, weight, p.m, p.n, p.k, rest, bytes, stream);
  if (tactic == VDITC_EXPAND_SM90) return launch_cutlass_sm90(epilogue, t.x, weight, p.m, p.n, p.k, rest, bytes, stream);
  return launch_cutlass_sm100(epilogue, t.x, weight, p.m, p.n, p.k, rest, bytes, stream);
}
#endif

// Where VDITC_ANY_TACTIC, the best guess for the current device.
Status choose(const vditc_qlinear_problem& p, int& tactic) {
  if (tactic != VDITC_ANY_TACTIC) {
    VDITC_TRY(check_tactic(p, tactic));
    if (p.m == 0 || (tactic != VDITC_INT4 && !expands(tactic))) return VDITC_OK;  // the others run everywhere
    const int on = vditc_device_sm();
    if (on < 0) return VDITC_CUDA_ERROR;  // its message stands
    int all[TACTIC_COUNT], count;
    VDITC_TRY(list_tactics(p, on, all, count));
    for (int i = 0; i < count; ++i)
      if (all[i] == tactic) return VDITC_OK;
    return fail(VDITC_NO_KERNEL, "%s: no code for this GPU, sm_%d", vditc_qlinear_tactic_name(tactic), on);
  }
  const int sm = vditc_device_sm();
  if (sm < 0) return VDITC_CUDA_ERROR;  // its message stands
  int ids[TACTIC_COUNT], count;
  VDITC_TRY(list_tactics(p, sm, ids, count));
  tactic = ids[0];
  return VDITC_OK;
}

Status compute(const vditc_qlinear_problem* problem, const vditc_qlinear_tensors* tensors, int tactic, bool sums_alone, int32_t* accumulators,
               void* workspace, size_t workspace_bytes, void* stream_of_caller) {
  VDITC_TRY(check_problem(problem));
  const vditc_qlinear_problem& p = *problem;
  if (sums_alone && p.group)
    return fail(VDITC_BAD_ARGUMENT, "group = %d; wanted 0: with groups there are no integers of a whole row", p.group);
  VDITC_TRY(choose(p, tactic));
  if (p.m == 0) return VDITC_OK;
  VDITC_TRY(check_tensors(p, tensors, sums_alone));
  if (sums_alone) VDITC_TRY(check_pointer("accumulators", accumulators));
  size_t wanted;
  VDITC_TRY(workspace_of(p, tactic, &wanted));
  if (workspace_bytes < wanted)
    return fail(VDITC_WORKSPACE_TOO_SMALL, "%s: a workspace of %zu bytes; wanted %zu", vditc_qlinear_tactic_name(tactic), workspace_bytes, wanted);
  if (wanted) VDITC_TRY(check_pointer("workspace", workspace));
  const auto stream = static_cast<cudaStream_t>(stream_of_caller);
  const Epilogue epilogue = epilogue_of(p, *tensors, sums_alone ? accumulators : nullptr);
#ifdef VDITC_CUTLASS
  if (expands(tactic)) return expand(p, *tensors, tactic, epilogue, workspace, workspace_bytes, stream);
#endif
  return unpack(p, *tensors, tactic, epilogue, workspace, stream);
}

}  // namespace
}  // namespace vditc::qlinear

using namespace vditc;
using namespace vditc::qlinear;

extern "C" const char* vditc_qlinear_tactic_name(int32_t tactic) {
  switch (tactic) {
    case VDITC_UNPACK_128:
      return "unpack-128";
    case VDITC_UNPACK_64:
      return "unpack-64";
    case VDITC_INT4:
      return "int4";
    case VDITC_CARRIER:
      return "carrier";
    case VDITC_EXPAND_SM80:
      return "expand-sm80";
    case VDITC_EXPAND_SM90:
      return "expand-sm90";
    case VDITC_EXPAND_SM100:
      return "expand-sm100";
    default:
      return nullptr;
  }
}

extern "C" vditc_status vditc_qlinear_tactics(const vditc_qlinear_problem* problem, int32_t sm, int32_t* ids, int32_t capacity, int32_t* count) {
  VDITC_TRY(check_problem(problem));
  if (!count || (capacity > 0 && !ids)) return fail(VDITC_BAD_ARGUMENT, "%s is null; wanted a place for the answer", count ? "ids" : "count");
  int found[TACTIC_COUNT];
  VDITC_TRY(list_tactics(*problem, sm, found, *count));
  for (int i = 0; i < *count && i < capacity; ++i) ids[i] = found[i];
  return VDITC_OK;
}

extern "C" vditc_status vditc_qlinear_workspace(const vditc_qlinear_problem* problem, int32_t tactic, int32_t sm, size_t* bytes) {
  VDITC_TRY(check_problem(problem));
  if (!bytes) return fail(VDITC_BAD_ARGUMENT, "bytes is null; wanted a place for the answer");
  if (tactic != VDITC_ANY_TACTIC) {
    VDITC_TRY(check_tactic(*problem, tactic));
    return workspace_of(*problem, tactic, bytes);
  }
  int ids[TACTIC_COUNT], count;
  VDITC_TRY(list_tactics(*problem, sm, ids, count));
  *bytes = 0;
  for (int i = 0; i < count; ++i) {
    size_t each;
    VDITC_TRY(workspace_of(*problem, ids[i], &each));
    if (each > *bytes) *bytes = each;
  }
  return VDITC_OK;
}

extern "C" vditc_status vditc_qlinear_launch(const vditc_qlinear_problem* problem, const vditc_qlinear_tensors* tensors, int32_t tactic,
                                             void* workspace, size_t workspace_bytes, void* stream) {
  return compute(problem, tensors, tactic, false, nullptr, workspace, workspace_bytes, stream);
}

extern "C" vditc_status vditc_qlinear_accumulators(const vditc_qlinear_problem* problem, const vditc_qlinear_tensors* tensors, int32_t tactic,
                                                   int32_t* accumulators, void* workspace, size_t workspace_bytes, void* stream) {
  return compute(problem, tensors, tactic, true, accumulators, workspace, workspace_bytes, stream);
}

extern "C" vditc_status vditc_qlinear_expand(const vditc_qlinear_problem* problem, const int8_t* weight, int8_t* out, void* stream) {
  VDITC_TRY(check_problem(problem));
  VDITC_TRY(check_pointer("weight", weight));
  VDITC_TRY(check_pointer("out", out));
  return expand_weights(*problem, weight, out, static_cast<cudaStream_t>(stream));
}
