// Prompts -> what the transformer is told of them (vditc.runtimes.parts.text_encoder is the same in Python).
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backends/program.h"
#include "bundle.h"
#include "text/tokenizer.h"

namespace vditc::internal {

// One text encoder of a pipeline: `vditc.conditioner.TextInput`.
struct TextInput {
  std::string encoder, tokenizer, before, behind;  // folders; of the template around the prompt
  std::vector<std::string> clean;
  size_t template_tokens = 0;
  bool masked = false, zero_padding = false, empty_hidden = false;
  std::string input, mask_input;  // of the transformer; "": it takes no mask
};

// Whether the bundle has text encoders at all.
bool encodes_prompts(const Bundle& bundle);
// Error VDITC_ERROR_NOT_FOUND for a bundle that has none.
std::vector<TextInput> text_inputs(const Bundle& bundle);
// Cleaned, in its template, and without tokens where the prompt is empty and hidden.
Tokens tokens_of(const Bundle& bundle, const TextInput& text, const std::vector<std::string>& prompts);

// An input of the transformer, one row a prompt.
struct EncodedText {
  std::string name;
  int32_t dtype;
  Shape shape;  // of a row, without the axis of prompts
  std::vector<uint8_t> data;
};

// One encoder is open at a time, `open` of its folder, and one prompt goes through at once; whatever is wrong with a prompt is told before.
// `before_each` is called in front of each run and may throw.
std::vector<EncodedText> encoded_prompts(const Bundle& bundle, const std::function<std::unique_ptr<Program>(const std::string& encoder)>& open,
                                         const std::vector<std::string>& prompts, const std::function<void()>& before_each);

}  // namespace vditc::internal
