// GELU in float32, of every kernel that computes it (Hendrycks and Gimpel, arXiv 1606.08415).
#pragma once
#include "native/device.h"

namespace vditc {

// 1 / a to within 2^-23 (PTX ISA, rcp.approx).
VDITC_DEVICE float nearly_reciprocal(float a) {
#ifdef VDITC_EMULATED
  return 1.0f / a;
#else
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(out) : "f"(a));
  return out;
#endif
}

// x Phi(x) = max(x, 0) - |x| Phi(-|x|), and the last term is |x| exp(-x^2 / 2) t g(t), t = 1 / (1 + 0.297 |x|), with a polynomial g of
// degree 7 that is away by 2^-22 at most: so no tail cancels. In float32, with exact exponentials, all of it is within 2^-20 for x > -3.
// Infinities as in PyTorch and ONNX, by both forms: x Phi(x) is infinity, and of -infinity times 0 NaN. Where |x| is bounded, the term is 0.
VDITC_DEVICE float gelu_erf(float x) {
  const float size = fmaxf(-x, fminf(x, 64.0f)), t = nearly_reciprocal(1.0f + 0.29698485f * size);
  float g = 0.035107616f;
  g = g * t - 0.16009492f;
  g = g * t + 0.2202784f;
  g = g * t - 0.06520923f;
  g = g * t + 0.13434236f;
  g = g * t + 0.097371995f;
  g = g * t + 0.11979145f;
  g = g * t + 0.11841221f;
  return fmaxf(x, 0.0f) - size * t * g * power_of_two(x * x * -0.72134752f);  // log2(e) / 2
}

// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
VDITC_DEVICE float gelu_tanh(float x) {
  const float exponent = x * (-2.3022082f - 0.10294324f * (x * x));  // -2 u log2(e)
  return x * nearly_reciprocal(1.0f + power_of_two(exponent));
}

VDITC_DEVICE float gelu(float x, bool tanh_form) { return tanh_form ? gelu_tanh(x) : gelu_erf(x); }

}  // namespace vditc
