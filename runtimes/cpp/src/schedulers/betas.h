// Noise levels of models that were trained with betas, and the times of a number of steps; float32 where diffusers computes in it.
#pragma once
#include <string>
#include <vector>

#include "schedulers/numbers.h"
#include "schedulers/options.h"

namespace vditc::internal {

// Options that all schedulers with betas share, with DDPM's defaults; pieces of JSON.
#define VDITC_BETAS "\"num_train_timesteps\":1000,\"beta_start\":0.0001,\"beta_end\":0.02,\"beta_schedule\":\"linear\",\"trained_betas\":null"
#define VDITC_CONVERSIONS "\"use_karras_sigmas\":false,\"use_exponential_sigmas\":false,\"use_beta_sigmas\":false"
#define VDITC_SCHEDULES "\"beta_schedule\":[\"linear\",\"scaled_linear\",\"squaredcos_cap_v2\"]"
#define VDITC_SPACINGS "\"timestep_spacing\":[\"linspace\",\"leading\",\"trailing\"]"

// PyTorch's linspace: from both ends to the middle; its float32 products are not rounded before they are added.
template <class T>
std::vector<T> torch_linspace(double first, double last, size_t count);

// The signal's share of the variance at each training step (alphas_cumprod). T is double where diffusers computes `scaled_linear` in it.
// `rescale`: betas are changed until the last share is 0 (Lin et al., arXiv 2305.08891, algorithm 1); `terminal`: or next to it.
template <class T>
std::vector<T> signal_shares(const Options& options, bool rescale, bool terminal);

// Noise for one unit of signal at each training step.
std::vector<float> sigma_table(const std::vector<float>& shares);

// Training steps that a walk visits, falling (Lin et al., table 2). `ends`: 1 where linspace and leading leave out the last of steps + 1
// points. `last`: training steps that may be visited.
std::vector<int64_t> spaced(const Options& options, size_t steps, size_t ends, int64_t last);

// Training steps, with fractions, of noise levels: between the neighbours of their logarithm.
std::vector<double> times_of(const std::vector<double>& sigmas, const std::vector<float>& log_table);

// Noise levels between the last and the first of a falling table, unless `low` and `high` (NaN: not given) say others.
// Karras: Karras et al., arXiv 2206.00364, eq. 5 with rho = 7. Beta: Lee et al., arXiv 2407.12173, alpha = beta = 0.6.
std::vector<double> converted(const std::string& kind, double table_first, double table_last, size_t steps, double low, double high);

// [steps + 1].
std::vector<float> with_end(const std::vector<double>& sigmas, double end);

// Signal and noise of latents of variance one, for noise levels in units of the signal.
void preserving(const std::vector<double>& sigmas, std::vector<double>& signal, std::vector<double>& noise);

double real_or_nan(const Json& value);
std::vector<double> logarithms(const std::vector<double>& values);

}  // namespace vditc::internal
