#include "schedulers/pipelines.h"

#include <algorithm>

#include "schedulers/numbers.h"

namespace vditc::internal {
namespace {

enum Spacing { OWN, EVEN, EVEN_TO_LAST, LINEAR_QUADRATIC };

struct Rule {
  const char* pipeline;
  Spacing levels;
  bool sized;  // whether mu follows the clip's size
  double max_mu = HUGE_VAL;
  double mu = NAN;  // one for all sizes
};

const Rule RULES[] = {  // pipelines that are not listed hand over the number of steps alone
    {"HunyuanVideoPipeline", EVEN, false},
    {"HunyuanVideoImageToVideoPipeline", EVEN, false},
    {"HunyuanSkyreelsImageToVideoPipeline", EVEN, false},
    {"HunyuanVideo15Pipeline", EVEN, false},
    {"HunyuanVideo15ImageToVideoPipeline", EVEN, false},
    {"HunyuanVideoFramepackPipeline", EVEN, true, std::log(7.0)},
    {"LTXPipeline", EVEN_TO_LAST, true},
    {"LTXImageToVideoPipeline", EVEN_TO_LAST, true},
    {"LTX2Pipeline", EVEN_TO_LAST, true},
    {"LTX2ImageToVideoPipeline", EVEN_TO_LAST, true},
    {"MotifVideoPipeline", EVEN_TO_LAST, true},
    {"MotifVideoImage2VideoPipeline", EVEN_TO_LAST, true},
    {"MochiPipeline", LINEAR_QUADRATIC, false},
    {"EasyAnimatePipeline", OWN, true, HUGE_VAL, 1.0},
    {"EasyAnimateControlPipeline", OWN, true, HUGE_VAL, 1.0},
    {"EasyAnimateInpaintPipeline", OWN, true, HUGE_VAL, 1.0},
};

const Rule& rule_of(const std::string& pipeline) {
  static const Rule none{"", OWN, false};
  for (const Rule& rule : RULES) {
    if (pipeline == rule.pipeline) return rule;
  }
  return none;
}

std::vector<float> narrowed(const std::vector<double>& values) { return std::vector<float>(values.begin(), values.end()); }

// Mochi's: the first half of the steps takes away the first fortieth of the noise, evenly, the rest goes quadratically.
std::vector<double> linear_quadratic(size_t steps) {
  const double threshold = 0.025, half = static_cast<double>(std::max<size_t>(steps / 2, 1));
  const double rest = std::max(static_cast<double>(steps) - half, 1.0), gap = half - threshold * static_cast<double>(steps);
  const double quadratic = gap / (half * (rest * rest)), linear = threshold / half - 2 * gap / (rest * rest);
  std::vector<double> made;
  for (size_t i = 0; i < steps; ++i) {
    const double at = static_cast<double>(i);
    made.push_back(1.0 - (at < half ? at * threshold / half : quadratic * (at * at) + linear * at + quadratic * (half * half)));
  }
  return made;
}

}  // namespace

std::vector<float> Given::spacing(size_t steps) const {
  const double count = static_cast<double>(steps);
  switch (rule_of(pipeline).levels) {
    case EVEN: {
      std::vector<double> all = numbers::evenly(1.0, 0.0, steps + 1);
      all.pop_back();
      return narrowed(all);
    }
    case EVEN_TO_LAST: return narrowed(numbers::evenly(1.0, 1 / count, steps));
    case LINEAR_QUADRATIC: return narrowed(linear_quadratic(steps));
    default: return {};
  }
}

double Given::mu(const Options& options) const {
  const Rule& rule = rule_of(pipeline);
  if (!std::isnan(rule.mu)) return rule.mu;
  if (!rule.sized || size[0] <= 0) {
    std::string computing;
    for (const Rule& other : RULES) {
      if (other.sized) computing += (computing.empty() ? "" : ", ") + std::string(other.pipeline);
    }
    options.bad("use_dynamic_shifting = true " + (rule.sized ? "without a clip size" : "of " + (pipeline.empty() ? "no known pipeline" : pipeline)),
                "false, or a clip of a pipeline that computes the shift: " + computing,
                "write the shift of your clips into the configuration and use_dynamic_shifting = false, or give a shift");
  }
  const double base = options.real("base_image_seq_len"), most = options.real("max_image_seq_len");
  const double slope = (options.real("max_shift") - options.real("base_shift")) / (most - base);
  const double tokens = static_cast<double>(size[0] * size[1] * size[2]) / static_cast<double>(patch);
  return std::min(tokens * slope + (options.real("base_shift") - slope * base), rule.max_mu);
}

}  // namespace vditc::internal
