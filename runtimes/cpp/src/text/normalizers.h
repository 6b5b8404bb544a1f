// What a tokenizer does to text before it is split: `normalizer` of a tokenizer.json.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "json.h"
#include "text/unicode.h"

namespace vditc::internal {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual Text normalized(const Text& text) const = 0;
};

// nullptr for null. Error VDITC_ERROR_UNSUPPORTED for a component or an option that is not known. `where`: the file.
std::unique_ptr<Normalizer> normalizer_of(const Json& about, const std::string& where);
// Of sentencepiece, in base 64.
std::unique_ptr<Normalizer> precompiled(const std::string& base64, const std::string& where);

// Characters of a change: 0, it replaces one; 1, it is new; -n, it replaces n more. `begin`: of the first that is replaced.
struct Changed {
  char32_t value;
  int change;
};
Text transformed(const Text& text, const std::vector<Changed>& made, size_t begin);

// Of components: errors that name the file and the component, options that have one value.
[[noreturn]] void unsupported(const std::string& where, const std::string& found, const std::string& wanted);
[[noreturn]] void damaged(const std::string& where, const std::string& found, const std::string& wanted);
bool flag(const Json& about, const char* name, bool otherwise, const std::string& where);

}  // namespace vditc::internal
