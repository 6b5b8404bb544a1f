// Arithmetic that null's functions share.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "dtype.h"

namespace vditc::internal {

inline double bounded(double mean) { return mean / (1 + std::fabs(mean)); }

class NullMean {
 public:
  // Of `count` numbers in their order, 0 of none. Nothing is allocated.
  double of(const uint8_t* data, int32_t dtype, size_t count) {
    double sum = 0;
    const size_t piece = rows_.size(), size = dtype_size(dtype);
    for (size_t at = 0; at < count; at += piece) {
      const size_t here = std::min(piece, count - at);
      convert(data + at * size, dtype, rows_.data(), VDITC_F64, here);
      for (size_t i = 0; i < here; ++i) sum += rows_[i];
    }
    return count ? sum / static_cast<double>(count) : 0;
  }

 private:
  std::vector<double> rows_ = std::vector<double>(2 * 1024);
};

}  // namespace vditc::internal
