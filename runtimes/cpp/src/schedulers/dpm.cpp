// DPM-Solver++ and DPM-Solver of several steps (Lu et al., arXiv 2211.01095, 2206.00927): diffusers' DPMSolverMultistepScheduler.
#include <algorithm>
#include <cmath>

#include "schedulers/solvers.h"

namespace vditc::internal {

const SchedulerClass DPM = {
    "{" VDITC_BETAS
    ",\"solver_order\":2,\"prediction_type\":\"epsilon\",\"thresholding\":false,\"dynamic_thresholding_ratio\":0.995,\"sample_max_value\":1.0,"
    "\"algorithm_type\":\"dpmsolver++\",\"solver_type\":\"midpoint\",\"lower_order_final\":true,\"euler_at_final\":false,"
    "\"final_sigmas_type\":\"zero\"," VDITC_CONVERSIONS
    ",\"use_lu_lambdas\":false,\"use_flow_sigmas\":false,\"flow_shift\":1.0,\"lambda_min_clipped\":null,\"variance_type\":null,"
    "\"timestep_spacing\":\"linspace\",\"steps_offset\":0,\"rescale_betas_zero_snr\":false,\"use_dynamic_shifting\":false,"
    "\"time_shift_type\":\"exponential\"}",
    // solver_type: the last three are other solvers' names, and mean midpoint; algorithm_type: deis means dpmsolver++
    "{" VDITC_SCHEDULES ",\"solver_order\":[1,2,3],\"thresholding\":[false],\"solver_type\":[\"midpoint\",\"heun\",\"logrho\",\"bh1\",\"bh2\"],"
    "\"final_sigmas_type\":[\"zero\",\"sigma_min\"],\"prediction_type\":[\"epsilon\",\"sample\",\"v_prediction\",\"flow_prediction\"],"
    "\"algorithm_type\":[\"dpmsolver\",\"dpmsolver++\",\"sde-dpmsolver\",\"sde-dpmsolver++\",\"deis\"],\"variance_type\":[null]," VDITC_SPACINGS
    ",\"time_shift_type\":[\"exponential\"]}"};

namespace {

using Numbers = std::vector<double>;

// JSON has no -Infinity of its own; configurations write it as a word.
double least_half_snr(const Options& options) {
  const Json& value = options["lambda_min_clipped"];
  if (value.is_number()) return value.real;
  if (value.is(Json::NOTHING) || value.text == "-inf" || value.text == "-Infinity") return -HUGE_VAL;
  options.bad("lambda_min_clipped = " + value.words(), "a number or '-inf'");
}

struct Found {
  Numbers times;
  std::vector<float> sigmas;
};

Found levels_of(const Options& options, size_t steps, const Given& given) {
  const std::string kind = options.one_of({"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"});
  const double trained = options.real("num_train_timesteps");
  const std::vector<float> shares = signal_shares<float>(options, options.flag("rescale_betas_zero_snr"), true), table = sigma_table(shares);
  const double end = options.is("final_sigmas_type", "sigma_min") ? static_cast<double>(table[0]) : 0.0;
  Found made;
  if (options.flag("use_flow_sigmas")) {
    if (!kind.empty()) options.bad(kind + " with use_flow_sigmas", "one of them");
    const double shift = options.flag("use_dynamic_shifting") ? std::exp(given.mu(options)) : options.real("flow_shift");
    Numbers sigmas = numbers::evenly(1, 1 / trained, steps + 1);
    for (double& s : sigmas) s = 1.0 - s;
    sigmas = shifted(std::move(sigmas), shift);
    std::reverse(sigmas.begin(), sigmas.end());
    sigmas.pop_back();
    for (const double s : sigmas) made.times.push_back(s * trained);
    made.sigmas = with_end(sigmas, end);
    return made;
  }
  if (kind.empty()) {
    const float limit = static_cast<float>(least_half_snr(options));
    int64_t clipped = 0;  // of the last training steps, those that have less
    for (size_t i = shares.size(); i-- > 0; ++clipped) {
      const float half_snr = std::log(std::sqrt(shares[i])) - std::log(std::sqrt(1.0f - shares[i]));
      if (!(half_snr < limit)) break;
    }
    Numbers sigmas;
    const Numbers wide = numbers::as<double>(table);
    for (const int64_t t : spaced(options, steps, 1, options.integer("num_train_timesteps") - clipped)) {
      made.times.push_back(static_cast<double>(t));
      sigmas.push_back(numbers::between(static_cast<double>(t), wide));
    }
    made.sigmas = with_end(sigmas, end);
    return made;
  }
  std::vector<float> logs;
  for (const float s : table) logs.push_back(std::log(s));
  Numbers sigmas;
  if (kind == "use_lu_lambdas") {
    const double low = static_cast<double>(logs.front()), high = static_cast<double>(logs.back());
    for (const double ramp : numbers::evenly(0, 1, steps)) sigmas.push_back(std::exp(high + ramp * (low - high)));
  } else {
    sigmas = converted(kind, table.back(), table.front(), steps, NAN, NAN);
  }
  made.times = times_of(sigmas, logs);
  if ((kind == "use_karras_sigmas" || kind == "use_lu_lambdas") && !options.is("beta_schedule", "squaredcos_cap_v2")) {
    for (double& t : made.times) t = std::nearbyint(t);
  }
  made.sigmas = with_end(sigmas, end);
  return made;
}

// Weights of x, of the newest m, of its first and second difference in units of h, and of noise.
struct Coefficients {
  double x, d0, d1, d2, noise;
};

Coefficients coefficients(const std::string& kind, bool heun, double h, const double* signal, const double* noise) {
  const double a = signal[1], s = noise[1];
  if (kind == "dpmsolver") {
    const double e = std::expm1(h);
    return {signal[1] / signal[0], -s * e, -s * (heun ? e / h - 1 : 0.5 * e), -s * ((e - h) / (h * h) - 0.5), 0.0};
  }
  if (kind == "sde-dpmsolver") {
    const double e = std::expm1(h);
    return {signal[1] / signal[0], -2 * s * e, -s * (heun ? 2 * (e / h - 1) : e), 0.0, s * std::sqrt(std::expm1(2 * h))};
  }
  if (kind == "sde-dpmsolver++") {
    const double e = -std::expm1(-2 * h), first = heun ? a * (e / (-2 * h) + 1) : 0.5 * a * e;
    return {s / noise[0] * std::exp(-h), a * e, first, a * ((e - 2 * h) / ((2 * h) * (2 * h)) - 0.5), s * std::sqrt(e)};
  }
  const double e = std::expm1(-h);
  return {s / noise[0], -a * e, heun ? a * (e / h + 1) : -0.5 * a * e, -a * ((e + h) / (h * h) - 0.5), 0.0};
}

}  // namespace

std::vector<Row> dpm_rows(const Options& options, const Levels& levels, const Numbers& signal, const Numbers& noise) {
  const size_t steps = levels.alpha.size(), most = static_cast<size_t>(options.integer("solver_order"));
  const std::string& kind = options.word("algorithm_type");
  const bool heun = options.is("solver_type", "heun"), clean = kind != "dpmsolver" && kind != "sde-dpmsolver", few = steps < 15;
  const bool lower = options.flag("lower_order_final");
  Numbers half_snr;
  for (size_t i = 0; i <= steps; ++i) half_snr.push_back(std::log(signal[i]) - std::log(noise[i]));
  std::vector<Row> rows;
  for (size_t i = 0; i < steps; ++i) {
    const bool last = i == steps - 1 && (options.flag("euler_at_final") || (lower && few) || options.is("final_sigmas_type", "zero"));
    const bool second = i + 2 == steps && lower && few;
    const size_t order = last ? 1 : std::min({most, i + 1, second ? size_t{2} : size_t{3}});
    const double h = half_snr[i + 1] - half_snr[i];
    const Coefficients c = coefficients(kind, heun || order == 3, h, &signal[i], &noise[i]);
    Row row;
    row.following = {c.x, c.d0};
    if (order > 1) {
      const double r0 = (half_snr[i] - half_snr[i - 1]) / h;
      if (order == 2) {
        row.following = {c.x, c.d0 + c.d1 / r0, -c.d1 / r0};
      } else {
        const double r1 = (half_snr[i - 1] - half_snr[i - 2]) / h;
        const double newer = c.d1 * (1 + r0 / (r0 + r1)) + c.d2 / (r0 + r1), older = -c.d1 * r0 / (r0 + r1) - c.d2 / (r0 + r1);  // differences
        row.following = {c.x, c.d0 + newer / r0, older / r1 - newer / r0, -older / r1};
      }
    }
    row.converted = clean ? levels.clip(i) : levels.noise(i);
    row.noise = c.noise;
    rows.push_back(row);
  }
  return rows;
}

Walk dpm(const Json& config, size_t steps, const Given& given, const std::string& where) {
  const Options options(config, DPM, where);
  const std::string& kind = options.word("algorithm_type");
  least_half_snr(options);
  if (kind == "dpmsolver" || kind == "sde-dpmsolver") {
    if (options.is("final_sigmas_type", "zero") || options.flag("use_flow_sigmas")) {
      options.bad("algorithm_type = '" + kind + "' to a level without noise, or of a flow",
                  "dpmsolver++, or final_sigmas_type = 'sigma_min' without flow sigmas");
    }
    if (kind == "sde-dpmsolver" && options.integer("solver_order") == 3) options.bad("sde-dpmsolver of order 3", "order 1 or 2");
  }
  check_flow(options);
  const Found found = levels_of(options, steps, given);
  const Numbers sigma = numbers::as<double>(found.sigmas);
  Numbers signal, noise;
  if (options.flag("use_flow_sigmas")) {
    for (const double s : sigma) signal.push_back(1 - s);
    noise = sigma;
  } else {
    preserving(sigma, signal, noise);
  }
  std::vector<float> times;
  for (const double t : found.times) times.push_back(static_cast<float>(static_cast<int64_t>(t)));
  const Levels levels = Levels::along(times, signal, noise, options.word("prediction_type"));
  Walk walk;
  walk.timesteps = times, walk.sigmas = found.sigmas;
  walk.rows = dpm_rows(options, levels, signal, noise);
  return walk;
}

}  // namespace vditc::internal
