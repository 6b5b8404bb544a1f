// What pipelines do to a prompt before it is tokenized, by name (vditc.prompt_cleaning is the same in Python).
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "text/unicode.h"

namespace vditc::internal {

// Error VDITC_ERROR_UNSUPPORTED for text that `ftfy` may mend by guessing, and for a step that is not known.
std::string cleaned(const std::string& prompt, const std::vector<std::string>& steps);

// Python's html.unescape.
std::u32string html_unescaped(const std::u32string& text);
// Of "&name;", with its semicolon, where HTML or ftfy knows the name; "" for others.
std::u32string html_entity(std::u32string_view name, bool capitals);
// Of a reference's number: a character, U+FFFD, or "" for those that HTML forbids.
std::u32string html_character(uint32_t number);

// ftfy.fix_text with its defaults.
std::u32string ftfy_fixed(const std::u32string& text);
// Where text is that looks like UTF-8 which was read as something else; its size if none does.
size_t misread(const std::u32string& text);

}  // namespace vditc::internal
