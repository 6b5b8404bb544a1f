#include "schedulers/walk.h"

#include <algorithm>
#include <cmath>

#include "elementwise.h"
#include "random.h"
#include "status.h"

namespace vditc::internal {

Levels Levels::along(std::vector<float> timesteps, const std::vector<double>& alpha, const std::vector<double>& sigma,
                     const std::string& prediction, double data) {
  Levels made;
  made.timesteps = std::move(timesteps);
  made.alpha.assign(alpha.begin(), alpha.end() - 1), made.sigma.assign(sigma.begin(), sigma.end() - 1);
  made.after_alpha.assign(alpha.begin() + 1, alpha.end()), made.after_sigma.assign(sigma.begin() + 1, sigma.end());
  made.prediction = prediction, made.data = data;
  return made;
}

Pair Levels::clip(size_t i) const {
  const double a = alpha[i], s = sigma[i];
  if (data != 0) {  // Karras et al., arXiv 2206.00364, eq. 7
    const double total = s * s + data * data, out = s * data / std::sqrt(total);
    return {data * data / total, prediction == "epsilon" ? out : -out};
  }
  if (prediction == "epsilon") return {1 / a, -s / a};
  if (prediction == "v_prediction") return {a, -s};
  if (prediction == "v_exploding") return {1 / (1 + s * s), -s / std::sqrt(1 + s * s)};
  if (prediction == "sample") return {0, 1};
  return {1, prediction == "flow_inverted" ? s : -s};
}

Pair Levels::noise(size_t i) const {
  const double a = alpha[i], s = sigma[i];
  if (data == 0 && prediction == "epsilon") return {0, 1};
  if (data == 0 && prediction == "v_prediction") return {s, a};
  if (prediction == "flow_prediction") return {1, a};
  if (prediction == "flow_inverted") return {1, -a};
  const Pair found = clip(i);
  return {(1 - a * found.latents) / s, -a * found.prediction / s};
}

Pair Levels::mixed(size_t i) const {
  if (prediction.compare(0, 4, "flow") == 0) {  // 1 and the difference of the levels, without rounding them twice
    return {1, (prediction == "flow_inverted" ? -1.0 : 1.0) * (after_sigma[i] - sigma[i])};
  }
  const double a = after_alpha[i], s = after_sigma[i];
  const Pair x = clip(i), y = noise(i);
  return {a * x.latents + s * y.latents, a * x.prediction + s * y.prediction};
}

void Walk::check(const std::string& where) const {
  bool finite = true;
  const auto look = [&](double value) { finite = finite && std::isfinite(value); };
  for (const float t : timesteps) look(t);
  for (const Row& row : rows) {
    look(row.seen), look(row.converted.latents), look(row.converted.prediction), look(row.noise);
    for (const double weight : row.corrected) look(weight);
    for (const double weight : row.following) look(weight);
  }
  if (!finite) {
    throw Error(VDITC_ERROR_INPUT, where, text("%s that comes to no finite numbers at %zu steps", name.c_str(), rows.size()),
                "noise levels that this solver can walk", "change the number of steps or the scheduler's options");
  }
}

Trajectory::Trajectory(std::shared_ptr<const Walk> walk) : walk_(std::move(walk)) {
  for (const Row& row : walk_->rows) {
    depth_ = std::max({depth_, row.following.size() - 1, row.corrected.empty() ? 0 : row.corrected.size() - 1});
    corrects_ = corrects_ || row.corrects;
    random_ = random_ || row.noise != 0;
  }
}

void Trajectory::resize(size_t count) {
  if (count == count_ && !memory_.empty()) return;
  memory_.assign(depth_, std::vector<float>(count));
  order_.resize(depth_);
  for (size_t i = 0; i < depth_; ++i) order_[i] = i;
  last_.assign(corrects_ ? count : 0, 0.0f);
  drawn_.assign(random_ ? count : 0, 0.0f);
  count_ = count;
}

void Trajectory::shown(Workers& workers, size_t index, const float* latents, float* shown) const {
  Terms terms;
  terms.add(walk_->rows[index].seen, latents);
  workers.run(count_, [&](size_t begin, size_t end) { combine(shown, terms, begin, end); });
}

void Trajectory::step(Workers& workers, size_t index, const float* prediction, const float* latents, const float* noise, float* after) {
  const Row& row = walk_->rows[index];
  if (index == 0 || (depth_ < 2 && !corrects_)) next_ = index;
  if (index != next_) {
    throw Error(VDITC_ERROR_ARGUMENT, "schedule", text("step %zu", index), text("step %zu: %s needs every step in order", next_, walk_->name.c_str()),
                "begin with step 0");
  }
  std::rotate(order_.begin(), order_.end() - 1, order_.end());
  if (row.noise != 0 && noise == nullptr) {
    Random({0, index}).normal(drawn_.data(), count_);
    noise = drawn_.data();
  }
  float* newest = memory_[order_[0]].data();
  const bool alone = depth_ == 1 && !corrects_ && row.converted.latents == 0 && row.converted.prediction == 1;  // nothing is remembered
  const float* m = alone ? prediction : newest;
  Terms converted, corrected, following;
  converted.add(row.converted.latents, latents);
  converted.add(row.converted.prediction, prediction);
  const auto sum = [&](Terms& terms, const std::vector<double>& weights, const float* x) {
    for (size_t i = 0; i < weights.size(); ++i) terms.add(weights[i], i == 0 ? x : i == 1 ? m : memory_[order_[i - 1]].data());
  };
  const float* now = corrects_ ? last_.data() : latents;
  if (row.corrects) sum(corrected, row.corrected, last_.data());
  sum(following, row.following, now);
  const float scale = static_cast<float>(row.noise);
  workers.run(count_, [&](size_t begin, size_t end) {
    if (!alone) combine(newest, converted, begin, end);
    if (row.corrects) combine(last_.data(), corrected, begin, end);
    else if (corrects_) std::copy(latents + begin, latents + end, last_.data() + begin);
    combine(after, following, begin, end);
    if (row.noise != 0) {
      for (size_t i = begin; i < end; ++i) {
        const float added = noise[i] * scale;
        after[i] = after[i] + added;
      }
    }
  });
  next_ = index + 1;
}

}  // namespace vditc::internal
