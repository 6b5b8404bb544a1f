// What Split and Replace look for: literal text, and the regular expressions of known tokenizers, each by a matcher of its own.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "json.h"
#include "text/unicode.h"

namespace vditc::internal {

struct Match {
  size_t begin, end;
  bool matched;
};

class Pattern {
 public:
  virtual ~Pattern() = default;
  // End of the match that begins at `begin`; `begin` where there is none. No match is empty.
  virtual size_t match(const Text& text, size_t begin) const = 0;
  // The whole text, in turn what matches and what is between.
  std::vector<Match> matches(const Text& text) const;
};

// {"String": TEXT} or {"Regex": TEXT}. Error VDITC_ERROR_UNSUPPORTED for a regular expression that is not known. `where`: file and component.
std::unique_ptr<Pattern> pattern_of(const Json& about, const std::string& where);
std::unique_ptr<Pattern> regex_of(const std::string& expression, const std::string& where);

}  // namespace vditc::internal
