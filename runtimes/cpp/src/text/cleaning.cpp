#include "text/cleaning.h"

#include <algorithm>
#include <cstring>

#include "status.h"

namespace vditc::internal {
namespace {

struct Entity {
  const char* name;
  const char* value;
};

#include "text/html_entities.inc"

constexpr size_t LONGEST = 32;  // of a name

// str.isspace() of Python.
bool space(char32_t c) { return unicode::blank(c) || (c >= 0x1C && c <= 0x1F); }

std::u32string stripped(const std::u32string& text) {
  size_t begin = 0, end = text.size();
  while (begin < end && space(text[begin])) ++begin;
  while (end > begin && space(text[end - 1])) --end;
  return text.substr(begin, end - begin);
}

std::u32string one_space(const std::u32string& text) {
  std::u32string made;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!space(text[i])) made += text[i];
    else if (i == 0 || !space(text[i - 1])) made += U' ';
  }
  return stripped(made);
}

template <size_t count>
const Entity* find(const Entity (&table)[count], const std::string& name) {
  const auto found = std::lower_bound(std::begin(table), std::end(table), name, [](const Entity& entity, const std::string& word) { return entity.name < word; });
  return found != std::end(table) && name == found->name ? &*found : nullptr;
}

bool digit(char32_t c) { return c >= '0' && c <= '9'; }
bool hexadecimal(char32_t c) { return digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// End of what an ampersand at `at` refers with; `at` if with nothing.
size_t reference_end(const std::u32string& text, size_t at) {
  size_t end = at + 1;
  const auto semicolon = [&] { return end < text.size() && text[end] == ';' ? end + 1 : end; };
  if (end < text.size() && text[end] == '#') {
    const bool hex = end + 1 < text.size() && (text[end + 1] == 'x' || text[end + 1] == 'X');
    const size_t begin = end += hex ? 2 : 1;
    while (end < text.size() && (hex ? hexadecimal(text[end]) : digit(text[end]))) ++end;
    return end == begin ? at : semicolon();
  }
  const auto named = [](char32_t c) { return c != '\t' && c != '\n' && c != '\f' && c != ' ' && c != '<' && c != '&' && c != '#' && c != ';'; };
  while (end < text.size() && end - at - 1 < LONGEST && named(text[end])) ++end;
  return end == at + 1 ? at : semicolon();
}

uint32_t number_of(std::u32string_view digits) {  // behind '#'
  const bool hex = digits[0] == 'x' || digits[0] == 'X';
  uint64_t number = 0;
  for (const char32_t c : digits.substr(hex ? 1 : 0)) {
    if (c == ';') break;
    number = number * (hex ? 16 : 10) + (digit(c) ? c - '0' : (c | 32) - 'a' + 10);
    number = std::min<uint64_t>(number, UINT32_MAX);
  }
  return static_cast<uint32_t>(number);
}

}  // namespace

std::u32string html_entity(std::u32string_view name, bool capitals) {
  std::string key;
  for (const char32_t c : name) append_utf8(key, c);
  const Entity* found = find(ENTITIES, key);
  if (found == nullptr && capitals) found = find(CAPITALS, key);
  return found ? wide(found->value, "html") : std::u32string();
}

std::u32string html_character(uint32_t number) {
  // Numbers of Windows-1252, which browsers take for what they are there.
  static const char16_t windows[] = {0x20AC, 0x81,   0x201A, 0x192,  0x201E, 0x2026, 0x2020, 0x2021, 0x2C6, 0x2030, 0x160,
                                     0x2039, 0x152,  0x8D,   0x17D,  0x8F,   0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022,
                                     0x2013, 0x2014, 0x2DC,  0x2122, 0x161,  0x203A, 0x153,  0x9D,   0x17E, 0x178};
  if (number == 0 || (number >= 0xD800 && number <= 0xDFFF) || number > 0x10FFFF) return U"\uFFFD";
  if (number >= 0x80 && number <= 0x9F) return {static_cast<char32_t>(windows[number - 0x80])};
  const bool forbidden = number <= 0x08 || number == 0x0B || (number >= 0x0E && number <= 0x1F) || number == 0x7F || (number >= 0xFDD0 && number <= 0xFDEF) ||
                         (number & 0xFFFE) == 0xFFFE;
  return forbidden ? std::u32string() : std::u32string{static_cast<char32_t>(number)};
}

std::u32string html_unescaped(const std::u32string& text) {
  std::u32string made;
  for (size_t at = 0, end; at < text.size(); at = end) {
    end = text[at] == '&' ? reference_end(text, at) : at;
    if (end == at) {
      made += text[at];
      end = at + 1;
      continue;
    }
    const std::u32string_view name = std::u32string_view(text).substr(at + 1, end - at - 1);
    if (name[0] == '#') {
      made += html_character(number_of(name.substr(1)));
      continue;
    }
    std::u32string value = html_entity(name, false);
    size_t used = name.size();
    while (value.empty() && --used > 1) value = html_entity(name.substr(0, used), false);  // old names need no semicolon
    if (value.empty()) made += text.substr(at, end - at);
    else made += value + std::u32string(name.substr(used));
  }
  return made;
}

std::string cleaned(const std::string& prompt, const std::vector<std::string>& steps) {
  std::u32string text = wide(prompt, "prompt");
  for (const std::string& step : steps) {
    if (step == "ftfy") text = ftfy_fixed(text);
    else if (step == "html") text = stripped(html_unescaped(html_unescaped(text)));
    else if (step == "whitespace") text = one_space(text);
    else throw Error(VDITC_ERROR_UNSUPPORTED, "prompt", "the step " + step, "ftfy, html or whitespace", "use a newer libvditc");
  }
  std::string made;
  for (const char32_t c : text) append_utf8(made, c);
  return made;
}

}  // namespace vditc::internal
