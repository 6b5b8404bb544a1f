// Characters: UTF-8, classes, lower case and normal forms, as the tokenizers package has them (tests/cpp_text_tables.py writes the tables).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace vditc::internal {

// A character and where it, or what it replaces, began in the prompt: normalized text knows what still stands at the beginning.
struct Char {
  char32_t value;
  uint32_t from;
};
using Text = std::vector<Char>;

// Error VDITC_ERROR_INPUT for bytes that are no UTF-8; `where` they are.
Text decoded(std::string_view bytes, const std::string& where);
void append_utf8(std::string& to, char32_t value);
std::string encoded(const Char* begin, const Char* end);
inline std::string encoded(const Text& text) { return encoded(text.data(), text.data() + text.size()); }
std::u32string wide(const std::string& utf8, const std::string& where);
size_t utf8_length(char32_t value);

namespace unicode {

bool letter(char32_t value);  // \p{L}
bool number(char32_t value);  // \p{N}
bool word(char32_t value);    // \w
bool blank(char32_t value);   // \s
// Hangul is composed and decomposed without tables.
enum Form { NFC, NFD, NFKC, NFKD };
Text normalized(const Text& text, Form form);
Text lower(const Text& text);
// End of the extended grapheme cluster that begins at `begin`, as far as clusters of less than 6 bytes go.
size_t grapheme_end(const Text& text, size_t begin);

}  // namespace unicode
}  // namespace vditc::internal
