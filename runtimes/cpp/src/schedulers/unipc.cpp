// UniPC, B(h) versions 1 and 2 (Zhao et al., arXiv 2302.04867): diffusers' UniPCMultistepScheduler.
#include <algorithm>
#include <cmath>

#include "schedulers/solvers.h"

namespace vditc::internal {

const SchedulerClass UNIPC = {
    "{" VDITC_BETAS
    ",\"solver_order\":2,\"prediction_type\":\"epsilon\",\"thresholding\":false,\"dynamic_thresholding_ratio\":0.995,\"sample_max_value\":1.0,"
    "\"predict_x0\":true,\"solver_type\":\"bh2\",\"lower_order_final\":true,\"disable_corrector\":[],\"solver_p\":null," VDITC_CONVERSIONS
    ",\"use_flow_sigmas\":false,\"flow_shift\":1.0,\"timestep_spacing\":\"linspace\",\"steps_offset\":0,\"final_sigmas_type\":\"zero\","
    "\"rescale_betas_zero_snr\":false,\"use_dynamic_shifting\":false,\"time_shift_type\":\"exponential\",\"sigma_min\":null,"
    "\"sigma_max\":null,\"shift_terminal\":null}",
    // solver_type: the last three are other solvers' names, and mean bh2
    "{" VDITC_SCHEDULES ",\"solver_order\":[1,2,3],\"prediction_type\":[\"epsilon\",\"sample\",\"v_prediction\",\"flow_prediction\"],"
    "\"thresholding\":[false],\"solver_type\":[\"bh1\",\"bh2\",\"midpoint\",\"heun\",\"logrho\"],\"solver_p\":[null]," VDITC_SPACINGS
    ",\"final_sigmas_type\":[\"zero\",\"sigma_min\"],\"time_shift_type\":[\"exponential\"]}"};

namespace {

using Numbers = std::vector<double>;

struct Found {
  Numbers times;
  std::vector<float> sigmas;
};

template <class T>
Found flow_levels(std::vector<T> sigmas, const Given& given, const Options& options, bool last) {
  constexpr T START = static_cast<T>(1e-6);  // what a first noise level of 1 is lowered by, or its signal's logarithm would be infinite
  const T trained = static_cast<T>(options.real("num_train_timesteps"));
  sigmas = options.flag("use_dynamic_shifting") ? dynamic(std::move(sigmas), given.mu(options), options)
                                                : shifted(std::move(sigmas), options.real("flow_shift"));
  if (options["shift_terminal"].is_number() && options.real("shift_terminal") != 0) sigmas = stretched(std::move(sigmas), options.real("shift_terminal"));
  if (std::fabs(sigmas[0] - T{1}) < START) sigmas[0] -= START;
  Found made;
  for (const T s : sigmas) made.times.push_back(static_cast<double>(s * trained));
  made.sigmas = with_end(numbers::as<double>(sigmas), last ? static_cast<double>(sigmas.back()) : 0.0);
  return made;
}

Found levels_of(const Options& options, size_t steps, const Given& given) {
  const std::string conversion = options.one_of({"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"});
  const bool flow = options.flag("use_flow_sigmas"), last = options.is("final_sigmas_type", "sigma_min");
  const double trained = options.real("num_train_timesteps");
  if (flow && !conversion.empty() && conversion != "use_karras_sigmas") options.bad(conversion + " with use_flow_sigmas", "one of them");
  if (flow && conversion.empty()) {
    std::vector<float> own = given.spacing(steps);
    if (!own.empty()) return flow_levels(std::move(own), given, options, last);
    Numbers even = numbers::evenly(1, 1 / trained, steps + 1);
    even.pop_back();
    return flow_levels(std::move(even), given, options, last);
  }
  const std::vector<float> table = sigma_table(signal_shares<float>(options, options.flag("rescale_betas_zero_snr"), true));
  if (!conversion.empty()) {
    Numbers sigmas = converted(conversion, table.back(), table.front(), steps, real_or_nan(options["sigma_min"]), real_or_nan(options["sigma_max"]));
    Found made;
    if (flow) {
      for (double& s : sigmas) s = s / (s + 1), made.times.push_back(s * trained);
    } else {
      std::vector<float> logs;
      for (const float s : table) logs.push_back(std::log(s));
      made.times = times_of(sigmas, logs);
      if (conversion == "use_karras_sigmas") {
        for (double& t : made.times) t = std::nearbyint(t);
      }
    }
    made.sigmas = with_end(sigmas, last ? sigmas.back() : 0.0);
    return made;
  }
  Found made;
  Numbers sigmas;
  const Numbers wide = numbers::as<double>(table);
  for (const int64_t t : spaced(options, steps, 1, options.integer("num_train_timesteps"))) {
    made.times.push_back(static_cast<double>(t));
    sigmas.push_back(numbers::between(static_cast<double>(t), wide));
  }
  made.sigmas = with_end(sigmas, last ? wide.front() : 0.0);
  return made;
}

// Solves matrix * x = wanted, by elimination with pivots; numbers that are not finite give such ones.
Numbers solved(std::vector<Numbers> matrix, Numbers wanted) {
  const size_t n = wanted.size();
  for (const Numbers& row : matrix) {
    for (const double value : row) {
      if (!std::isfinite(value)) return Numbers(n, NAN);
    }
  }
  for (size_t at = 0; at < n; ++at) {
    size_t pivot = at;
    for (size_t row = at + 1; row < n; ++row) {
      if (std::fabs(matrix[row][at]) > std::fabs(matrix[pivot][at])) pivot = row;
    }
    std::swap(matrix[at], matrix[pivot]), std::swap(wanted[at], wanted[pivot]);
    for (size_t row = at + 1; row < n; ++row) {
      const double factor = matrix[row][at] / matrix[at][at];
      for (size_t k = at; k < n; ++k) matrix[row][k] -= factor * matrix[at][k];
      wanted[row] -= factor * wanted[at];
    }
  }
  for (size_t at = n; at-- > 0;) {
    for (size_t k = at + 1; k < n; ++k) wanted[at] -= matrix[at][k] * wanted[k];
    wanted[at] /= matrix[at][at];
  }
  return wanted;
}

// Weights of the differences: the paper's eq. 12 for UniC; for UniP without the last condition; for few points in closed form.
Numbers rhos_of(const Numbers& ratios, double hh, double scale, size_t order, bool corrects) {
  if (order == (corrects ? 1u : 2u)) return {0.5};
  if (order == 1) return {};
  const size_t count = corrects ? order : order - 1;
  std::vector<Numbers> matrix;
  Numbers wanted;
  double phi = std::expm1(hh) / hh - 1, factorial = 1;
  for (size_t k = 1; k <= order; ++k) {
    if (k <= count) {
      Numbers powers;
      for (size_t i = 0; i < count; ++i) powers.push_back(std::pow(ratios[i], static_cast<double>(k - 1)));
      matrix.push_back(powers);
      wanted.push_back(phi * factorial / scale);
    }
    factorial *= static_cast<double>(k + 1);
    phi = phi / hh - 1 / factorial;
  }
  return solved(matrix, wanted);
}

struct Update {
  double x;
  Numbers weights;  // of m at the begin and before, newest first
  double end;       // of m at the end
};

std::vector<Row> rows_of(const Options& options, const Levels& levels, const Numbers& half_snr, const Numbers& signal, const Numbers& noise) {
  const size_t steps = levels.alpha.size(), most = static_cast<size_t>(options.integer("solver_order"));
  const bool clean = options.flag("predict_x0");
  const Numbers &a = clean ? signal : noise, &b = clean ? noise : signal;  // what is expanded, and what only scales
  // From level `begin` to the next.
  const auto update = [&](size_t begin, size_t order, bool corrects) {
    const double h = half_snr[begin + 1] - half_snr[begin], hh = clean ? -h : h, phi = std::expm1(hh);
    const double scale = options.is("solver_type", "bh1") ? hh : phi;
    Numbers ratios;
    for (size_t k = 1; k < order; ++k) ratios.push_back((half_snr[begin - k] - half_snr[begin]) / h);
    Numbers all = ratios;
    all.push_back(1.0);
    const Numbers rhos = rhos_of(all, hh, scale, order, corrects);
    Update made{b[begin + 1] / b[begin], Numbers(order, 0.0), 0.0};
    made.weights[0] = -a[begin + 1] * phi;
    for (size_t k = 0; k < std::min(ratios.size(), rhos.size()); ++k) {
      const double weight = a[begin + 1] * scale * rhos[k] / ratios[k];
      made.weights[k + 1] -= weight;
      made.weights[0] += weight;
    }
    made.end = corrects ? -a[begin + 1] * scale * rhos.back() : 0.0;
    made.weights[0] -= made.end;
    return made;
  };
  std::vector<size_t> orders;
  for (size_t i = 0; i < steps; ++i) orders.push_back(std::min({most, options.flag("lower_order_final") ? steps - i : most, i + 1}));
  std::vector<Row> rows;
  for (size_t i = 0; i < steps; ++i) {
    Row row;
    bool off = false;
    for (const Json& item : options["disable_corrector"].items) off = off || item.integer == static_cast<int64_t>(i) - 1;
    if (i > 0 && !off) {
      const Update found = update(i - 1, orders[i - 1], true);
      row.corrects = true;
      row.corrected = {found.x, found.end};
      row.corrected.insert(row.corrected.end(), found.weights.begin(), found.weights.end());
    }
    const Update found = update(i, orders[i], false);
    row.following = {found.x};
    row.following.insert(row.following.end(), found.weights.begin(), found.weights.end());
    row.converted = clean ? levels.clip(i) : levels.noise(i);
    rows.push_back(row);
  }
  return rows;
}

}  // namespace

void check_flow(const Options& options) {
  const bool flow = options.flag("use_flow_sigmas");
  if (flow != options.is("prediction_type", "flow_prediction")) {
    options.bad(std::string("use_flow_sigmas = ") + (flow ? "true" : "false") + " and prediction_type = " + options["prediction_type"].words(),
                "flow_prediction with flow sigmas, and no other prediction with them");
  }
}

Walk unipc(const Json& config, size_t steps, const Given& given, const std::string& where) {
  const Options options(config, UNIPC, where);
  const Found found = levels_of(options, steps, given);
  check_flow(options);
  if (options.is("prediction_type", "flow_prediction") && !options.flag("predict_x0")) options.bad("predict_x0 = false of a flow", "true");
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
  Numbers half_snr;
  for (size_t i = 0; i <= steps; ++i) half_snr.push_back(std::log(signal[i]) - std::log(noise[i]));
  Walk walk;
  walk.timesteps = times, walk.sigmas = found.sigmas;
  walk.rows = rows_of(options, levels, half_snr, signal, noise);
  return walk;
}

}  // namespace vditc::internal
