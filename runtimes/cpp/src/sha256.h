// SHA-256 (FIPS 180-4) of memory and files, by the processor's own instructions where it has them.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace vditc::internal {

class Sha256 {
 public:
  Sha256();
  void add(const void* data, size_t bytes);
  std::string hex();  // 64 digits; the object is done with

 private:
  std::array<uint32_t, 8> state_;
  uint8_t block_[64];
  size_t held_ = 0;
  uint64_t total_ = 0;
};

namespace sha256 {
// Blocks of 64 bytes, one after the other, into the state.
using Compress = void (*)(uint32_t state[8], const uint8_t* blocks, size_t count);
extern const uint32_t ROUND[64];
void compress_plain(uint32_t state[8], const uint8_t* blocks, size_t count);
// nullptr: not for this processor.
Compress processor_compress();
Compress best();
}  // namespace sha256

// Of a whole file, which must be of `bytes` bytes. `on_piece`: told of each piece that was read; false stops, and the answer is "".
std::string file_sha256(const std::string& path, uint64_t bytes, const std::function<bool(uint64_t)>& on_piece);

}  // namespace vditc::internal
