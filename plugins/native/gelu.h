// GELU in float32, of every kernel that computes it (Hendrycks and Gimpel, arXiv 1606.08415).
#pragma once
#include "native/device.h"

namespace vditc {

// No product and sum may be contracted, or kernels would differ in how their compilers see this.
VDITC_DEVICE float gelu(float x, bool tanh_form) {
  if (!tanh_form) return multiply(multiply(0.5f, x), add(1.0f, erff(multiply(x, 0.7071067811865476f))));  // 1 / sqrt(2)
  // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)): nothing cancels where u is negative, and it is less work than tanh.
  const float cubed = multiply(multiply(multiply(0.044715f, x), x), x);
  const float twice = multiply(1.5957691216057308f, add(x, cubed));  // 2 sqrt(2 / pi)
#ifdef VDITC_EMULATED
  return x / (1.0f + std::exp(-twice));
#else
  return __fdividef(x, add(1.0f, expf(-twice)));  // 2 units in the last place
#endif
}

}  // namespace vditc
