// The charsmap of sentencepiece: a double-array trie of byte strings, and what they become.
//
// Units of 32 bits: bits 0 to 7 are the label, bit 8 says that a value follows, bits 10 to 30 are the offset, shifted by 8 where bit 9 is set; a
// unit with bit 31 is a value: where in the texts, which end with zero bytes, the new text begins.
#include <cstring>

#include "status.h"
#include "text/normalizers.h"

namespace vditc::internal {
namespace {

constexpr size_t SHORT = 6;  // bytes, from which on a cluster is looked up character by character

std::string bytes_of(const std::string& base64, const std::string& where) {
  std::string made;
  uint32_t bits = 0, held = 0;
  for (const char c : base64) {
    if (c == '=') break;
    const uint32_t value = c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26 : c >= '0' && c <= '9' ? c - '0' + 52 : c == '+' ? 62 : c == '/' ? 63 : 64;
    if (value > 63) damaged(where, "a charsmap that is not in base 64", "what sentencepiece wrote");
    bits = bits << 6 | value;
    held += 6;
    if (held >= 8) made += static_cast<char>(bits >> (held -= 8));
  }
  return made;
}

class Precompiled : public Normalizer {
 public:
  Precompiled(const std::string& base64, const std::string& where) {
    const std::string all = bytes_of(base64, where);
    uint32_t size = 0;
    if (all.size() >= sizeof size) std::memcpy(&size, all.data(), sizeof size);
    if (all.size() < sizeof size || size % sizeof(uint32_t) != 0 || size == 0 || size > all.size() - sizeof size) {
      damaged(where, text("a charsmap of %zu bytes with a trie of %u", all.size(), size), "a trie, then texts");
    }
    units_.resize(size / sizeof(uint32_t));
    std::memcpy(units_.data(), all.data() + sizeof size, size);
    texts_ = all.substr(sizeof size + size);
    decoded(texts_, where);
  }

  Text normalized(const Text& text) const override {
    std::vector<Changed> made;
    bool modified = false;
    for (size_t begin = 0, end; begin < text.size(); begin = end) {
      end = unicode::grapheme_end(text, begin);
      const std::string cluster = encoded(text.data() + begin, text.data() + end);
      if (cluster.size() < SHORT && look_up(cluster, end - begin, made)) {
        modified = true;
        continue;
      }
      for (size_t i = begin; i < end; ++i) {
        std::string one;
        append_utf8(one, text[i].value);
        if (look_up(one, 1, made)) modified = true;
        else made.push_back({text[i].value, 0});
      }
    }
    return modified ? transformed(text, made, 0) : text;
  }

 private:
  std::vector<uint32_t> units_;
  std::string texts_;

  static uint32_t offset(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }

  // The shortest beginning of `part` that has a new text stands for all of it.
  bool look_up(const std::string& part, size_t characters, std::vector<Changed>& made) const {
    size_t node = offset(units_[0]);
    for (const char c : part) {
      const auto byte = static_cast<uint8_t>(c);
      if (byte == 0) return false;
      node ^= byte;
      if (node >= units_.size() || (units_[node] & (1u << 31 | 0xFF)) != byte) return false;
      const uint32_t unit = units_[node];
      node ^= offset(unit);
      if ((unit & 1u << 8) == 0) continue;
      const size_t at = node < units_.size() ? units_[node] & ~(1u << 31) : SIZE_MAX;
      if (at >= texts_.size()) return at == texts_.size() ? change("", characters, made) : false;
      return change(texts_.c_str() + at, characters, made);
    }
    return false;
  }

  static bool change(const char* text, size_t characters, std::vector<Changed>& made) {
    const Text fresh = decoded(text, "charsmap");
    const size_t before = made.size();
    for (const Char& c : fresh) made.push_back({c.value, 0});
    for (size_t i = before + characters; i < made.size(); ++i) made[i].change = 1;
    if (fresh.size() < characters && !made.empty()) made.back().change -= static_cast<int>(characters - fresh.size());
    return true;
  }
};

}  // namespace

std::unique_ptr<Normalizer> precompiled(const std::string& base64, const std::string& where) { return std::make_unique<Precompiled>(base64, where); }

}  // namespace vditc::internal
