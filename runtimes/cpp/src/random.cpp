#include "random.h"

#include <cmath>
#include <iterator>

namespace vditc::internal {
namespace {

// O'Neill's seed_seq replacement (pcg-random.org, "Developing a seed_seq alternative"), as numpy.random.SeedSequence has it.
class Seeds {
 public:
  Seeds(const uint32_t* entropy, size_t words) {
    uint32_t mixing = 0x43b0d7e5;
    const auto hashed = [&mixing](uint32_t value) {
      value ^= mixing;
      mixing *= 0x931e8875;
      value *= mixing;
      return value ^ value >> 16;
    };
    const auto mixed = [](uint32_t x, uint32_t y) {
      const uint32_t made = 0xca01f9dd * x - 0x4973f715 * y;
      return made ^ made >> 16;
    };
    for (size_t i = 0; i < 4; ++i) pool_[i] = hashed(i < words ? entropy[i] : 0);
    for (size_t from = 0; from < 4; ++from) {
      for (size_t to = 0; to < 4; ++to) {
        if (from != to) pool_[to] = mixed(pool_[to], hashed(pool_[from]));
      }
    }
    for (size_t from = 4; from < words; ++from) {
      for (uint32_t& to : pool_) to = mixed(to, hashed(entropy[from]));
    }
  }
  uint64_t next() {
    const uint64_t low = word();
    return low | uint64_t{word()} << 32;
  }

 private:
  uint32_t pool_[4];
  uint32_t hash_ = 0x8b51f9dd;
  size_t at_ = 0;
  uint32_t word() {
    uint32_t value = pool_[at_++ % 4] ^ hash_;
    hash_ *= 0x58f38ded;
    value *= hash_;
    return value ^ value >> 16;
  }
};

// 256 layers of equal area under exp(-x^2 / 2); the last begins at R. Widths are of 23 bits, as fractions of float32.
constexpr double R = 3.6541528853610088;
struct Ziggurat {
  uint32_t inner[256];  // below it, a number of 23 bits is in the layer for sure
  float width[256], height[256];
  Ziggurat() {
    const double area = R * std::exp(-0.5 * R * R) + std::sqrt(std::acos(-1.0) / 2) * std::erfc(R / std::sqrt(2.0));
    double x[257];
    x[255] = R;
    x[256] = area / std::exp(-0.5 * R * R);  // as if the tail were a box
    for (int i = 254; i > 0; --i) x[i] = std::sqrt(-2 * std::log(area / x[i + 1] + std::exp(-0.5 * x[i + 1] * x[i + 1])));
    x[0] = 0;
    for (int i = 0; i < 256; ++i) {  // layer 0 is the lowest, with the tail; layer i lies between x[i] and x[i - 1]
      const double outer = i == 0 ? x[256] : x[i], next = i == 0 ? R : x[i - 1];
      inner[i] = static_cast<uint32_t>(next / outer * 8388608.0);
      width[i] = static_cast<float>(outer / 8388608.0);
      height[i] = static_cast<float>(i == 0 ? 1.0 : std::exp(-0.5 * x[i] * x[i]));
    }
  }
};

const Ziggurat& ziggurat() {
  static const Ziggurat made;
  return made;
}

}  // namespace

Random::Random(std::initializer_list<uint64_t> seed) {
  uint32_t entropy[8];
  size_t count = 0;
  for (uint64_t word : seed) {
    do {
      if (count < std::size(entropy)) entropy[count++] = static_cast<uint32_t>(word);
      word >>= 32;
    } while (word != 0);
  }
  Seeds seeds(entropy, count);
  unsigned __int128 words[2];
  for (auto& word : words) {
    const uint64_t high = seeds.next();
    word = static_cast<unsigned __int128>(high) << 64 | seeds.next();
  }
  step_ = words[1] << 1 | 1;
  next64();
  state_ += words[0];
  next64();
}

uint64_t Random::next64() {
  constexpr unsigned __int128 TIMES = static_cast<unsigned __int128>(0x2360ed051fc65da4ULL) << 64 | 0x4385df649fccf645ULL;
  state_ = state_ * TIMES + step_;
  const uint64_t folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
  const unsigned by = static_cast<unsigned>(state_ >> 122);
  return folded >> by | folded << (-by & 63);
}

uint32_t Random::next32() {
  if (half_) {
    half_ = false;
    return left_;
  }
  const uint64_t both = next64();
  half_ = true;
  left_ = static_cast<uint32_t>(both >> 32);
  return static_cast<uint32_t>(both);
}

float Random::uniform() { return static_cast<float>(next32() >> 8) * (1.0f / 16777216.0f); }

void Random::normal(float* out, size_t count) {
  const Ziggurat& tables = ziggurat();
  for (size_t i = 0; i < count; ++i) {
    for (;;) {
      const uint32_t drawn = next32(), layer = drawn & 0xff, size = drawn >> 9;
      const float x = static_cast<float>(size) * tables.width[layer], with_sign = drawn >> 8 & 1 ? -x : x;
      if (size < tables.inner[layer]) {
        out[i] = with_sign;
        break;
      }
      if (layer == 0) {
        float a, b;
        do {
          a = -static_cast<float>(1 / R) * std::log1p(-uniform());
          b = -std::log1p(-uniform());
        } while (!(b + b > a * a));
        out[i] = size >> 8 & 1 ? -(static_cast<float>(R) + a) : static_cast<float>(R) + a;
        break;
      }
      const float y = (tables.height[layer - 1] - tables.height[layer]) * uniform() + tables.height[layer];
      if (y < std::exp(-0.5 * static_cast<double>(with_sign) * static_cast<double>(with_sign))) {
        out[i] = with_sign;
        break;
      }
    }
  }
}

}  // namespace vditc::internal
