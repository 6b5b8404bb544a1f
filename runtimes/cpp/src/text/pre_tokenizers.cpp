#include "text/pre_tokenizers.h"

#include <algorithm>

#include "text/normalizers.h"
#include "text/patterns.h"

namespace vditc::internal {
namespace {

enum Behaviour { REMOVED, ISOLATED, WITH_PREVIOUS, WITH_NEXT, CONTIGUOUS };

// Matches as the pieces that they become.
std::vector<Match> pieces(std::vector<Match> matches, Behaviour behaviour) {
  std::vector<Match> made;
  bool before = false;  // whether the one before was a match
  switch (behaviour) {
    case REMOVED:
      matches.erase(std::remove_if(matches.begin(), matches.end(), [](const Match& match) { return match.matched; }), matches.end());
      return matches;
    case ISOLATED: return matches;
    case WITH_PREVIOUS:
      for (const Match& match : matches) {
        if (match.matched && !before && !made.empty()) made.back().end = match.end;
        else made.push_back(match);
        before = match.matched;
      }
      return made;
    case WITH_NEXT:
      for (auto match = matches.rbegin(); match != matches.rend(); ++match) {
        if (match->matched && !before && !made.empty()) made.back().begin = match->begin;
        else made.push_back(*match);
        before = match->matched;
      }
      std::reverse(made.begin(), made.end());
      return made;
    case CONTIGUOUS:
      for (const Match& match : matches) {
        if (match.matched == before && !made.empty()) made.back().end = match.end;
        else made.push_back(match);
        before = match.matched;
      }
      return made;
  }
  return matches;
}

std::vector<Text> cut(const Text& text, const std::vector<Match>& matches) {
  std::vector<Text> made;
  for (const Match& match : matches) {
    made.emplace_back(text.begin() + static_cast<std::ptrdiff_t>(match.begin), text.begin() + static_cast<std::ptrdiff_t>(match.end));
  }
  return made;
}

struct Sequence : PreTokenizer {
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  std::vector<Text> split(const Text& text) const override {
    std::vector<Text> made{text};
    for (const auto& part : parts) {
      std::vector<Text> next;
      for (const Text& piece : made) {
        for (Text& smaller : part->split(piece)) {
          if (!smaller.empty()) next.push_back(std::move(smaller));
        }
      }
      made = std::move(next);
    }
    return made;
  }
};

struct Split : PreTokenizer {
  std::unique_ptr<Pattern> pattern;
  Behaviour behaviour = ISOLATED;
  bool invert = false;
  std::vector<Text> split(const Text& text) const override {
    std::vector<Match> found = pattern->matches(text);
    if (invert) {
      for (Match& match : found) match.matched = !match.matched;
    }
    return cut(text, pieces(std::move(found), behaviour));
  }
};

struct WhitespaceSplit : PreTokenizer {
  std::vector<Text> split(const Text& text) const override {
    std::vector<Match> found;
    for (size_t i = 0; i < text.size(); ++i) {
      const bool blank = unicode::blank(text[i].value);
      if (!found.empty() && !blank && !found.back().matched) found.back().end = i + 1;
      else found.push_back({i, i + 1, blank});
    }
    return cut(text, pieces(std::move(found), REMOVED));
  }
};

struct Metaspace : PreTokenizer {
  enum Scheme { NEVER, FIRST, ALWAYS } scheme = ALWAYS;
  char32_t replacement = 0x2581;
  bool splits = true;
  std::vector<Text> split(const Text& text) const override {
    Text made = text;
    for (Char& c : made) {
      if (c.value == ' ') c.value = replacement;
    }
    const bool wanted = scheme == ALWAYS || (scheme == FIRST && !made.empty() && made[0].from == 0);
    if (wanted && !made.empty() && made[0].value != replacement) made.insert(made.begin(), {replacement, made[0].from});
    if (!splits) return {made};
    std::vector<Match> found;
    for (size_t i = 0; i < made.size(); ++i) {
      const bool own = made[i].value == replacement;
      if (!found.empty() && !own && !found.back().matched) found.back().end = i + 1;
      else found.push_back({i, i + 1, own});
    }
    return cut(made, pieces(std::move(found), WITH_NEXT));
  }
};

// Every byte as a character that can be seen: those of Latin-1 that can, as themselves, the others from U+0100 on.
char32_t shown(uint8_t byte) {
  const auto plain = [](uint32_t b) { return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE; };
  if (plain(byte)) return byte;
  char32_t made = 0x100;
  for (uint32_t b = 0; b < byte; ++b) made += plain(b) ? 0 : 1;
  return made;
}

struct ByteLevel : PreTokenizer {
  bool prefix = true;
  std::unique_ptr<Pattern> pattern;  // nullptr: the text stays whole
  std::vector<Text> split(const Text& text) const override {
    Text whole = text;
    if (prefix && !whole.empty() && whole[0].value != ' ') whole.insert(whole.begin(), {U' ', whole[0].from});
    std::vector<Text> made = pattern ? cut(whole, pattern->matches(whole)) : std::vector<Text>{whole};
    for (Text& piece : made) {
      Text bytes;
      for (const Char& c : piece) {
        std::string utf8;
        append_utf8(utf8, c.value);
        for (const char byte : utf8) bytes.push_back({shown(static_cast<uint8_t>(byte)), c.from});
      }
      piece = std::move(bytes);
    }
    return made;
  }
};

}  // namespace

std::unique_ptr<PreTokenizer> pre_tokenizer_of(const Json& about, const std::string& where) {
  if (about.is(Json::NOTHING)) return nullptr;
  const std::string type = about["type"].text_or("");
  const std::string here = where + ", pre_tokenizer " + type;
  if (type == "Sequence") {
    auto made = std::make_unique<Sequence>();
    for (const Json& part : about["pretokenizers"].items) made->parts.push_back(pre_tokenizer_of(part, where));
    return made;
  }
  if (type == "WhitespaceSplit") return std::make_unique<WhitespaceSplit>();
  if (type == "Metaspace") {
    auto made = std::make_unique<Metaspace>();
    const std::u32string replacement = wide(about["replacement"].text_or(""), here);
    if (replacement.size() != 1) damaged(here, "replacement " + about["replacement"].words(), "one character");
    made->replacement = replacement[0];
    const std::string scheme = about["prepend_scheme"].text_or("always");
    if (scheme != "never" && scheme != "first" && scheme != "always") unsupported(here, "prepend_scheme " + scheme, "never, first or always");
    made->scheme = scheme == "never" ? Metaspace::NEVER : scheme == "first" ? Metaspace::FIRST : Metaspace::ALWAYS;
    if (!flag(about, "add_prefix_space", true, here)) made->scheme = Metaspace::NEVER;  // of older files
    made->splits = flag(about, "split", true, here);
    return made;
  }
  if (type == "Split") {
    auto made = std::make_unique<Split>();
    made->pattern = pattern_of(about["pattern"], here);
    made->invert = flag(about, "invert", false, here);
    const std::string behaviour = about["behavior"].text_or("");
    const std::pair<const char*, Behaviour> known[] = {
        {"Removed", REMOVED}, {"Isolated", ISOLATED}, {"MergedWithPrevious", WITH_PREVIOUS}, {"MergedWithNext", WITH_NEXT}, {"Contiguous", CONTIGUOUS}};
    const auto found = std::find_if(std::begin(known), std::end(known), [&](const auto& one) { return behaviour == one.first; });
    if (found == std::end(known)) unsupported(here, "behavior " + behaviour, "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
    made->behaviour = found->second;
    return made;
  }
  if (type == "ByteLevel") {
    auto made = std::make_unique<ByteLevel>();
    made->prefix = flag(about, "add_prefix_space", true, here);
    if (flag(about, "use_regex", true, here)) {
      made->pattern = regex_of("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", here);
    }
    return made;
  }
  unsupported(where, "pre_tokenizer " + (type.empty() ? about.words() : type), "Sequence, WhitespaceSplit, Metaspace, Split or ByteLevel");
}

}  // namespace vditc::internal
