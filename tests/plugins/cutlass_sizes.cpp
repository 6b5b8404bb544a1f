// The tactics of CUTLASS are listed for what their grids and their integers hold, and refuse the rest with a status.
#include <cstdio>
#include <cstring>

#include "qlinear/problem.h"

extern "C" const char* vditc_qlinear_tactic_name(int32_t tactic) {
  return tactic >= VDITC_EXPAND_SM80 ? "expand" : tactic == VDITC_UNPACK_64 ? "unpack-64" : "unpack-128";
}

namespace {

constexpr int64_t MOST_M = (int64_t{1} << 31) - 1024;
constexpr int MOST_N = 65535 * 128;
struct Case {
  int64_t m;
  int n;
  const char* said;  // null: listed
};
const Case CASES[] = {
    {1, 1, nullptr},
    {75600, 13824, nullptr},
    {MOST_M, 128, nullptr},
    {MOST_M + 1, 128, "expand: m = 2147482625, n = 128; wanted at most 2147482624 and 8388480"},
    {128, MOST_N, nullptr},
    {128, MOST_N + 1, "expand: m = 128, n = 8388481; wanted at most 2147482624 and 8388480"},
    {MOST_M, 128 * 128, nullptr},
    {MOST_M, 129 * 128, "expand: m = 2147482624, n = 16512: 16777208 x 129 blocks; wanted at most 2147483647"},
};

}  // namespace

int main() {
  int seen = 0;
  for (const auto& [m, n, said] : CASES)
    for (const auto& [tactic, sm] : {std::pair{VDITC_EXPAND_SM80, 80}, {VDITC_EXPAND_SM90, 90}, {VDITC_EXPAND_SM100, 100}}) {
      vditc_qlinear_problem p{};
      p.struct_bytes = sizeof p;
      p.m = m, p.n = n, p.k = 64, p.bits = 4, p.activation_bits = 8, p.layout = VDITC_LAYOUT;
      int ids[vditc::qlinear::TACTIC_COUNT], count = 0;
      if (vditc::qlinear::check_problem(&p)) return std::puts(vditc_last_error()), 1;
      (void)vditc::qlinear::list_tactics(p, sm, ids, count);  // too many blocks for one tactic are too many for all
      bool listed = false;
      for (int i = 0; i < count; ++i) listed = listed || ids[i] == tactic;
      const vditc_status status = vditc::qlinear::check_tactic(p, tactic);
      if (listed != !said || status != (said ? VDITC_NO_KERNEL : VDITC_OK) || (said && std::strcmp(vditc_last_error(), said)))
        return std::printf("m %lld, n %d, sm_%d: listed %d, %s\n", static_cast<long long>(m), n, sm, listed, vditc_last_error()), 1;
      ++seen;
    }
  std::printf("%d problems\n", seen);
}
