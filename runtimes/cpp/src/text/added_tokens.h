// Tokens that are found in the text before a model sees it: `added_tokens` of a tokenizer.json.
#pragma once
#include <string>
#include <vector>

#include "json.h"
#include "text/models.h"
#include "text/normalizers.h"

namespace vditc::internal {

class AddedTokens {
 public:
  // Of text, some is a token; `id` is -1 of the rest.
  struct Part {
    Text text;
    int64_t id;
  };

  AddedTokens(const Json& list, const TokenModel& model, const Normalizer* normalizer, const std::string& where);
  // Those that stand in the text as it is, then, in the rest, normalized, those that are normalized too.
  std::vector<Part> split(const Text& text, const Normalizer* normalizer) const;

 private:
  struct Token {
    std::u32string pattern;
    int64_t id;
    bool single_word, lstrip, rstrip;
  };
  std::vector<Token> plain_, normalized_;

  static std::vector<Part> found(const std::vector<Token>& tokens, const Text& text);
};

}  // namespace vditc::internal
