// Byte-pair encoding: the characters of a piece, then the best known pair of neighbours becomes one, again and again.
#include <queue>
#include <unordered_map>

#include "status.h"
#include "text/models.h"
#include "text/normalizers.h"
#include "text/vocabulary.h"

namespace vditc::internal {
namespace {

class Bpe : public TokenModel {
 public:
  Bpe(const Json& about, const std::string& where) : vocabulary_(about["vocab"].members.size()) {
    const Json &vocab = about["vocab"], &merges = about["merges"], &unknown = about["unk_token"];
    if (!vocab.is(Json::OBJECT) || !merges.is(Json::LIST)) damaged(where, "vocab " + vocab.words() + ", merges " + merges.words(), "tokens, and pairs of them");
    if (about["dropout"].number_or(0) != 0) unsupported(where, "dropout " + about["dropout"].words(), "none");
    if (!about["continuing_subword_prefix"].text_or("").empty()) {
      unsupported(where, "continuing_subword_prefix " + about["continuing_subword_prefix"].words(), "none");
    }
    for (const auto& [token, id] : vocab.members) {
      if (!id.is(Json::INTEGER) || id.integer < 0 || id.integer >= Vocabulary::NONE) damaged(where, token + " " + id.words(), "tokens with their numbers");
      vocabulary_.add(token, static_cast<uint32_t>(id.integer));
    }
    suffix_ = about["end_of_word_suffix"].text_or("");
    fuse_ = flag(about, "fuse_unk", false, where), fallback_ = flag(about, "byte_fallback", false, where);
    whole_ = flag(about, "ignore_merges", false, where);
    if (unknown.is(Json::TEXT) && find(unknown.text) < 0) damaged(where, "unk_token " + unknown.words(), "one of the tokens");
    unknown_ = unknown.is(Json::TEXT) ? find(unknown.text) : -1;
    merges_.reserve(merges.items.size());
    for (size_t rank = 0; rank < merges.items.size(); ++rank) {
      const Json& pair = merges.items[rank];
      const size_t space = pair.is(Json::TEXT) ? pair.text.find(' ') : std::string::npos;  // older files: "A B"
      const bool listed = pair.items.size() == 2 && pair.items[0].is(Json::TEXT) && pair.items[1].is(Json::TEXT);
      if (!listed && (space == std::string::npos || pair.text.find(' ', space + 1) != std::string::npos)) {
        if (rank == 0 && pair.text_or("").rfind("#version", 0) == 0) continue;
        damaged(where, "merge " + pair.words(), "two tokens");
      }
      const std::string first = listed ? pair.items[0].text : pair.text.substr(0, space);
      const std::string second = listed ? pair.items[1].text : pair.text.substr(space + 1);
      const uint32_t a = vocabulary_.find(first), b = vocabulary_.find(second), both = vocabulary_.find(first + second);
      if (a == Vocabulary::NONE || b == Vocabulary::NONE || both == Vocabulary::NONE) damaged(where, "merge " + first + " " + second, "pairs of tokens that are one");
      merges_[key(a, b)] = {static_cast<uint32_t>(rank), both};
    }
  }

  size_t size() const override { return vocabulary_.size(); }
  int64_t find(std::string_view token) const override {
    const uint32_t id = vocabulary_.find(token);
    return id == Vocabulary::NONE ? -1 : static_cast<int64_t>(id);
  }

  void tokenize(std::string_view piece, Ids& ids) const override {
    if (whole_) {
      if (const int64_t id = find(piece); id >= 0) {
        ids.push_back(id);
        return;
      }
    }
    std::vector<Symbol> symbols = characters(piece);
    merge(symbols);
    for (const Symbol& symbol : symbols) {
      if (symbol.alive) ids.push_back(symbol.id);
    }
  }

 private:
  struct Symbol {
    uint32_t id;
    size_t before, next;
    bool alive = true;
  };
  struct Merged {
    uint32_t rank, id;
  };
  struct Offer {
    uint32_t rank, id;
    size_t at;
    // The lowest rank first, of equal ones the first in the text.
    bool operator<(const Offer& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  static constexpr size_t NOWHERE = SIZE_MAX;
  Vocabulary vocabulary_;
  std::unordered_map<uint64_t, Merged> merges_;
  std::string suffix_;
  bool fuse_ = false, fallback_ = false, whole_ = false;
  int64_t unknown_ = -1;

  static uint64_t key(uint32_t a, uint32_t b) { return uint64_t{a} << 32 | b; }

  std::vector<Symbol> characters(std::string_view piece) const {
    std::vector<Symbol> made;
    bool held = false;  // an unknown one that is not there yet: others may join it
    const auto add = [&](int64_t id) { made.push_back({static_cast<uint32_t>(id), NOWHERE, NOWHERE}); };
    for (size_t begin = 0, end; begin < piece.size(); begin = end) {
      end = begin + 1;
      while (end < piece.size() && (piece[end] & 0xC0) == 0x80) ++end;
      std::string token(piece.substr(begin, end - begin));
      if (end == piece.size()) token += suffix_;
      if (const int64_t id = find(token); id >= 0) {
        if (held) add(unknown_);
        held = false;
        add(id);
        continue;
      }
      Ids bytes;
      for (size_t i = 0; fallback_ && i < token.size(); ++i) bytes.push_back(find(byte_token(static_cast<uint8_t>(token[i]))));
      if (fallback_ && std::find(bytes.begin(), bytes.end(), -1) == bytes.end()) {
        for (const int64_t id : bytes) add(id);  // in front of an unknown one that is held, as the package has it
        continue;
      }
      if (unknown_ < 0) continue;  // dropped
      if (held && !fuse_) add(unknown_);
      held = true;
    }
    if (held) add(unknown_);
    for (size_t i = 0; i < made.size(); ++i) {
      if (i > 0) made[i].before = i - 1;
      if (i + 1 < made.size()) made[i].next = i + 1;
    }
    return made;
  }

  void merge(std::vector<Symbol>& symbols) const {
    std::priority_queue<Offer> offers;
    const auto known = [&](size_t at) { return merges_.find(key(symbols[at].id, symbols[symbols[at].next].id)); };
    const auto offer = [&](size_t at) {
      if (at == NOWHERE || symbols[at].next == NOWHERE) return;
      if (const auto found = known(at); found != merges_.end()) offers.push({found->second.rank, found->second.id, at});
    };
    for (size_t i = 0; i + 1 < symbols.size(); ++i) offer(i);
    while (!offers.empty()) {
      const Offer top = offers.top();
      offers.pop();
      Symbol& left = symbols[top.at];
      if (!left.alive || left.next == NOWHERE) continue;
      const auto found = known(top.at);
      if (found == merges_.end() || found->second.id != top.id) continue;  // of neighbours that are gone
      Symbol& right = symbols[left.next];
      left.id = top.id, left.next = right.next, right.alive = false;
      if (left.next != NOWHERE) symbols[left.next].before = top.at;
      offer(left.before);
      offer(top.at);
    }
  }
};

}  // namespace

std::unique_ptr<TokenModel> bpe(const Json& about, const std::string& where) { return std::make_unique<Bpe>(about, where); }

}  // namespace vditc::internal
