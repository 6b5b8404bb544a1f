#include "elementwise.h"

#include <algorithm>
#include <cstring>

namespace vditc::internal {

void combine(float* out, const Terms& terms, size_t begin, size_t end) {
  constexpr size_t PIECE = 2048;  // numbers: sums stay in the first cache
  for (size_t at = begin; at < end; at += PIECE) {
    const size_t count = std::min(PIECE, end - at);
    float* to = out + at;
    if (terms.count == 0) {
      std::fill(to, to + count, 0.0f);
      continue;
    }
    const float first = terms.weights[0];
    const float* of = terms.arrays[0] + at;
    if (first == 1.0f) {
      if (to != of) std::memcpy(to, of, count * sizeof *to);
    } else {
      for (size_t i = 0; i < count; ++i) to[i] = of[i] * first;
    }
    for (size_t term = 1; term < terms.count; ++term) {
      const float weight = terms.weights[term];
      const float* more = terms.arrays[term] + at;
      for (size_t i = 0; i < count; ++i) {
        const float product = more[i] * weight;
        to[i] = to[i] + product;
      }
    }
  }
}

}  // namespace vditc::internal
