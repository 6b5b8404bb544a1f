// What a pipeline of diffusers hands to its scheduler beside the number of steps: its own noise levels, and the shift of a clip's size.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "schedulers/options.h"

namespace vditc::internal {

struct Given {
  std::string pipeline;        // diffusers' class; "": none
  int64_t size[3] = {0, 0, 0};  // of the latents: frames, height, width; 0: not known
  int64_t patch = 1;           // latents of a token

  // The pipeline's own noise levels before any shift [steps]; empty: the scheduler's.
  std::vector<float> spacing(size_t steps) const;
  // The shift of the clip's size: linear in the number of tokens. Error where the pipeline computes none.
  double mu(const Options& options) const;
};

}  // namespace vditc::internal
