#include "text/normalizers.h"

#include <algorithm>

#include "status.h"
#include "text/patterns.h"

namespace vditc::internal {

void unsupported(const std::string& where, const std::string& found, const std::string& wanted) {
  throw Error(VDITC_ERROR_UNSUPPORTED, where, found, wanted, "give token ids or embeddings: this library would find other tokens");
}

void damaged(const std::string& where, const std::string& found, const std::string& wanted) {
  throw Error(VDITC_ERROR_DAMAGED, where, found, wanted, "copy the bundle again, or compile it again");
}

bool flag(const Json& about, const char* name, bool otherwise, const std::string& where) {
  const Json& value = about[name];
  if (value.is(Json::NOTHING)) return otherwise;
  if (!value.is(Json::BOOL)) damaged(where, std::string(name) + " " + value.words(), "true or false");
  return value.truth;
}

Text transformed(const Text& text, const std::vector<Changed>& made, size_t begin) {
  Text to;
  to.reserve(made.size());
  size_t at = begin;
  const auto from = [&](size_t index) { return text.empty() ? 0u : text[std::min(index, text.size() - 1)].from; };
  for (const Changed& c : made) {
    to.push_back({c.value, c.change > 0 ? from(at == 0 ? 0 : at - 1) : from(at)});
    if (c.change <= 0) at += 1 + static_cast<size_t>(-c.change);
  }
  return to;
}

namespace {

struct Sequence : Normalizer {
  std::vector<std::unique_ptr<Normalizer>> parts;
  Text normalized(const Text& text) const override {
    Text made = text;
    for (const auto& part : parts) made = part->normalized(made);
    return made;
  }
};

struct Unicode : Normalizer {
  explicit Unicode(unicode::Form form) : form(form) {}
  unicode::Form form;
  Text normalized(const Text& text) const override { return unicode::normalized(text, form); }
};

struct Lowercase : Normalizer {
  Text normalized(const Text& text) const override { return unicode::lower(text); }
};

// sentencepiece's own: control characters go, white space and marks of nothing become spaces.
struct Nmt : Normalizer {
  static bool dropped(char32_t c) {
    return (c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
  }
  static bool space(char32_t c) {
    return c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 ||
           c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
  }
  Text normalized(const Text& text) const override {
    Text made;
    for (const Char& c : text) {
      if (!dropped(c.value)) made.push_back({space(c.value) ? U' ' : c.value, c.from});
    }
    return made;
  }
};

struct Strip : Normalizer {
  bool left, right;
  Text normalized(const Text& text) const override {
    size_t begin = 0, end = text.size();
    while (left && begin < end && unicode::blank(text[begin].value)) ++begin;
    while (right && end > begin && unicode::blank(text[end - 1].value)) --end;
    return Text(text.begin() + static_cast<std::ptrdiff_t>(begin), text.begin() + static_cast<std::ptrdiff_t>(end));
  }
};

struct Prepend : Normalizer {
  std::u32string front;
  Text normalized(const Text& text) const override {
    if (text.empty()) return text;
    Text made;
    for (const char32_t c : front) made.push_back({c, text[0].from});
    made.insert(made.end(), text.begin(), text.end());
    return made;
  }
};

struct Replace : Normalizer {
  std::unique_ptr<Pattern> pattern;
  std::u32string content;
  Text normalized(const Text& text) const override {
    Text made;
    for (const Match& match : pattern->matches(text)) {
      if (!match.matched) made.insert(made.end(), text.begin() + static_cast<std::ptrdiff_t>(match.begin), text.begin() + static_cast<std::ptrdiff_t>(match.end));
      else for (const char32_t c : content) made.push_back({c, text[match.begin].from});
    }
    return made;
  }
};

}  // namespace

std::unique_ptr<Normalizer> normalizer_of(const Json& about, const std::string& where) {
  if (about.is(Json::NOTHING)) return nullptr;
  const std::string type = about["type"].text_or("");
  const std::string here = where + ", normalizer " + type;
  const auto words = [&](const char* name) {
    if (!about[name].is(Json::TEXT)) damaged(here, std::string(name) + " " + about[name].words(), "text");
    return about[name].text;
  };
  if (type == "Sequence") {
    auto made = std::make_unique<Sequence>();
    for (const Json& part : about["normalizers"].items) made->parts.push_back(normalizer_of(part, where));
    return made;
  }
  if (type == "NFC") return std::make_unique<Unicode>(unicode::NFC);
  if (type == "NFD") return std::make_unique<Unicode>(unicode::NFD);
  if (type == "NFKC") return std::make_unique<Unicode>(unicode::NFKC);
  if (type == "NFKD") return std::make_unique<Unicode>(unicode::NFKD);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "Nmt") return std::make_unique<Nmt>();
  if (type == "Precompiled") return precompiled(words("precompiled_charsmap"), here);
  if (type == "Strip") {
    auto made = std::make_unique<Strip>();
    made->left = flag(about, "strip_left", false, here), made->right = flag(about, "strip_right", false, here);
    return made;
  }
  if (type == "Prepend") {
    auto made = std::make_unique<Prepend>();
    made->front = wide(words("prepend"), here);
    return made;
  }
  if (type == "Replace") {
    auto made = std::make_unique<Replace>();
    made->pattern = pattern_of(about["pattern"], here);
    made->content = wide(words("content"), here);
    return made;
  }
  unsupported(where, "normalizer " + (type.empty() ? about.words() : type),
              "Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Nmt, Precompiled, Strip, Prepend or Replace");
}

}  // namespace vditc::internal
