// Tokens and their numbers: one block of text and an open hash table, for a quarter of a million of them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace vditc::internal {

class Vocabulary {
 public:
  static constexpr uint32_t NONE = UINT32_MAX;
  static constexpr uint64_t EMPTY_HASH = 14695981039346656037u;  // FNV-1a: known of a beginning, it is known of one byte more
  static uint64_t hashed(uint64_t hash, char byte) { return (hash ^ static_cast<uint8_t>(byte)) * 1099511628211u; }

  explicit Vocabulary(size_t expected) {
    size_t slots = 16;
    while (slots < expected * 2) slots *= 2;
    slots_.assign(slots, 0);
    entries_.reserve(expected);
  }

  // The last number of a token counts.
  void add(std::string_view token, uint32_t id) {
    const uint64_t hash = hash_of(token);
    size_t& slot = slots_[place(hash, token)];
    if (slot != 0) {
      entries_[slot - 1].id = id;
      return;
    }
    entries_.push_back({bytes_.size(), static_cast<uint32_t>(token.size()), id, hash});
    slot = entries_.size();
    bytes_ += token;
    longest_ = std::max(longest_, token.size());
    if (entries_.size() * 2 > slots_.size()) grow();
  }
  uint32_t find(std::string_view token) const { return find(token, hash_of(token)); }
  uint32_t find(std::string_view token, uint64_t hash) const {
    const size_t slot = slots_[place(hash, token)];
    return slot == 0 ? NONE : entries_[slot - 1].id;
  }
  size_t size() const { return entries_.size(); }
  size_t longest() const { return longest_; }  // bytes

 private:
  struct Entry {
    size_t begin;
    uint32_t length, id;
    uint64_t hash;
  };
  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<size_t> slots_;  // index of an entry, from 1; 0: free
  size_t longest_ = 0;

  static uint64_t hash_of(std::string_view token) {
    uint64_t hash = EMPTY_HASH;
    for (const char byte : token) hash = hashed(hash, byte);
    return hash;
  }
  size_t place(uint64_t hash, std::string_view token) const {
    const size_t mask = slots_.size() - 1;
    for (size_t at = (hash ^ hash >> 32) & mask;; at = (at + 1) & mask) {
      if (slots_[at] == 0) return at;
      const Entry& entry = entries_[slots_[at] - 1];
      if (entry.hash == hash && std::string_view(bytes_).substr(entry.begin, entry.length) == token) return at;
    }
  }
  void grow() {
    slots_.assign(slots_.size() * 2, 0);
    const size_t mask = slots_.size() - 1;
    for (size_t i = 0; i < entries_.size(); ++i) {
      size_t at = (entries_[i].hash ^ entries_[i].hash >> 32) & mask;
      while (slots_[at] != 0) at = (at + 1) & mask;
      slots_[at] = i + 1;
    }
  }
};

}  // namespace vditc::internal
