// DDIM without added noise (Song et al., arXiv 2010.02502, eq. 12): diffusers' DDIMScheduler. CogVideoX's DDIM and stochastic
// DPM-Solver++ (2M) (Yang et al., arXiv 2408.06072), with a shifted signal-to-noise ratio, then a last level without signal.
#include <algorithm>
#include <cmath>

#include "schedulers/solvers.h"

namespace vditc::internal {

#define VDITC_DDIM_CHOICES VDITC_SCHEDULES ",\"prediction_type\":[\"epsilon\",\"sample\",\"v_prediction\"]," VDITC_SPACINGS

const SchedulerClass DDIM = {
    "{" VDITC_BETAS
    ",\"clip_sample\":true,\"set_alpha_to_one\":true,\"steps_offset\":0,\"prediction_type\":\"epsilon\",\"thresholding\":false,"
    "\"dynamic_thresholding_ratio\":0.995,\"clip_sample_range\":1.0,\"sample_max_value\":1.0,\"timestep_spacing\":\"leading\","
    "\"rescale_betas_zero_snr\":false}",
    "{" VDITC_DDIM_CHOICES ",\"clip_sample\":[false],\"thresholding\":[false]}"};
const SchedulerClass COGVIDEOX = {  // clip_sample is read by nobody in diffusers either: these samples are never clipped
    "{\"num_train_timesteps\":1000,\"beta_start\":0.00085,\"beta_end\":0.0120,\"beta_schedule\":\"scaled_linear\",\"trained_betas\":null,"
    "\"clip_sample\":true,\"set_alpha_to_one\":true,\"steps_offset\":0,\"prediction_type\":\"epsilon\",\"clip_sample_range\":1.0,"
    "\"sample_max_value\":1.0,\"timestep_spacing\":\"leading\",\"rescale_betas_zero_snr\":false,\"snr_shift_scale\":3.0}",
    "{" VDITC_DDIM_CHOICES "}"};

namespace {

using Numbers = std::vector<double>;

struct Visited {
  std::vector<int64_t> times;
  Levels levels;
};

// Training steps, and the levels there and a whole stride later, which for some numbers of steps is not the next one visited.
Visited visited(const Options& options, const Numbers& shares, size_t steps) {
  Visited made;
  made.times = spaced(options, steps, 0, options.integer("num_train_timesteps"));
  const int64_t stride = options.integer("num_train_timesteps") / static_cast<int64_t>(steps);
  const double final = options.flag("set_alpha_to_one") ? 1.0 : shares[0];
  Levels& levels = made.levels;
  levels.prediction = options.word("prediction_type");
  for (const int64_t t : made.times) {
    const double at = shares[static_cast<size_t>(t)], after = t >= stride ? shares[static_cast<size_t>(t - stride)] : final;
    levels.timesteps.push_back(static_cast<float>(t));
    levels.alpha.push_back(std::sqrt(at)), levels.sigma.push_back(std::sqrt(1 - at));
    levels.after_alpha.push_back(std::sqrt(after)), levels.after_sigma.push_back(std::sqrt(1 - after));
  }
  return made;
}

Walk finished(Visited&& found, std::vector<Row>&& rows) {
  Walk walk;
  walk.timesteps = found.levels.timesteps;
  walk.sigmas = numbers::as<float>(found.levels.sigma);
  walk.sigmas.push_back(static_cast<float>(found.levels.after_sigma.back()));
  walk.rows = std::move(rows);
  return walk;
}

// Clip and noise, mixed anew for each level.
Walk ddim_walk(const Options& options, const Numbers& shares, size_t steps) {
  Visited found = visited(options, shares, steps);
  std::vector<Row> rows(steps);
  for (size_t i = 0; i < steps; ++i) {
    const Pair mixed = found.levels.mixed(i);
    rows[i].following = {mixed.latents, mixed.prediction};
  }
  return finished(std::move(found), std::move(rows));
}

template <class T>
Numbers shifted_shares(const Options& options) {
  std::vector<T> shares = signal_shares<T>(options, false, false);
  const double scale = options.real("snr_shift_scale");
  const T a = static_cast<T>(scale), b = static_cast<T>(1 - scale);
  for (T& share : shares) share = share / (a + b * share);
  if (options.flag("rescale_betas_zero_snr")) {
    for (T& share : shares) share = std::sqrt(share);
    const T first = shares.front(), last = shares.back(), factor = first / (first - last);
    for (T& share : shares) {
      share = (share - last) * factor;
      share = share * share;
    }
  }
  return numbers::as<double>(shares);
}

// diffusers computes scaled_linear in float64 here.
Numbers cogvideox_shares(const Options& options) {
  const bool precise = options.is("beta_schedule", "scaled_linear") && !options["trained_betas"].is(Json::LIST);
  return precise ? shifted_shares<double>(options) : shifted_shares<float>(options);
}

double half_snr(double share) { return std::log(std::sqrt(share / (1 - share))); }

}  // namespace

Walk ddim(const Json& config, size_t steps, const Given&, const std::string& where) {
  const Options options(config, DDIM, where);
  return ddim_walk(options, numbers::as<double>(signal_shares<float>(options, options.flag("rescale_betas_zero_snr"), false)), steps);
}

Walk cogvideox_ddim(const Json& config, size_t steps, const Given&, const std::string& where) {
  const Options options(config, COGVIDEOX, where);
  return ddim_walk(options, cogvideox_shares(options), steps);
}

Walk cogvideox_dpm(const Json& config, size_t steps, const Given&, const std::string& where) {
  const Options options(config, COGVIDEOX, where);
  const Numbers shares = cogvideox_shares(options);
  Visited found = visited(options, shares, steps);
  const Levels& levels = found.levels;
  const int64_t stride = options.integer("num_train_timesteps") / static_cast<int64_t>(steps);
  std::vector<Row> rows;
  for (size_t i = 0; i < steps; ++i) {
    const double to_come = levels.after_alpha[i] * levels.after_alpha[i], now = levels.alpha[i] * levels.alpha[i];
    const double at = half_snr(now), h = half_snr(to_come) - at;
    const double x = std::sqrt((1 - to_come) / (1 - now)) * std::exp(-h), m = -std::expm1(-2 * h) * std::sqrt(to_come);
    Row row;
    row.following = {x, m};
    if (i > 0 && found.times[i] >= stride) {
      const double half = h / (2 * (at - half_snr(shares[static_cast<size_t>(found.times[i - 1])])));
      row.following = {x, m * (1 + half), -m * half};
    }
    row.converted = levels.clip(i);
    row.noise = std::sqrt((1 - to_come) * -std::expm1(-2 * h));
    rows.push_back(row);
  }
  return finished(std::move(found), std::move(rows));
}

}  // namespace vditc::internal
