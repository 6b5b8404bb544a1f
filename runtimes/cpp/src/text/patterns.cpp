#include "text/patterns.h"

#include <algorithm>

#include "text/normalizers.h"

namespace vditc::internal {

std::vector<Match> Pattern::matches(const Text& text) const {
  std::vector<Match> made;
  size_t before = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = match(text, at);
    if (end == at) {
      ++at;
      continue;
    }
    if (before < at) made.push_back({before, at, false});
    made.push_back({at, end, true});
    before = at = end;
  }
  if (before < text.size()) made.push_back({before, text.size(), false});
  return made;
}

namespace {

// End of the run of characters of a kind, of at most `most`.
template <class Kind>
size_t run(const Text& text, size_t begin, Kind kind, size_t most = SIZE_MAX) {
  size_t end = begin;
  while (end < text.size() && end - begin < most && kind(text[end].value)) ++end;
  return end;
}

bool line_end(char32_t c) { return c == '\r' || c == '\n'; }
bool mark(char32_t c) { return !unicode::blank(c) && !unicode::letter(c) && !unicode::number(c); }

size_t literal(const Text& text, size_t begin, const std::u32string& word) {
  if (word.size() > text.size() - begin) return begin;
  for (size_t i = 0; i < word.size(); ++i) {
    if (text[begin + i].value != word[i]) return begin;
  }
  return begin + word.size();
}

// 's 't 're 've 'm 'll 'd, in this order.
size_t contraction(const Text& text, size_t begin, bool any_case) {
  if (text[begin].value != '\'') return begin;
  for (const std::u32string_view word : {U"s", U"t", U"re", U"ve", U"m", U"ll", U"d"}) {
    if (word.size() > text.size() - begin - 1) continue;
    bool same = true;
    for (size_t i = 0; i < word.size(); ++i) {
      const char32_t c = text[begin + 1 + i].value;
      const bool folded = any_case && (c == word[i] - 32 || (word[i] == 's' && c == 0x17F));  // the long s is an s in other words
      same = same && (c == word[i] || folded);
    }
    if (same) return begin + 1 + word.size();
  }
  return begin;
}

struct Literal : Pattern {
  std::u32string word;
  size_t match(const Text& text, size_t begin) const override { return literal(text, begin, word); }
};

// \s+, or runs of two spaces and more.
struct Blanks : Pattern {
  explicit Blanks(bool spaces) : spaces(spaces) {}
  bool spaces;
  size_t match(const Text& text, size_t begin) const override {
    const size_t end = run(text, begin, [this](char32_t c) { return spaces ? c == ' ' : unicode::blank(c); });
    return spaces && end - begin < 2 ? begin : end;
  }
};

// CLIP: words, single digits, marks; and the special tokens, in newer files.
struct Clip : Pattern {
  explicit Clip(bool specials) : specials(specials) {}
  bool specials;
  size_t match(const Text& text, size_t begin) const override {
    if (specials) {
      for (const char32_t* word : {U"<|startoftext|>", U"<|endoftext|>"}) {
        if (const size_t end = literal(text, begin, word); end != begin) return end;
      }
    }
    if (const size_t end = contraction(text, begin, false); end != begin) return end;
    if (const size_t end = run(text, begin, unicode::letter); end != begin) return end;
    if (unicode::number(text[begin].value)) return begin + 1;
    return run(text, begin, mark);
  }
};

// White space that nothing else took: all but the last character where something follows.
size_t spaces_between(const Text& text, size_t begin) {
  const size_t end = run(text, begin, unicode::blank);
  return end < text.size() && end - begin > 1 ? end - 1 : end;
}

struct Gpt2 : Pattern {
  size_t match(const Text& text, size_t begin) const override {
    if (const size_t end = contraction(text, begin, false); end != begin) return end;
    const size_t word = begin + (text[begin].value == ' ' && begin + 1 < text.size() ? 1 : 0);
    for (bool (*kind)(char32_t) : {unicode::letter, unicode::number, mark}) {
      if (const size_t end = run(text, word, kind); end != word) return end;
    }
    return spaces_between(text, begin);
  }
};

// Llama 3, whose numbers are of up to three digits; Qwen 2, with one.
struct Llama3 : Pattern {
  explicit Llama3(size_t digits) : digits(digits) {}
  size_t digits;
  size_t match(const Text& text, size_t begin) const override {
    if (const size_t end = contraction(text, begin, true); end != begin) return end;
    const char32_t first = text[begin].value;
    const size_t word = begin + (!line_end(first) && !unicode::letter(first) && !unicode::number(first) ? 1 : 0);
    if (const size_t end = run(text, word, unicode::letter); end != word) return end;
    if (const size_t end = run(text, begin, unicode::number, digits); end != begin) return end;
    const size_t marks = begin + (first == ' ' ? 1 : 0);
    if (const size_t end = run(text, marks, mark); end != marks) return run(text, end, line_end);
    const size_t blanks = run(text, begin, unicode::blank);
    for (size_t end = blanks; end > begin; --end) {  // up to the last line end
      if (line_end(text[end - 1].value)) return end;
    }
    return spaces_between(text, begin);
  }
};

#define LLAMA3(digits)                                                                                                  \
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" \
  "\\s+(?!\\S)|\\s+"
#define CLIP "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"

}  // namespace

std::unique_ptr<Pattern> regex_of(const std::string& expression, const std::string& where) {
  if (expression == "\\s+") return std::make_unique<Blanks>(false);
  if (expression == " {2,}") return std::make_unique<Blanks>(true);
  if (expression == CLIP) return std::make_unique<Clip>(false);
  if (expression == "<\\|startoftext\\|>|<\\|endoftext\\|>|" CLIP) return std::make_unique<Clip>(true);
  if (expression == LLAMA3("\\p{N}{1,3}")) return std::make_unique<Llama3>(3);
  if (expression == LLAMA3("\\p{N}")) return std::make_unique<Llama3>(1);
  if (expression == "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+") return std::make_unique<Gpt2>();
  unsupported(where, "the regular expression " + expression, "one of CLIP, GPT-2, Llama 3 or Qwen 2");
}

std::unique_ptr<Pattern> pattern_of(const Json& about, const std::string& where) {
  if (about["Regex"].is(Json::TEXT)) return regex_of(about["Regex"].text, where);
  if (!about["String"].is(Json::TEXT) || about["String"].text.empty()) damaged(where, "pattern " + about.words(), "a String or a Regex");
  auto made = std::make_unique<Literal>();
  made->word = wide(about["String"].text, where);
  return made;
}

}  // namespace vditc::internal
