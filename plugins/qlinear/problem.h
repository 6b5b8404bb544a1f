// What QLinear's C functions check, and what they choose, before anything is launched.
#pragma once
#include "native/status.h"

namespace vditc::qlinear {

constexpr int TACTICS[] = {VDITC_UNPACK_128,  VDITC_UNPACK_64,   VDITC_INT4,        VDITC_CARRIER,
                           VDITC_EXPAND_SM80, VDITC_EXPAND_SM90, VDITC_EXPAND_SM100};
constexpr int TACTIC_COUNT = sizeof TACTICS / sizeof *TACTICS;

Status check_problem(const vditc_qlinear_problem* problem);
// Of a checked problem with rows. `accumulators`: whether only x and the weights are read.
Status check_tensors(const vditc_qlinear_problem& problem, const vditc_qlinear_tensors* tensors, bool accumulators);
// A tensor that has to be there, aligned to so many bytes: 16, but what is read one by one.
Status check_pointer(const char* name, const void* found, int alignment = 16);
// Whether the tactic computes a checked problem at all; on which GPUs is `list_tactics`'.
Status check_tactic(const vditc_qlinear_problem& problem, int tactic);

// Tactics for a checked problem on a GPU, the best guess first, and their number: one at least.
Status list_tactics(const vditc_qlinear_problem& problem, int sm, int (&ids)[TACTIC_COUNT], int& count);

// Outputs of a block are a square of this edge at least; there are at most 2^31 - 1 blocks.
constexpr int tile_edge(int tactic) { return tactic == VDITC_UNPACK_64 ? 64 : 128; }

// Bytes of a row of x in the kernels that unpack weights; where that is not what it has in memory, rows are padded into the workspace.
inline int64_t row_bytes(const vditc_qlinear_problem& problem) {
  return problem.packed ? problem.k / 2 : (static_cast<int64_t>(problem.k) + 15) / 16 * 16;
}
inline bool padded(const vditc_qlinear_problem& problem) { return !problem.packed && problem.k % 16 != 0; }
inline bool expands(int tactic) { return tactic >= VDITC_EXPAND_SM80; }
// Bytes of the expanded weights, a multiple of 256.
inline size_t expanded_bytes(const vditc_qlinear_problem& problem) { return (static_cast<size_t>(problem.n) * problem.k + 255) / 256 * 256; }

}  // namespace vditc::qlinear
