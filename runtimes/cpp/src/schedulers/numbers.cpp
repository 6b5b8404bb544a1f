#include "schedulers/numbers.h"

#include <algorithm>

namespace vditc::internal::numbers {

std::vector<double> evenly(double first, double last, size_t count) {
  std::vector<double> made(count);
  const double step = count > 1 ? (last - first) / static_cast<double>(count - 1) : 0;
  for (size_t i = 0; i < count; ++i) made[i] = static_cast<double>(i) * step + first;
  if (count > 1) made[count - 1] = last;
  return made;
}

double between(double at, const std::vector<double>& table) {
  const double last = static_cast<double>(table.size() - 1);
  if (!(at > 0)) return table.front();
  if (at >= last) return table.back();
  const auto low = static_cast<size_t>(at);
  if (static_cast<double>(low) == at) return table[low];
  return (table[low + 1] - table[low]) * (at - static_cast<double>(low)) + table[low];
}

namespace {

// Regularized incomplete beta function by its continued fraction (Lentz's method); DLMF 8.17.22.
double beta_below(double x, double a, double b) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - beta_below(1 - x, b, a);
  const double front = std::exp(a * std::log(x) + b * std::log1p(-x) + std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b)) / a;
  constexpr double TINY = 1e-300;
  double c = 1, d = 1 - (a + b) * x / (a + 1);
  d = 1 / (std::fabs(d) < TINY ? TINY : d);
  double fraction = d;
  for (int m = 1; m < 500; ++m) {
    for (int odd = 0; odd < 2; ++odd) {
      const double n = odd ? -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)) : m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
      d = 1 + n * d, c = 1 + n / c;
      d = 1 / (std::fabs(d) < TINY ? TINY : d);
      c = std::fabs(c) < TINY ? TINY : c;
      fraction *= c * d;
    }
    if (std::fabs(c * d - 1) < 1e-16) break;
  }
  return front * fraction;
}

}  // namespace

double beta_quantile(double share, double a, double b) {
  if (share <= 0) return 0;
  if (share >= 1) return 1;
  if (share > 0.5) return 1 - beta_quantile(1 - share, b, a);
  // Near 0 the share goes as x^a, so halving works on the logarithm of x.
  double low = -700, high = 0;
  for (int i = 0; i < 200 && high - low > 1e-17 * std::fabs(low); ++i) {
    const double middle = (low + high) / 2;
    if (middle == low || middle == high) break;
    (beta_below(std::exp(middle), a, b) < share ? low : high) = middle;
  }
  return std::exp((low + high) / 2);
}

}  // namespace vditc::internal::numbers
