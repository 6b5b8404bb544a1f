#include "step_cache.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "status.h"

namespace vditc::internal {

StepCache StepCache::of(const Json& about, const std::string& where) {
  StepCache made;
  const auto numbers = [&](const char* branch, std::vector<double>& to) {
    for (const Json& item : about["coefficients"][branch].items) to.push_back(item.number_or(NAN));
  };
  numbers("prompted", made.prompted), numbers("unprompted", made.unprompted);
  made.low = about["low"].number_or(NAN), made.high = about["high"].number_or(NAN);
  for (const auto& [share, value] : about["thresholds"].members) made.thresholds.emplace_back(share, value.number_or(NAN));
  double sum = made.low + made.high;
  for (const double c : made.prompted) sum += c;
  for (const double c : made.unprompted) sum += c;
  if (made.prompted.empty() || !std::isfinite(sum)) {
    throw Error(VDITC_ERROR_DAMAGED, where, "step_cache " + about.words(), "coefficients, low, high, thresholds", "compile again");
  }
  return made;
}

double StepCache::estimate(int branches, double changed) const {
  const double at = std::fmin(std::fmax(changed, low), high);
  double greatest = 0;
  const auto look = [&](const std::vector<double>& coefficients) {
    double value = 0;
    for (const double c : coefficients) value = value * at + c;
    greatest = std::fmax(greatest, value);
  };
  if (branches & PROMPTED) look(prompted);
  if (branches & UNPROMPTED) look(unprompted);
  return greatest;
}

double StepCache::threshold(const std::string& asked) const {
  std::string known;
  for (const auto& [share, value] : thresholds) {
    known += (known.empty() ? "" : ", ") + text("%.0f%% (%.3g)", 100 * std::strtod(share.c_str(), nullptr), value);
  }
  char* end = nullptr;
  const double value = std::strtod(asked.c_str(), &end);
  if (end != asked.c_str() && std::strcmp(end, "%") == 0) {
    for (const auto& [share, found] : thresholds) {
      if (share == text("%g", value / 100) && std::isfinite(found)) return found;
    }
  } else if (end != asked.c_str() && *end == '\0' && value > 0 && std::isfinite(value)) {
    return value;
  }
  throw Error(VDITC_ERROR_ARGUMENT, "step cache", asked, "a threshold above 0, or a share of steps: " + (known.empty() ? "none is known" : known),
              "choose one; a higher threshold leaves out more steps");
}

Skips::Skips(const StepCache& cache, double threshold, size_t steps, size_t latents)
    : cache_(cache), limit_(threshold), steps_(steps), before_(latents), differences_((latents + Workers::BLOCK - 1) / Workers::BLOCK),
      sizes_(differences_.size()) {}

void Skips::look(Workers& workers, size_t index, const float* seen) {
  if (index == 0) {
    changed_ = HUGE_VAL;
    for (double& total : totals_) total = 0;
    std::memcpy(before_.data(), seen, before_.size() * sizeof(float));
    return;
  }
  workers.run(before_.size(), [&](size_t begin, size_t end) {
    double difference = 0, size = 0;
    for (size_t i = begin; i < end; ++i) {
      difference += std::fabs(seen[i] - before_[i]);
      size += std::fabs(before_[i]);
      before_[i] = seen[i];
    }
    differences_[begin / Workers::BLOCK] = difference, sizes_[begin / Workers::BLOCK] = size;
  });
  double difference = 0, size = 0;
  for (const double value : differences_) difference += value;
  for (const double value : sizes_) size += value;
  changed_ = size != 0 ? difference / size : difference > 0 ? 1 : 0;
}

bool Skips::skips(size_t index, int branches, bool have_one) {
  const double total = totals_[branches] + cache_.estimate(branches, changed_);
  const bool skipped = have_one && index > 0 && index + 1 < steps_ && total < limit_ && std::isfinite(changed_);
  totals_[branches] = skipped ? total : 0;
  return skipped;
}

}  // namespace vditc::internal
