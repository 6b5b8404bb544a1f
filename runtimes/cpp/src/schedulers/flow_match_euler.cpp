// Euler steps of flow matching (Lipman et al., arXiv 2210.02747), with shifted noise levels (Esser et al., arXiv 2403.03206, eq. 23):
// diffusers' FlowMatchEulerDiscreteScheduler.
#include "schedulers/solvers.h"

namespace vditc::internal {

const SchedulerClass FLOW_MATCH_EULER = {
    "{\"num_train_timesteps\":1000,\"shift\":1.0,\"use_dynamic_shifting\":false,\"base_shift\":0.5,\"max_shift\":1.15,"
    "\"base_image_seq_len\":256,\"max_image_seq_len\":4096,\"invert_sigmas\":false,\"shift_terminal\":null," VDITC_CONVERSIONS
    ",\"time_shift_type\":\"exponential\",\"stochastic_sampling\":false}",
    "{\"time_shift_type\":[\"exponential\",\"linear\"],\"stochastic_sampling\":[false]}"};

namespace {

template <class T>
std::vector<float> finished(std::vector<T> sigmas, size_t steps, const Given& given, const Options& options, const std::string& conversion) {
  sigmas = options.flag("use_dynamic_shifting") ? dynamic(std::move(sigmas), given.mu(options), options)
                                                : shifted(std::move(sigmas), options.real("shift"));
  if (options["shift_terminal"].is_number() && options.real("shift_terminal") != 0) sigmas = stretched(std::move(sigmas), options.real("shift_terminal"));
  if (conversion.empty()) return numbers::as<float>(sigmas);
  return numbers::as<float>(converted(conversion, sigmas.front(), sigmas.back(), steps, NAN, NAN));
}

}  // namespace

Walk flow_match_euler(const Json& config, size_t steps, const Given& given, const std::string& where) {
  const Options options(config, FLOW_MATCH_EULER, where);
  const std::string conversion = options.one_of({"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"});
  const double trained = options.real("num_train_timesteps");
  const bool inverted = options.flag("invert_sigmas");
  std::vector<float> sigmas = given.spacing(steps);
  if (sigmas.empty()) {
    const double fixed = options.flag("use_dynamic_shifting") ? 1.0 : options.real("shift");
    const float whole = static_cast<float>(trained);
    const std::vector<float> ends = shifted(std::vector<float>{whole / whole, 1.0f / whole}, fixed);
    std::vector<double> levels = numbers::evenly(static_cast<double>(ends[0]) * trained, static_cast<double>(ends[1]) * trained, steps);
    for (double& level : levels) level /= trained;
    sigmas = finished(std::move(levels), steps, given, options, conversion);
  } else {
    sigmas = finished(std::move(sigmas), steps, given, options, conversion);
  }
  Walk walk;
  for (float& s : sigmas) {
    if (inverted) s = 1.0f - s;
    walk.timesteps.push_back(s * static_cast<float>(trained));
  }
  sigmas.push_back(inverted ? 1.0f : 0.0f);
  for (size_t i = 0; i < steps; ++i) {
    Row row;
    row.following = {1.0, static_cast<double>(sigmas[i + 1] - sigmas[i])};
    walk.rows.push_back(row);
  }
  walk.sigmas = std::move(sigmas);
  return walk;
}

}  // namespace vditc::internal
