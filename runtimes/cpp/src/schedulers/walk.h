// A sampler as a table of numbers: what every solver here does at a step is linear in the latents, the prediction and what it remembers.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "workers.h"

namespace vditc::internal {

// Weights of the latents and of the prediction.
struct Pair {
  double latents = 0, prediction = 1;
};

// One step, on latents x and the prediction p.
//
// m = converted * (x, p) is remembered. If `corrects`, x becomes the weighted sum of: x as it was (corrected) at the step before, m, and the
// m of the steps before it, newest first. Latents after the step are the sum of x, m, the earlier m weighted by `following`, and standard
// normal noise times `noise`.
struct Row {
  double seen = 1;  // what the model is shown, in units of the latents
  Pair converted;
  bool corrects = false;
  std::vector<double> corrected;
  std::vector<double> following;
  double noise = 0;
};
constexpr size_t ROW_TERMS = 5, ROW_NUMBERS = 5 + 2 * ROW_TERMS;

// At step i latents are alpha[i] * clip + sigma[i] * noise. `after_*`: the level that the step leads to.
struct Levels {
  std::vector<float> timesteps;
  std::vector<double> alpha, sigma, after_alpha, after_sigma;
  // epsilon, v_prediction, sample, flow_prediction; flow_inverted is its negative, v_exploding v_prediction where latents are clip + sigma * noise
  std::string prediction;
  double data = 0;  // EDM's standard deviation of the data; 0: not EDM

  // A walk through all of `alpha`, `sigma` [steps + 1].
  static Levels along(std::vector<float> timesteps, const std::vector<double>& alpha, const std::vector<double>& sigma, const std::string& prediction,
                      double data = 0);
  Pair clip(size_t i) const;   // that the prediction of step i tells of
  Pair noise(size_t i) const;  // the same of the noise
  Pair mixed(size_t i) const;  // both, for the level behind the step: Euler's step, or DDIM's
};

struct Walk {
  std::string name;  // class of diffusers
  std::vector<float> timesteps, sigmas;
  std::vector<Row> rows;
  double start = 1;

  // Error for numbers that are not finite.
  void check(const std::string& where) const;
  size_t steps() const { return rows.size(); }
};

// One clip on its way. Nothing is allocated after `resize` and the first step.
class Trajectory {
 public:
  explicit Trajectory(std::shared_ptr<const Walk> walk);
  void resize(size_t count);  // numbers of the latents

  // `shown` may be `latents`.
  void shown(Workers& workers, size_t index, const float* latents, float* shown) const;
  // `after` may be `latents`. `noise`: standard normal, or nullptr for what every run draws at this step. Error for steps out of order.
  void step(Workers& workers, size_t index, const float* prediction, const float* latents, const float* noise, float* after);
  const Walk& walk() const { return *walk_; }

 private:
  std::shared_ptr<const Walk> walk_;
  size_t count_ = 0, next_ = 0, depth_ = 1;
  bool corrects_ = false, random_ = false;
  std::vector<std::vector<float>> memory_;  // m of this step and of those before
  std::vector<size_t> order_;               // newest first
  std::vector<float> last_, drawn_;         // x of the step before
};

}  // namespace vditc::internal
