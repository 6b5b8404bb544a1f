#include "sha256.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "status.h"

namespace vditc::internal {
namespace sha256 {

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
alignas(16) const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

namespace {
uint32_t turned(uint32_t x, int by) { return x >> by | x << (32 - by); }
}  // namespace

void compress_plain(uint32_t state[8], const uint8_t* blocks, size_t count) {
  for (; count > 0; --count, blocks += 64) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
      const uint8_t* at = blocks + 4 * i;
      w[i] = uint32_t{at[0]} << 24 | uint32_t{at[1]} << 16 | uint32_t{at[2]} << 8 | at[3];
    }
    for (int i = 16; i < 64; ++i) {
      const uint32_t a = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3;
      const uint32_t b = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    uint32_t s[8];
    std::memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; ++i) {
      const uint32_t big1 = turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25), choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
      const uint32_t t1 = s[7] + big1 + choice + ROUND[i] + w[i];
      const uint32_t big0 = turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22);
      const uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
      std::memmove(s + 1, s, 7 * sizeof *s);
      s[4] += t1;
      s[0] = t1 + big0 + majority;
    }
    for (int i = 0; i < 8; ++i) state[i] += s[i];
  }
}

Compress best() {
  static const Compress chosen = [] {
    const Compress own = processor_compress();
    return own != nullptr ? own : compress_plain;
  }();
  return chosen;
}

}  // namespace sha256

Sha256::Sha256() : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

void Sha256::add(const void* data, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(data);
  total_ += bytes;
  if (held_ > 0) {
    const size_t taken = std::min(bytes, sizeof block_ - held_);
    std::memcpy(block_ + held_, at, taken);
    held_ += taken, at += taken, bytes -= taken;
    if (held_ < sizeof block_) return;
    sha256::best()(state_.data(), block_, 1);
    held_ = 0;
  }
  sha256::best()(state_.data(), at, bytes / 64);
  held_ = bytes % 64;
  if (held_ > 0) std::memcpy(block_, at + bytes - held_, held_);
}

std::string Sha256::hex() {
  const uint64_t bits = total_ * 8;
  const uint8_t one = 0x80, zero = 0;
  add(&one, 1);
  while (held_ != 56) add(&zero, 1);
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  add(length, sizeof length);
  std::string made;
  for (const uint32_t word : state_) made += text("%08x", static_cast<unsigned>(word));
  return made;
}

std::string file_sha256(const std::string& path, uint64_t bytes, const std::function<bool(uint64_t)>& on_piece) {
  constexpr size_t PIECE = 1 << 20;
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw Error(VDITC_ERROR_IO, path, text("no readable file (%s)", std::strerror(errno)), "a file of the bundle", "check its rights");
  struct Closed {
    int file;
    ~Closed() { ::close(file); }
  } closed{file};
  ::posix_fadvise(file, 0, 0, POSIX_FADV_SEQUENTIAL);
  const std::unique_ptr<uint8_t[]> piece(new uint8_t[PIECE]);
  Sha256 digest;
  uint64_t read = 0;
  while (read < bytes) {
    const ssize_t got = ::read(file, piece.get(), static_cast<size_t>(std::min<uint64_t>(PIECE, bytes - read)));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(VDITC_ERROR_IO, path, text("an error while reading (%s)", std::strerror(errno)), "a whole file", "check the disk");
    if (got == 0) throw Error(VDITC_ERROR_DAMAGED, path, text("%llu bytes", static_cast<unsigned long long>(read)),
                              text("%llu bytes", static_cast<unsigned long long>(bytes)), "copy the bundle again");
    digest.add(piece.get(), static_cast<size_t>(got));
    read += static_cast<uint64_t>(got);
    if (on_piece && !on_piece(static_cast<uint64_t>(got))) return "";
  }
  return digest.hex();
}

}  // namespace vditc::internal
