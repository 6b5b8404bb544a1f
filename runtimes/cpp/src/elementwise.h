// Weighted sums of float32 arrays; every product and every sum is rounded to float32, in order, as numpy does.
#pragma once
#include <cstddef>

namespace vditc::internal {

constexpr size_t MAX_TERMS = 6;

struct Terms {
  size_t count = 0;
  float weights[MAX_TERMS];
  const float* arrays[MAX_TERMS];
  void add(double weight, const float* array) {  // what weighs nothing is left out
    if (weight == 0.0) return;
    weights[count] = static_cast<float>(weight);
    arrays[count++] = array;
  }
};

// `out` [begin, end) = the sum; `out` may be the first term.
void combine(float* out, const Terms& terms, size_t begin, size_t end);

}  // namespace vditc::internal
