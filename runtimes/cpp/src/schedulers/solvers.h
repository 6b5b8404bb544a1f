// The walks of diffusers' schedulers, one class a file; `walk_of` finds them by name.
#pragma once
#include <memory>
#include <string>

#include "schedulers/betas.h"
#include "schedulers/options.h"
#include "schedulers/pipelines.h"
#include "schedulers/walk.h"

namespace vditc::internal {

using Build = Walk (*)(const Json& config, size_t steps, const Given& given, const std::string& where);
struct Solver {
  const char* name;  // class of diffusers
  Build build;
  const SchedulerClass& about;
};

extern const SchedulerClass FLOW_MATCH_EULER, UNIPC, DPM, DDIM, COGVIDEOX, EULER, EDM_EULER, EDM_DPM;

Walk flow_match_euler(const Json& config, size_t steps, const Given& given, const std::string& where);
Walk unipc(const Json& config, size_t steps, const Given& given, const std::string& where);
Walk dpm(const Json& config, size_t steps, const Given& given, const std::string& where);
Walk ddim(const Json& config, size_t steps, const Given& given, const std::string& where);
Walk cogvideox_ddim(const Json& config, size_t steps, const Given& given, const std::string& where);
Walk cogvideox_dpm(const Json& config, size_t steps, const Given& given, const std::string& where);
Walk euler(const Json& config, size_t steps, const Given& given, const std::string& where);
Walk edm(const Json& config, size_t steps, const Given& given, const std::string& where);

// Shared by several files.
template <class T>
std::vector<T> shifted(std::vector<T> sigmas, double shift) {  // more steps at high noise for a shift above 1
  const T a = static_cast<T>(shift), b = static_cast<T>(shift - 1);
  for (T& s : sigmas) s = a * s / (T{1} + b * s);
  return sigmas;
}
template <class T>
std::vector<T> dynamic(std::vector<T> sigmas, double mu, const Options& options) {  // a shift that depends on the clip's size, exp(mu) or mu
  const T shift = static_cast<T>(options.is("time_shift_type", "exponential") ? std::exp(mu) : mu);
  for (T& s : sigmas) s = shift / (shift + (T{1} / s - T{1}));
  return sigmas;
}
template <class T>
std::vector<T> stretched(std::vector<T> sigmas, double terminal) {  // until the last level is `terminal` (LTX-Video)
  const T scale = (T{1} - sigmas.back()) / static_cast<T>(1 - terminal);
  for (T& s : sigmas) s = T{1} - (T{1} - s) / scale;
  return sigmas;
}
void check_flow(const Options& options);
// Rows of DPM-Solver from signal and noise of the levels [steps + 1].
std::vector<Row> dpm_rows(const Options& options, const Levels& levels, const std::vector<double>& signal, const std::vector<double>& noise);

// The configuration of the class that walks: its own, a stand-in's, or that of `solver` ("": none asked) over the same noise levels.
Json solver_config(const Json& config, const std::string& solver, const std::string& where);
// The same with a fixed shift of its noise levels.
Json shifted_config(const Json& config, double shift, const std::string& where);
// The walk of a configuration, `_class_name` included, in so many steps. Error for what vditc does not have or compute.
std::shared_ptr<const Walk> walk_of(const Json& config, int64_t steps, const Given& given, const std::string& where);
// The walk of a table of one-step moves (`vditc.schedule.Schedule`).
std::shared_ptr<const Walk> walk_of_table(const Json& schedule, const std::string& where);

}  // namespace vditc::internal
