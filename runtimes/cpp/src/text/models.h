// What turns a piece of text into tokens: `model` of a tokenizer.json.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace vditc::internal {

using Ids = std::vector<int64_t>;

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends those of a piece that is not empty.
  virtual void tokenize(std::string_view piece, Ids& ids) const = 0;
  virtual int64_t find(std::string_view token) const = 0;  // -1: none
  virtual size_t size() const = 0;
};

// Error VDITC_ERROR_UNSUPPORTED for another model or an option that is not known. `where`: the file.
std::unique_ptr<TokenModel> model_of(const Json& about, const std::string& where);
std::unique_ptr<TokenModel> unigram(const Json& about, const std::string& where);
std::unique_ptr<TokenModel> bpe(const Json& about, const std::string& where);
// <0x00> to <0xFF>.
std::string byte_token(uint8_t byte);

}  // namespace vditc::internal
