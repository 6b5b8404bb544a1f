// Unigram: of all ways to cut a piece into known tokens, the one whose scores have the greatest sum.
#include <cmath>

#include "status.h"
#include "text/models.h"
#include "text/normalizers.h"
#include "text/vocabulary.h"

namespace vditc::internal {
namespace {

constexpr double UNKNOWN = 10.0;  // below the lowest score

class Unigram : public TokenModel {
 public:
  Unigram(const Json& about, const std::string& where) : vocabulary_(about["vocab"].items.size()), where_(where) {
    const Json& vocab = about["vocab"];
    if (!vocab.is(Json::LIST) || vocab.items.size() >= UINT32_MAX) damaged(where, "vocab " + vocab.words(), "tokens with their scores");
    lowest_ = HUGE_VAL;
    for (const Json& entry : vocab.items) {
      if (entry.items.size() != 2 || !entry.items[0].is(Json::TEXT) || !entry.items[1].is_number()) damaged(where, entry.words() + " in vocab", "a token and its score");
      vocabulary_.add(entry.items[0].text, static_cast<uint32_t>(scores_.size()));
      scores_.push_back(entry.items[1].real);
      lowest_ = std::min(lowest_, scores_.back());
    }
    const Json& unknown = about["unk_id"];
    if (!unknown.is(Json::NOTHING) && (!unknown.is(Json::INTEGER) || unknown.integer < 0 || unknown.integer >= static_cast<int64_t>(scores_.size()))) {
      damaged(where, "unk_id " + unknown.words(), text("less than the %zu tokens", scores_.size()));
    }
    unknown_ = unknown.integer_or(-1);
    fallback_ = flag(about, "byte_fallback", false, where);
  }

  size_t size() const override { return scores_.size(); }
  int64_t find(std::string_view token) const override {
    const uint32_t id = vocabulary_.find(token);
    return id == Vocabulary::NONE ? -1 : static_cast<int64_t>(id);
  }

  void tokenize(std::string_view piece, Ids& ids) const override {
    std::vector<Node> best(piece.size() + 1);  // by where they end
    for (size_t begin = 0, next; begin < piece.size(); begin = next) {
      next = begin + 1;
      while (next < piece.size() && (piece[next] & 0xC0) == 0x80) ++next;
      const double till_here = best[begin].score;
      const auto offer = [&](size_t end, double score, int64_t id) {
        Node& node = best[end];
        if (node.begin != NOWHERE && !(score > node.score)) return;
        node = {id, score, begin};
      };
      bool alone = false;  // whether a token is this character
      uint64_t hash = Vocabulary::EMPTY_HASH;
      const size_t most = std::min(piece.size(), begin + vocabulary_.longest());
      for (size_t end = begin; end < most;) {
        hash = Vocabulary::hashed(hash, piece[end++]);
        if (end < piece.size() && (piece[end] & 0xC0) == 0x80) continue;
        const uint32_t id = vocabulary_.find(piece.substr(begin, end - begin), hash);
        if (id == Vocabulary::NONE) continue;
        offer(end, scores_[id] + till_here, id);
        alone = alone || end == next;
      }
      if (alone) continue;
      const double score = lowest_ - UNKNOWN + till_here;
      if (unknown_ < 0 && (best[next].begin == NOWHERE || score > best[next].score)) no_unknown(piece.substr(begin, next - begin));
      offer(next, score, unknown_);
    }
    std::vector<std::pair<size_t, size_t>> found;  // from the end; unknown ones that touch are one
    bool unknown_behind = false;
    for (size_t end = piece.size(); end > 0; end = best[end].begin) {
      const bool unknown = best[end].id == unknown_;
      if (unknown && unknown_behind) found.back().first = best[end].begin;
      else found.emplace_back(best[end].begin, end);
      unknown_behind = unknown;
    }
    for (size_t i = found.size(); i-- > 0;) append(piece.substr(found[i].first, found[i].second - found[i].first), ids);
  }

 private:
  static constexpr size_t NOWHERE = SIZE_MAX;
  struct Node {
    int64_t id = 0;
    double score = 0;
    size_t begin = NOWHERE;
  };
  Vocabulary vocabulary_;
  std::vector<double> scores_;
  std::string where_;
  double lowest_;
  int64_t unknown_ = -1;
  bool fallback_ = false;

  [[noreturn]] void no_unknown(std::string_view part) const {
    throw Error(VDITC_ERROR_INPUT, where_, "'" + std::string(part) + "', which is no token", "text of known characters", "this tokenizer has no unknown token");
  }

  void append(std::string_view token, Ids& ids) const {
    if (const int64_t id = find(token); id >= 0) {
      ids.push_back(id);
      return;
    }
    const size_t before = ids.size();
    for (size_t i = 0; fallback_ && i < token.size(); ++i) {
      const int64_t id = find(byte_token(static_cast<uint8_t>(token[i])));
      if (id < 0) {
        ids.resize(before);
        break;
      }
      ids.push_back(id);
    }
    if (ids.size() == before) ids.push_back(unknown_);
  }
};

}  // namespace

std::unique_ptr<TokenModel> unigram(const Json& about, const std::string& where) { return std::make_unique<Unigram>(about, where); }

std::string byte_token(uint8_t byte) { return text("<0x%02X>", byte); }

std::unique_ptr<TokenModel> model_of(const Json& about, const std::string& where) {
  const std::string type = about["type"].text_or("");
  if (type == "Unigram") return unigram(about, where + ", model Unigram");
  if (type == "BPE") return bpe(about, where + ", model BPE");
  unsupported(where, "model " + (type.empty() ? about.words() : type), "Unigram or BPE");
}

}  // namespace vditc::internal
