#include "schedulers/betas.h"

#include <algorithm>
#include <cmath>

namespace vditc::internal {

template <class T>
std::vector<T> torch_linspace(double first, double last, size_t count) {
  const T a = static_cast<T>(first), b = static_cast<T>(last);
  const T step = (b - a) / static_cast<T>(count > 1 ? count - 1 : 1);
  std::vector<T> made(count);
  for (size_t i = 0; i < count; ++i) {
    made[i] = static_cast<T>(i < count / 2 ? static_cast<double>(a) + static_cast<double>(step) * static_cast<double>(i)
                                           : static_cast<double>(b) - static_cast<double>(step) * static_cast<double>(count - 1 - i));
  }
  return made;
}
template std::vector<float> torch_linspace<float>(double, double, size_t);
template std::vector<double> torch_linspace<double>(double, double, size_t);

namespace {

// Variances that each training step adds.
template <class T>
std::vector<T> betas_of(const Options& options) {
  constexpr int64_t MOST = 1000000;
  if (options.integer("num_train_timesteps") < 2 || options.integer("num_train_timesteps") > MOST) {
    options.bad("num_train_timesteps = " + options["num_train_timesteps"].words(), text("2 to %lld", static_cast<long long>(MOST)));
  }
  const auto count = static_cast<size_t>(options.integer("num_train_timesteps"));
  const Json& own = options["trained_betas"];
  if (own.is(Json::LIST)) {
    std::vector<T> made;
    for (const Json& item : own.items) {
      if (!item.is_number()) options.bad("trained_betas with " + item.words(), "numbers");
      made.push_back(static_cast<T>(static_cast<float>(item.real)));
    }
    if (made.size() != count) options.bad(text("%zu trained_betas", made.size()), text("num_train_timesteps = %zu of them", count));
    return made;
  }
  const double first = options.real("beta_start"), last = options.real("beta_end");
  if (options.is("beta_schedule", "linear")) return torch_linspace<T>(first, last, count);
  if (options.is("beta_schedule", "scaled_linear")) {
    std::vector<T> made = torch_linspace<T>(std::pow(first, 0.5), std::pow(last, 0.5), count);
    for (T& value : made) value = value * value;
    return made;
  }
  const auto left = [](double t) {
    const double c = std::cos((t + 0.008) / 1.008 * std::acos(-1.0) / 2);
    return c * c;
  };
  std::vector<T> made(count);
  const double total = static_cast<double>(count);
  for (size_t i = 0; i < count; ++i) {
    made[i] = static_cast<T>(static_cast<float>(std::min(1 - left(static_cast<double>(i + 1) / total) / left(static_cast<double>(i) / total), 0.999)));
  }
  return made;
}

// Running products of 1 - beta, summed up in float64 as PyTorch does.
template <class T>
std::vector<T> products(const std::vector<T>& betas) {
  std::vector<T> made(betas.size());
  double product = 1;
  for (size_t i = 0; i < betas.size(); ++i) {
    product *= static_cast<double>(static_cast<T>(T{1} - betas[i]));
    made[i] = static_cast<T>(product);
  }
  return made;
}

}  // namespace

template <class T>
std::vector<T> signal_shares(const Options& options, bool rescale, bool terminal) {
  constexpr double TERMINAL = 1.0 / (1 << 24);  // share of the signal that stands for none, where its logarithm is asked for
  std::vector<T> betas = betas_of<T>(options);
  if (!rescale) return products(betas);
  std::vector<T> shares = products(betas);
  for (T& share : shares) share = std::sqrt(share);
  const T first = shares.front(), last = shares.back(), scale = first / (first - last);
  for (T& share : shares) {
    share = (share - last) * scale;
    share = share * share;
  }
  for (size_t i = 0; i < shares.size(); ++i) betas[i] = T{1} - (i == 0 ? shares[0] : shares[i] / shares[i - 1]);
  std::vector<T> found = products(betas);
  if (terminal) found.back() = static_cast<T>(TERMINAL);
  return found;
}
template std::vector<float> signal_shares<float>(const Options&, bool, bool);
template std::vector<double> signal_shares<double>(const Options&, bool, bool);

std::vector<float> sigma_table(const std::vector<float>& shares) {
  std::vector<float> made(shares.size());
  for (size_t i = 0; i < shares.size(); ++i) made[i] = std::sqrt((1.0f - shares[i]) / shares[i]);
  return made;
}

std::vector<int64_t> spaced(const Options& options, size_t steps, size_t ends, int64_t last) {
  const int64_t trained = options.integer("num_train_timesteps");
  if (static_cast<int64_t>(steps) > trained) {
    options.bad(text("%zu steps", steps), text("at most the %lld of the training", static_cast<long long>(trained)), "lower the number of steps");
  }
  std::vector<double> times;
  const double whole = static_cast<double>(last);
  if (options.is("timestep_spacing", "linspace")) {
    times = numbers::evenly(0, whole - 1, steps + ends);
    for (double& t : times) t = std::nearbyint(t);
    std::reverse(times.begin(), times.end());
  } else if (options.is("timestep_spacing", "leading")) {
    const int64_t stride = last / static_cast<int64_t>(steps + ends);
    for (size_t i = steps + ends; i-- > 0;) times.push_back(static_cast<double>(static_cast<int64_t>(i) * stride + options.integer("steps_offset")));
  } else {
    const double stride = -static_cast<double>(trained) / static_cast<double>(steps), delta = (whole + stride) - whole;
    const auto count = static_cast<size_t>(std::max(0.0, std::ceil((0 - whole) / stride)));
    for (size_t i = 0; i < count; ++i) times.push_back(std::nearbyint(whole + static_cast<double>(i) * delta) - 1);
  }
  times.resize(std::min(times.size(), steps));
  std::vector<int64_t> found = numbers::as<int64_t>(times);
  if (found.size() != steps || *std::min_element(found.begin(), found.end()) < 0 || *std::max_element(found.begin(), found.end()) >= trained) {
    options.bad(text("%zu steps with timestep_spacing = ", steps) + options["timestep_spacing"].words(), "times of the training",
                "change the number of steps");
  }
  return found;
}

std::vector<double> times_of(const std::vector<double>& sigmas, const std::vector<float>& log_table) {
  std::vector<double> found;
  for (const double sigma : sigmas) {
    const double log_sigma = std::log(std::max(sigma, 1e-10));
    size_t low = 0;
    for (size_t i = 0; i < log_table.size(); ++i) {
      if (log_sigma - static_cast<double>(log_table[i]) >= 0) low = i;
    }
    low = std::min(low, log_table.size() - 2);
    const double wide = static_cast<double>(log_table[low] - log_table[low + 1]);
    const double share = std::min(std::max((static_cast<double>(log_table[low]) - log_sigma) / wide, 0.0), 1.0);
    found.push_back((1 - share) * static_cast<double>(low) + share * static_cast<double>(low + 1));
  }
  return found;
}

std::vector<double> converted(const std::string& kind, double table_first, double table_last, size_t steps, double low, double high) {
  if (std::isnan(low)) low = table_last;
  if (std::isnan(high)) high = table_first;
  std::vector<double> made = numbers::evenly(0, 1, steps);
  if (kind == "use_karras_sigmas") {
    const double small = std::pow(low, 1 / 7.0), large = std::pow(high, 1 / 7.0);
    for (double& ramp : made) ramp = std::pow(large + ramp * (small - large), 7.0);
    return made;
  }
  if (kind == "use_exponential_sigmas") {
    made = numbers::evenly(std::log(high), std::log(low), steps);
    for (double& value : made) value = std::exp(value);
    return made;
  }
  for (double& ramp : made) ramp = low + numbers::beta_quantile(1 - ramp, 0.6, 0.6) * (high - low);
  return made;
}

std::vector<float> with_end(const std::vector<double>& sigmas, double end) {
  std::vector<float> made = numbers::as<float>(sigmas);
  made.push_back(static_cast<float>(end));
  return made;
}

void preserving(const std::vector<double>& sigmas, std::vector<double>& signal, std::vector<double>& noise) {
  signal.clear(), noise.clear();
  for (const double sigma : sigmas) {
    signal.push_back(1 / std::sqrt(sigma * sigma + 1));
    noise.push_back(sigma * signal.back());
  }
}

double real_or_nan(const Json& value) { return value.is_number() ? value.real : std::nan(""); }

std::vector<double> logarithms(const std::vector<double>& values) {
  std::vector<double> made;
  for (const double value : values) made.push_back(std::log(value));
  return made;
}

}  // namespace vditc::internal
