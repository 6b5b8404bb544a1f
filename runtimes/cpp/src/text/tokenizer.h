// Prompts as tokens, by a tokenizer.json of the tokenizers package (vditc.runtimes.parts.prompt_tokens is the same in Python).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/models.h"
#include "text/normalizers.h"
#include "text/post_processor.h"
#include "text/pre_tokenizers.h"

namespace vditc::internal {

// [prompts][tokens]; every row is as long as the others.
struct Tokens {
  std::vector<Ids> ids, mask;
  size_t length() const { return ids.empty() ? 0 : ids[0].size(); }
};

class Tokenizer {
 public:
  // Error VDITC_ERROR_UNSUPPORTED for a file with something that this library would tokenize otherwise.
  static std::shared_ptr<const Tokenizer> open(const std::string& path);
  Tokens tokenize(const std::vector<std::string>& prompts) const;

 private:
  Tokenizer(const Json& file, const std::string& path);
  std::string path_;
  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  std::unique_ptr<TokenModel> model_;
  AddedTokens added_;
  PostProcessor post_;
};

}  // namespace vditc::internal
