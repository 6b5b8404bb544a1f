#include "text/unicode.h"

#include <algorithm>
#include <unordered_map>

#include "status.h"

namespace vditc::internal {
namespace {

#include "text/unicode_tables.inc"

struct Range {
  char32_t begin, end;
};

class Ranges {
 public:
  Ranges(const uint32_t* table, size_t count) {
    char32_t at = 0;
    for (size_t i = 0; i + 1 < count; i += 2) {
      ranges_.push_back({at + table[i], at + table[i] + table[i + 1]});
      at = ranges_.back().end;
    }
  }
  bool has(char32_t value) const {
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), value, [](char32_t v, const Range& range) { return v < range.begin; });
    return after != ranges_.begin() && value < std::prev(after)->end;
  }

 private:
  std::vector<Range> ranges_;
};

using Mapping = std::unordered_map<char32_t, std::u32string>;

void add_mapping(Mapping& to, const uint32_t* table, size_t count) {
  char32_t at = 0;
  for (size_t i = 0; i < count; i += 2 + table[i + 1]) {
    at += table[i];
    to[at] = std::u32string(table + i + 2, table + i + 2 + table[i + 1]);
  }
}

#define TABLE(name) name, sizeof name / sizeof *name

struct Tables {
  Ranges letters{TABLE(LETTERS)}, numbers{TABLE(NUMBERS)}, words{TABLE(WORDS)}, blanks{TABLE(BLANKS)};
  Ranges joined{TABLE(JOINED)}, prepended{TABLE(PREPENDED)}, controls{TABLE(CONTROLS)};
  Mapping lower, canonical, compatible;
  std::unordered_map<uint64_t, char32_t> pairs;
  std::unordered_map<char32_t, uint32_t> marks;

  Tables() {
    char32_t at = 0;
    for (size_t i = 0; i + 3 < sizeof LOWER / sizeof *LOWER; i += 4) {
      const uint32_t count = LOWER[i + 1], step = LOWER[i + 2], distance = LOWER[i + 3];
      at += LOWER[i];
      for (uint32_t k = 0; k < count; ++k, at += k < count ? step : 0) lower[at] = std::u32string(1, static_cast<char32_t>(at + distance));
    }
    add_mapping(lower, TABLE(LOWER_LONG));
    add_mapping(canonical, TABLE(CANONICAL));
    compatible = canonical;
    add_mapping(compatible, TABLE(COMPATIBLE));
    for (size_t i = 0; i + 2 < sizeof PAIRS / sizeof *PAIRS; i += 3) pairs[uint64_t{PAIRS[i]} << 32 | PAIRS[i + 1]] = PAIRS[i + 2];
    at = 0;
    for (size_t i = 0; i + 2 < sizeof MARKS / sizeof *MARKS; i += 3) {
      at += MARKS[i];
      for (uint32_t k = 0; k < MARKS[i + 1]; ++k) marks[at++] = MARKS[i + 2];
    }
  }
  uint32_t mark(char32_t value) const {
    const auto found = marks.find(value);
    return found == marks.end() ? 0 : found->second;
  }
};

const Tables& tables() {
  static const Tables* made = new Tables;  // hosts may tokenize while the process ends
  return *made;
}

// Conjoining jamo of Hangul syllables.
constexpr char32_t SYLLABLES = 0xAC00, LEADS = 0x1100, VOWELS = 0x1161, TAILS = 0x11A7;
constexpr uint32_t LEAD_COUNT = 19, VOWEL_COUNT = 21, TAIL_COUNT = 28, SYLLABLE_COUNT = LEAD_COUNT * VOWEL_COUNT * TAIL_COUNT;

bool within(char32_t value, char32_t first, char32_t last) { return first <= value && value <= last; }

// 0: none.
char32_t composed(char32_t first, char32_t second) {
  if (first - LEADS < LEAD_COUNT && second - VOWELS < VOWEL_COUNT) {
    return SYLLABLES + ((first - LEADS) * VOWEL_COUNT + (second - VOWELS)) * TAIL_COUNT;
  }
  if (first - SYLLABLES < SYLLABLE_COUNT && (first - SYLLABLES) % TAIL_COUNT == 0 && second > TAILS && second - TAILS < TAIL_COUNT) {
    return first + (second - TAILS);
  }
  const auto found = tables().pairs.find(uint64_t{first} << 32 | second);
  return found == tables().pairs.end() ? 0 : found->second;
}

// Marks of a canonical order behind their letter, letters and marks together where they can be.
void compose(Text& text) {
  size_t written = 0, starter = SIZE_MAX;
  uint32_t last = 0;  // class of what stands between the starter and this
  for (size_t i = 0; i < text.size(); ++i) {
    const uint32_t own = tables().mark(text[i].value);
    const bool adjacent = starter != SIZE_MAX && written == starter + 1, open = adjacent || (starter != SIZE_MAX && last != 0 && last < own);
    if (const char32_t both = open ? composed(text[starter].value, text[i].value) : 0) {
      text[starter].value = both;
      continue;
    }
    if (own == 0) starter = written;
    last = own;
    text[written++] = text[i];
  }
  text.resize(written);
}

}  // namespace

size_t utf8_length(char32_t value) { return value < 0x80 ? 1 : value < 0x800 ? 2 : value < 0x10000 ? 3 : 4; }

Text decoded(std::string_view bytes, const std::string& where) {
  Text made;
  made.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    const auto lead = static_cast<uint8_t>(bytes[i]);
    const size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    char32_t value = length == 1 ? lead : lead & (0x7F >> length);
    bool well = length > 0 && i + length <= bytes.size();
    for (size_t k = 1; well && k < length; ++k) {
      const auto next = static_cast<uint8_t>(bytes[i + k]);
      well = (next & 0xC0) == 0x80;
      value = value << 6 | (next & 0x3F);
    }
    if (!well || utf8_length(value) != length || within(value, 0xD800, 0xDFFF) || value > 0x10FFFF) {
      throw Error(VDITC_ERROR_INPUT, where, text("byte %02x at %zu, which is no UTF-8", lead, i), "UTF-8", "convert the text first");
    }
    made.push_back({value, static_cast<uint32_t>(i)});
    i += length;
  }
  return made;
}

void append_utf8(std::string& to, char32_t value) {
  const size_t length = utf8_length(value);
  if (length == 1) {
    to += static_cast<char>(value);
    return;
  }
  to += static_cast<char>((0xF00 >> length) | (value >> (6 * (length - 1))));
  for (size_t k = length - 1; k-- > 0;) to += static_cast<char>(0x80 | ((value >> (6 * k)) & 0x3F));
}

std::string encoded(const Char* begin, const Char* end) {
  std::string made;
  for (; begin != end; ++begin) append_utf8(made, begin->value);
  return made;
}

std::u32string wide(const std::string& utf8, const std::string& where) {
  std::u32string made;
  for (const Char& c : decoded(utf8, where)) made += c.value;
  return made;
}

namespace unicode {

bool letter(char32_t value) { return tables().letters.has(value); }
bool number(char32_t value) { return tables().numbers.has(value); }
bool word(char32_t value) { return tables().words.has(value); }
bool blank(char32_t value) { return tables().blanks.has(value); }

Text normalized(const Text& text, Form form) {
  const Mapping& parts = form == NFC || form == NFD ? tables().canonical : tables().compatible;
  Text made;
  made.reserve(text.size());
  for (const Char& c : text) {
    if (c.value - SYLLABLES < SYLLABLE_COUNT) {
      const uint32_t index = c.value - SYLLABLES;
      made.push_back({LEADS + index / (VOWEL_COUNT * TAIL_COUNT), c.from});
      made.push_back({VOWELS + index / TAIL_COUNT % VOWEL_COUNT, c.from});
      if (index % TAIL_COUNT) made.push_back({TAILS + index % TAIL_COUNT, c.from});
      continue;
    }
    const auto found = c.value < 0x80 ? parts.end() : parts.find(c.value);
    if (found == parts.end()) made.push_back(c);
    else for (const char32_t part : found->second) made.push_back({part, c.from});
  }
  for (size_t i = 0; i < made.size();) {  // runs of marks in the order of their classes
    size_t end = i;
    while (end < made.size() && tables().mark(made[end].value) != 0) ++end;
    std::stable_sort(made.begin() + static_cast<std::ptrdiff_t>(i), made.begin() + static_cast<std::ptrdiff_t>(end),
                     [](const Char& a, const Char& b) { return tables().mark(a.value) < tables().mark(b.value); });
    i = std::max(end, i + 1);
  }
  if (form == NFC || form == NFKC) compose(made);
  return made;
}

Text lower(const Text& text) {
  Text made;
  made.reserve(text.size());
  for (const Char& c : text) {
    const auto found = tables().lower.find(c.value);
    if (found == tables().lower.end()) made.push_back(c);
    else for (const char32_t part : found->second) made.push_back({part, c.from});
  }
  return made;
}

size_t grapheme_end(const Text& text, size_t begin) {
  // Clusters of emoji and of Indic conjuncts, which are longer than anybody asks for here, end early.
  enum Kind { OTHER, CONTROL, JOINED, PREPENDED, LEAD, VOWEL, TAIL, OPEN_SYLLABLE, SYLLABLE };
  const auto kind = [](char32_t v) {
    if (tables().controls.has(v)) return CONTROL;
    if (tables().joined.has(v)) return JOINED;
    if (tables().prepended.has(v)) return PREPENDED;
    if (within(v, 0x1100, 0x115F) || within(v, 0xA960, 0xA97C)) return LEAD;
    if (within(v, 0x1160, 0x11A7) || within(v, 0xD7B0, 0xD7C6)) return VOWEL;
    if (within(v, 0x11A8, 0x11FF) || within(v, 0xD7CB, 0xD7FB)) return TAIL;
    if (v - SYLLABLES < SYLLABLE_COUNT) return (v - SYLLABLES) % TAIL_COUNT ? SYLLABLE : OPEN_SYLLABLE;
    return OTHER;
  };
  size_t at = begin + 1;
  for (Kind before = kind(text[begin].value); at < text.size(); ++at) {
    const Kind now = kind(text[at].value);
    const bool line = text[at - 1].value == '\r' && text[at].value == '\n';
    const bool hangul = (before == LEAD && (now == LEAD || now == VOWEL || now == OPEN_SYLLABLE || now == SYLLABLE)) ||
                        ((before == VOWEL || before == OPEN_SYLLABLE) && (now == VOWEL || now == TAIL)) ||
                        ((before == TAIL || before == SYLLABLE) && now == TAIL);
    const bool joins = before != CONTROL && now != CONTROL && (now == JOINED || before == PREPENDED || hangul);
    if (!line && !joins) break;
    before = now;
  }
  return at;
}

}  // namespace unicode
}  // namespace vditc::internal
