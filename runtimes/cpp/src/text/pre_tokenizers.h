// What splits text into the pieces that a model is given: `pre_tokenizer` of a tokenizer.json.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "json.h"
#include "text/unicode.h"

namespace vditc::internal {

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Pieces of a piece; empty ones are dropped.
  virtual std::vector<Text> split(const Text& text) const = 0;
};

// nullptr for null. Error VDITC_ERROR_UNSUPPORTED for a component or an option that is not known. `where`: the file.
std::unique_ptr<PreTokenizer> pre_tokenizer_of(const Json& about, const std::string& where);

}  // namespace vditc::internal
