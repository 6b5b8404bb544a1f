// Arrays as numpy makes them, so that rounding is the same.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace vditc::internal::numbers {

// numpy.linspace, float64.
std::vector<double> evenly(double first, double last, size_t count);
// numpy.interp of a point between (0, 1, 2, ...) and `table`.
double between(double at, const std::vector<double>& table);
// Share x at which the beta distribution with these parameters has so much below (scipy.stats.beta.ppf).
double beta_quantile(double share, double a, double b);

template <class To, class From>
std::vector<To> as(const std::vector<From>& values) {
  std::vector<To> made(values.size());
  for (size_t i = 0; i < values.size(); ++i) made[i] = static_cast<To>(values[i]);
  return made;
}

}  // namespace vditc::internal::numbers
