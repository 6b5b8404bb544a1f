// Noise levels in units of the signal (Karras et al., arXiv 2206.00364): diffusers' EulerDiscreteScheduler, and EDM's own,
// EDMEulerScheduler and EDMDPMSolverMultistepScheduler.
#include <algorithm>
#include <cmath>

#include "schedulers/solvers.h"

namespace vditc::internal {

const SchedulerClass EULER = {
    "{" VDITC_BETAS ",\"prediction_type\":\"epsilon\",\"interpolation_type\":\"linear\"," VDITC_CONVERSIONS
    ",\"sigma_min\":null,\"sigma_max\":null,\"timestep_spacing\":\"linspace\",\"timestep_type\":\"discrete\",\"steps_offset\":0,"
    "\"rescale_betas_zero_snr\":false,\"final_sigmas_type\":\"zero\"}",
    "{" VDITC_SCHEDULES ",\"prediction_type\":[\"epsilon\",\"sample\",\"v_prediction\"],\"interpolation_type\":[\"linear\"]," VDITC_SPACINGS
    ",\"timestep_type\":[\"discrete\"],\"final_sigmas_type\":[\"zero\",\"sigma_min\"]}"};

#define VDITC_EDM                                                                                                                      \
  "\"sigma_min\":0.002,\"sigma_max\":80.0,\"sigma_data\":0.5,\"sigma_schedule\":\"karras\",\"num_train_timesteps\":1000,"              \
  "\"prediction_type\":\"epsilon\",\"rho\":7.0,\"final_sigmas_type\":\"zero\""
#define VDITC_EDM_CHOICES                                                                                        \
  "\"sigma_schedule\":[\"karras\",\"exponential\"],\"prediction_type\":[\"epsilon\",\"v_prediction\"],"          \
  "\"final_sigmas_type\":[\"zero\",\"sigma_min\"]"

const SchedulerClass EDM_EULER = {"{" VDITC_EDM "}", "{" VDITC_EDM_CHOICES "}"};
const SchedulerClass EDM_DPM = {
    "{\"solver_order\":2,\"thresholding\":false,\"dynamic_thresholding_ratio\":0.995,\"sample_max_value\":1.0,"
    "\"algorithm_type\":\"dpmsolver++\",\"solver_type\":\"midpoint\",\"lower_order_final\":true,\"euler_at_final\":false," VDITC_EDM "}",
    "{\"solver_order\":[1,2,3],\"thresholding\":[false],\"solver_type\":[\"midpoint\",\"heun\",\"logrho\",\"bh1\",\"bh2\"]," VDITC_EDM_CHOICES
    ",\"algorithm_type\":[\"dpmsolver++\",\"sde-dpmsolver++\",\"deis\"]}"};

namespace {
using Numbers = std::vector<double>;
}

Walk euler(const Json& config, size_t steps, const Given&, const std::string& where) {
  const Options options(config, EULER, where);
  const std::string kind = options.one_of({"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"});
  const std::vector<float> table = sigma_table(signal_shares<float>(options, options.flag("rescale_betas_zero_snr"), true));
  const int64_t trained = options.integer("num_train_timesteps");
  Numbers times;
  if (options.is("timestep_spacing", "linspace")) {
    times = numbers::as<double>(numbers::as<float>(numbers::evenly(0, static_cast<double>(trained - 1), steps)));
    std::reverse(times.begin(), times.end());
  } else if (options.is("timestep_spacing", "leading")) {
    const int64_t stride = trained / static_cast<int64_t>(steps);
    for (size_t i = steps; i-- > 0;) {
      times.push_back(static_cast<float>(static_cast<int64_t>(i) * stride) + static_cast<float>(options.integer("steps_offset")));
    }
  } else {
    const double stride = -static_cast<double>(trained) / static_cast<double>(steps), whole = static_cast<double>(trained);
    for (size_t i = 0; i < steps; ++i) times.push_back(static_cast<float>(std::nearbyint(whole + static_cast<double>(i) * ((whole + stride) - whole))) - 1.0f);
  }
  Numbers sigmas;
  const Numbers wide = numbers::as<double>(table);
  for (const double t : times) sigmas.push_back(numbers::between(t, wide));
  if (!kind.empty()) {
    std::vector<float> logs;
    for (const float s : table) logs.push_back(std::log(s));
    sigmas = converted(kind, sigmas.front(), sigmas.back(), steps, real_or_nan(options["sigma_min"]), real_or_nan(options["sigma_max"]));
    times = times_of(sigmas, logs);
  }
  Walk walk;
  walk.sigmas = with_end(sigmas, options.is("final_sigmas_type", "sigma_min") ? wide.front() : 0.0);
  const Numbers noise = numbers::as<double>(walk.sigmas);
  walk.timesteps = numbers::as<float>(times);
  const Levels levels = Levels::along(walk.timesteps, Numbers(steps + 1, 1.0), noise,
                                      options.is("prediction_type", "v_prediction") ? "v_exploding" : options.word("prediction_type"));
  for (size_t i = 0; i < steps; ++i) {
    const Pair mixed = levels.mixed(i);
    Row row;
    row.seen = 1 / std::sqrt(noise[i] * noise[i] + 1);
    row.following = {mixed.latents, mixed.prediction};
    walk.rows.push_back(row);
  }
  const double greatest = *std::max_element(noise.begin(), noise.end());
  walk.start = options.is("timestep_spacing", "leading") ? std::sqrt(greatest * greatest + 1) : greatest;
  return walk;
}

Walk edm(const Json& config, size_t steps, const Given&, const std::string& where) {
  const bool plain = config["_class_name"].text == "EDMEulerScheduler";
  const Options options(config, plain ? EDM_EULER : EDM_DPM, where);
  if (!plain && options.is("algorithm_type", "sde-dpmsolver++") && options.integer("solver_order") == 3) {
    options.bad("sde-dpmsolver++ of order 3", "order 1 or 2");
  }
  const double low = options.real("sigma_min"), high = options.real("sigma_max"), rho = options.real("rho"), data = options.real("sigma_data");
  std::vector<float> found;
  if (options.is("sigma_schedule", "exponential")) {
    for (const float value : torch_linspace<float>(std::log(low), std::log(high), steps)) found.push_back(std::exp(value));
    std::reverse(found.begin(), found.end());
  } else {
    const double first = std::pow(high, 1 / rho), fall = std::pow(low, 1 / rho) - std::pow(high, 1 / rho);
    if (plain) {
      for (const double ramp : torch_linspace<double>(0, 1, steps)) found.push_back(static_cast<float>(std::pow(first + ramp * fall, rho)));
    } else {
      for (const float ramp : torch_linspace<float>(0, 1, steps)) {
        found.push_back(std::pow(static_cast<float>(first) + ramp * static_cast<float>(fall), static_cast<float>(rho)));
      }
    }
  }
  Walk walk;
  const bool zero = options.is("final_sigmas_type", "zero");
  walk.sigmas = with_end(numbers::as<double>(found), zero ? 0.0 : plain ? static_cast<double>(found.back()) : low);
  for (const float s : found) walk.timesteps.push_back(0.25f * std::log(s));
  const Numbers noise = numbers::as<double>(walk.sigmas), signal(steps + 1, 1.0);
  const Levels levels = Levels::along(walk.timesteps, signal, noise, options.word("prediction_type"), data);
  if (plain) {
    for (size_t i = 0; i < steps; ++i) {
      const Pair mixed = levels.mixed(i);
      Row row;
      row.following = {mixed.latents, mixed.prediction};
      walk.rows.push_back(row);
    }
  } else {
    walk.rows = dpm_rows(options, levels, signal, noise);
  }
  for (size_t i = 0; i < steps; ++i) walk.rows[i].seen = 1 / std::sqrt(noise[i] * noise[i] + data * data);
  walk.start = std::sqrt(high * high + 1);
  return walk;
}

}  // namespace vditc::internal
