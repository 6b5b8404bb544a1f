// What the Python package ftfy does to text by its defaults, but for one thing: where it would guess what text was meant by characters that look
// misread (UTF-8 that was read as an 8-bit code), an error says so. That text is found generously: ftfy may leave alone what is refused here,
// never the other way round.
#include <algorithm>

#include "status.h"
#include "text/cleaning.h"

namespace vditc::internal {
namespace {

constexpr size_t SEGMENT = 1000000;  // characters, that ftfy reads at once

bool within(char32_t c, char32_t first, char32_t last) { return first <= c && c <= last; }
bool any(char32_t c, std::u32string_view of) { return of.find(c) != of.npos; }
bool lower_ascii(char32_t c) { return within(c, 'a', 'z'); }
bool letter_ascii(char32_t c) { return within(c | 32, 'a', 'z'); }

// Characters of 8-bit codes, by what misreading makes of them.
enum Kind { PLAIN, COMMON, LOWER, UPPER, OTHER_SCRIPT, OPENING, CLOSING, SIGN, BOX };

Kind kind(char32_t c) {
  if (c < 0xA0) return PLAIN;
  if (any(c, U"\u00A0\u00AD\u00B4\u00B7\u2013\u2014\u2015\u2019\u2026")) return COMMON;
  if (any(c, U"\u00A1\u00A9\u00AB\u00BF\u0384\u0385\u2018\u201A\u201C\u201E\u2022\u2039\uF8FF")) return OPENING;
  if (any(c, U"\u00AE\u00BB\u02DD\u201D\u203A\u2122")) return CLOSING;
  if (within(c, 0xA2, 0xBE) || c == 0xD7 || c == 0xF7) return SIGN;
  if (within(c, 0xC0, 0xDE) || c == 0x490) return UPPER;
  if (within(c, 0xDF, 0xFF) || c == 0x491 || c == 0xFB01 || c == 0xFB02) return LOWER;
  if (within(c, 0x100, 0x17F)) return unicode::lower({{c, 0}})[0].value == c ? LOWER : UPPER;
  if (within(c, 0x386, 0x3CE) || within(c, 0x401, 0x45F)) return OTHER_SCRIPT;
  if (within(c, 0x2500, 0x259F)) return BOX;
  const bool sign = any(c, U"\u0192\u02C6\u02C7\u02D8\u02DB\u02DC\u2020\u2021\u2030\u2044\u20A7\u20AC\u2116\u2202\u2206\u220F\u2211\u221A\u221E\u2229\u222B"
                           U"\u2248\u2260\u2261\u2264\u2265\u2310\u25CA\uFFFD");
  return sign ? SIGN : PLAIN;
}

// Whether a character belongs to a word, as far as nobody would put one right behind a quotation mark.
bool wordlike(char32_t c) { return c >= 0x80 || letter_ascii(c) || within(c, '0', '9') || c == '_'; }

// `a` and `b` are neighbours at `at`.
bool misread_at(const std::u32string& text, size_t at) {
  const char32_t a = text[at], b = at + 1 < text.size() ? text[at + 1] : 0, c = at + 2 < text.size() ? text[at + 2] : 0;
  if (within(a, 0x80, 0x9F)) return true;
  const Kind first = kind(a);
  if (first == PLAIN || at + 1 == text.size()) return false;
  const Kind second = kind(b);
  const bool accented = first == LOWER || first == UPPER, mark = second == OPENING || second == CLOSING;
  if ((a == 0x152 || a == 0x153) && !letter_ascii(b)) return true;
  if ((a == 0xC2 || a == 0xC3) && b == ' ') {
    const char32_t before = at > 0 ? text[at - 1] : ' ';
    return before >= 0x80 || lower_ascii(before) || any(before, U".,?!") || unicode::blank(before);
  }
  if (any(a, U"\u00C2\u00C3\u00CE\u00D0") && (second == COMMON || mark || second == SIGN || any(b, U"\u0153\u0160\u0161\u0178\u017E"))) return true;
  if (any(a, U"\u00D8\u00D9") && (c == 0xD8 || c == 0xD9) && (second == COMMON || mark || second == SIGN || any(b, U"\u0160\u0178"))) return true;
  if (any(a, U"\u201A\u221A\u2248") && b >= 0x80) return true;
  if ((a == 0x432 || a == 0x412) && b == 0x402) return true;
  if (first == OTHER_SCRIPT) {
    if (a == 0x3B2 && b == 0x20AC) return true;
    if (any(a, U"\u0412\u0413\u0420\u0421") && any(c, U"\u0412\u0413\u0420\u0421") && (mark || second == SIGN)) return true;
    if (any(a, U"\u0392\u0393\u039E\u039F") && any(c, U"\u0392\u0393\u039E\u039F") && (mark || second == SIGN)) return true;
    return second == UPPER || (second == SIGN && b != 0x2116 && b != 0xB0);
  }
  if (accented) {
    if (second == SIGN || second == BOX) return true;
    if (mark) return (first == UPPER && second == OPENING) || (at + 2 < text.size() && (wordlike(c) || kind(c) != PLAIN));
    return first == LOWER && second == UPPER;
  }
  if (second == PLAIN || second == COMMON || second == OTHER_SCRIPT || first == COMMON) return false;
  if (first == OPENING) return second == SIGN || second == BOX;
  if (first == BOX) return second != BOX;
  if (first == CLOSING) return second != CLOSING;
  return true;  // a sign in front of another, or of an accented letter
}

std::u32string unescaped(const std::u32string& text) {
  std::u32string made;
  for (size_t at = 0; at < text.size();) {
    size_t name = at + 1, end;
    if (text[at] == '&' && name < text.size() && text[name] == '#') ++name;
    for (end = name; end < text.size() && end - name < 25 && (letter_ascii(text[end]) || within(text[end], '0', '9')); ++end) {
    }
    if (text[at] != '&' || end == name || end - name > 24 || end == text.size() || text[end] != ';') {
      made += text[at++];
      continue;
    }
    const std::u32string whole = text.substr(at, end + 1 - at);
    const std::u32string value = whole[1] == '#' ? html_unescaped(whole) : html_entity(std::u32string_view(whole).substr(1), true);
    const bool number = whole[1] == '#' && value.find(U';') == value.npos, named = whole[1] != '#' && !value.empty();
    made += number || named ? value : whole;
    at = end + 1;
  }
  return made;
}

// Ligatures of Latin letters and characters of other widths as those that they stand for, straight quotation marks, one kind of line end, no
// control characters.
std::u32string simplified(const std::u32string& text) {
  std::u32string made;
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    const bool ligature = c == 0x132 || c == 0x133 || c == 0x149 || within(c, 0x1C4, 0x1CC) || within(c, 0x1F1, 0x1F3) || within(c, 0xFB00, 0xFB06);
    if (c == 0xFB05) made += U"\u017Ft";
    else if (c == 0x3000) made += U' ';
    else if (ligature || within(c, 0xFF01, 0xFFEF)) for (const Char& part : unicode::normalized({{c, 0}}, unicode::NFKC)) made += part.value;
    else made += c;
  }
  std::u32string next;
  for (size_t i = 0; i < made.size(); ++i) {
    const char32_t c = made[i];
    if (c == 0x2BC || within(c, 0x2018, 0x201B)) next += U'\'';
    else if (within(c, 0x201C, 0x201F)) next += U'"';
    else if (c == '\r' && i + 1 < made.size() && made[i + 1] == '\n') continue;
    else if (c == '\r' || c == 0x2028 || c == 0x2029 || c == 0x85) next += U'\n';
    else next += c;
  }
  made.clear();
  for (size_t i = 0; i < next.size(); ++i) {
    if (next[i] == 0x1B && i + 1 < next.size() && next[i + 1] == '[') {  // a terminal's colours
      size_t end = i + 2;
      while (end < next.size() && (within(next[end], '0', '9') || next[end] == ';' || (next[end] >= 0x80 && unicode::number(next[end])))) ++end;
      if (end < next.size() && letter_ascii(next[end])) {
        i = end;
        continue;
      }
    }
    made += next[i];
  }
  const auto control = [](char32_t c) {
    return c <= 0x08 || c == 0x0B || within(c, 0x0E, 0x1F) || c == 0x7F || within(c, 0x206A, 0x206F) || c == 0xFEFF || within(c, 0xFFF9, 0xFFFC);
  };
  made.erase(std::remove_if(made.begin(), made.end(), control), made.end());
  return made;
}

std::u32string composed(const std::u32string& text) {
  Text whole;
  for (const char32_t c : text) whole.push_back({c, 0});
  std::u32string made;
  for (const Char& c : unicode::normalized(whole, unicode::NFC)) made += c.value;
  return made;
}

std::u32string segment_fixed(std::u32string text, bool unescapes) {
  unescapes = unescapes && text.find(U'<') == text.npos;
  for (std::u32string before;; before.clear()) {
    before = text;
    if (unescapes) text = unescaped(text);
    const size_t at = misread(text);
    if (at < text.size()) {
      std::string part;
      for (const char32_t c : text.substr(at, 3)) append_utf8(part, c);
      throw Error(VDITC_ERROR_UNSUPPORTED, "prompt", "'" + part + "', which looks misread", "text of plain letters and signs, as ftfy leaves it alone",
                  "write what is meant, with spaces between signs, or give embeddings");
    }
    text = composed(simplified(text));
    if (text == before) return text;
  }
}

}  // namespace

size_t misread(const std::u32string& text) {
  for (size_t at = 0; at < text.size(); ++at) {
    if (misread_at(text, at)) return at;
  }
  return text.size();
}

std::u32string ftfy_fixed(const std::u32string& text) {
  std::u32string made;
  bool unescapes = true;  // until a segment looks like HTML
  for (size_t begin = 0, end; begin < text.size(); begin = end) {
    end = std::min(text.find(U'\n', begin), text.size() - 1) + 1;
    end = std::min(end, begin + SEGMENT);
    const std::u32string segment = text.substr(begin, end - begin);
    unescapes = unescapes && segment.find(U'<') == segment.npos;
    made += segment_fixed(segment, unescapes);
  }
  return made;
}

}  // namespace vditc::internal
