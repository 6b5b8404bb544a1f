// Steps that are left out because the model would say nearly the same: TeaCache (arXiv 2411.19108), outside of an engine. See vditc.step_cache.
#pragma once
#include <string>
#include <vector>

#include "json.h"
#include "workers.h"

namespace vditc::internal {

enum Branches { PROMPTED = 1, UNPROMPTED = 2, BOTH = 3 };  // of classifier-free guidance

// What was fitted for one model, one schedule and one guidance scale; `sampling.step_cache` of the manifest.
struct StepCache {
  std::vector<double> prompted, unprompted;  // coefficients of the polynomials, highest power first
  double low = 0, high = 0;                  // changes of the latents that were seen
  std::vector<std::pair<std::string, double>> thresholds;

  static StepCache of(const Json& about, const std::string& where);
  // The greatest relative change of the branches' predictions for one of the latents; never below 0.
  double estimate(int branches, double changed) const;
  // Of "0.07", or "30%" of the steps; Error for anything else.
  double threshold(const std::string& asked) const;
};

// Which steps of one clip are left out. Branches that run as one batch share a decision; those that run one by one have their own.
class Skips {
 public:
  Skips(const StepCache& cache, double threshold, size_t steps, size_t latents);
  // Before a step: what the model would be shown.
  void look(Workers& workers, size_t index, const float* seen);
  // Whether these branches use their last prediction again; never at the first and the last step, nor where they have none.
  bool skips(size_t index, int branches, bool have_one);

 private:
  const StepCache& cache_;
  double limit_, changed_ = 0;
  size_t steps_;
  std::vector<float> before_;
  std::vector<double> differences_, sizes_;  // by block, so that sums do not depend on which core was first
  double totals_[4] = {0, 0, 0, 0};
};

}  // namespace vditc::internal
