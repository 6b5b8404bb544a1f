// numpy's default generator: PCG64 seeded by SeedSequence, normals by the ziggurat (Marsaglia & Tsang 2000). Bit for bit.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace vditc::internal {

class Random {
 public:
  // As numpy.random.default_rng(seed), or of a tuple of such numbers.
  explicit Random(std::initializer_list<uint64_t> seed);
  // Of standard_normal(count, numpy.float32), and what a further call would go on with.
  void normal(float* out, size_t count);

 private:
  unsigned __int128 state_ = 0, step_ = 0;
  bool half_ = false;  // of 64 bits a second 32 are left
  uint32_t left_ = 0;

  uint64_t next64();
  uint32_t next32();
  float uniform();
};

}  // namespace vditc::internal
