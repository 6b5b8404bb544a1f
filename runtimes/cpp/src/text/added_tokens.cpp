#include "text/added_tokens.h"

#include <algorithm>
#include <map>

#include "status.h"

namespace vditc::internal {

AddedTokens::AddedTokens(const Json& list, const TokenModel& model, const Normalizer* normalizer, const std::string& where) {
  std::map<std::string, int64_t> ids;
  std::map<int64_t, const Json*> last;  // of an id, the last counts
  auto next = static_cast<int64_t>(model.size());
  for (const Json& about : list.items) {
    const Json& content = about["content"];
    if (!content.is(Json::TEXT)) damaged(where, "added token " + about.words(), "its content");
    if (content.text.empty()) continue;
    const auto known = ids.find(content.text);
    int64_t id = known != ids.end() ? known->second : model.find(content.text);
    if (id < 0) id = next++;
    ids[content.text] = id;
    last[id] = &about;
  }
  std::map<std::u32string, std::string> patterns[2];
  for (const auto& [id, about] : last) {
    const std::string& content = (*about)["content"].text;
    const std::string here = where + ", added token " + content;
    const bool normal = flag(*about, "normalized", false, here);
    Text pattern = decoded(content, here);
    if (normal && normalizer) pattern = normalizer->normalized(pattern);
    Token made{{}, id, flag(*about, "single_word", false, here), flag(*about, "lstrip", false, here), flag(*about, "rstrip", false, here)};
    for (const Char& c : pattern) made.pattern += c.value;
    const auto [same, fresh] = patterns[normal].emplace(made.pattern, content);
    if (!fresh || made.pattern.empty()) unsupported(here, fresh ? "no text once it is normalized" : "the text of " + same->second + " once it is normalized", "a text of its own");
    (normal ? normalized_ : plain_).push_back(std::move(made));
  }
}

std::vector<AddedTokens::Part> AddedTokens::found(const std::vector<Token>& tokens, const Text& text) {
  std::vector<Part> made;
  const auto part = [&](size_t begin, size_t end, int64_t id) {
    if (begin < end) made.push_back({Text(text.begin() + static_cast<std::ptrdiff_t>(begin), text.begin() + static_cast<std::ptrdiff_t>(end)), id});
  };
  size_t before = 0;  // where what is not a token begins
  for (size_t at = 0; at < text.size();) {
    const Token* longest = nullptr;
    for (const Token& token : tokens) {
      if (longest && token.pattern.size() <= longest->pattern.size()) continue;
      const bool fits = token.pattern.size() <= text.size() - at &&
                        std::equal(token.pattern.begin(), token.pattern.end(), text.begin() + static_cast<std::ptrdiff_t>(at), [](char32_t a, const Char& b) { return a == b.value; });
      if (fits) longest = &token;
    }
    if (longest == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + longest->pattern.size();
    at = end;  // the next one begins behind it, whatever becomes of this one
    if (longest->single_word && ((begin > 0 && unicode::word(text[begin - 1].value)) || (end < text.size() && unicode::word(text[end].value)))) continue;
    if (longest->lstrip) {
      size_t first = begin;
      while (first > 0 && unicode::blank(text[first - 1].value)) --first;
      begin = std::max(first, before);
    }
    while (longest->rstrip && end < text.size() && unicode::blank(text[end].value)) ++end;
    part(before, begin, -1);
    part(begin, end, longest->id);
    before = end;
  }
  part(before, text.size(), -1);
  return made;
}

std::vector<AddedTokens::Part> AddedTokens::split(const Text& text, const Normalizer* normalizer) const {
  std::vector<Part> made;
  for (Part& part : found(plain_, text)) {
    if (part.id >= 0) {
      made.push_back(std::move(part));
      continue;
    }
    for (Part& smaller : found(normalized_, normalizer ? normalizer->normalized(part.text) : part.text)) made.push_back(std::move(smaller));
  }
  return made;
}

}  // namespace vditc::internal
