// Prompts into a conditioning, by the bundle's text encoders on the session's backend.
#include <algorithm>

#include "session.h"
#include "status.h"
#include "text/text_encoder.h"

namespace vditc::internal {
namespace {

// Rows of `from` by their indices.
vditc_tensor rows_of(const EncodedText& from, const std::vector<size_t>& rows, std::vector<uint8_t>& memory) {
  const size_t size = static_cast<size_t>(elements(from.shape)) * dtype_size(from.dtype);
  memory.resize(size * rows.size());
  for (size_t i = 0; i < rows.size(); ++i) std::copy_n(from.data.data() + rows[i] * size, size, memory.data() + i * size);
  vditc_tensor made{};
  made.name = from.name.c_str(), made.data = memory.data(), made.bytes = memory.size(), made.dtype = from.dtype;
  made.rank = static_cast<uint32_t>(from.shape.size() + 1);
  made.shape[0] = static_cast<int64_t>(rows.size());
  std::copy(from.shape.begin(), from.shape.end(), made.shape + 1);
  return made;
}

}  // namespace

void Session::encode(const std::vector<std::string>& prompts, const std::vector<std::string>& negatives, Conditioning& conditioning) {
  const AtWork at_work(*this);
  const size_t clips = conditioning.snapshot().count();
  if (prompts.size() != clips) {
    throw Error(VDITC_ERROR_INPUT, "conditioning", text("%zu prompts", prompts.size()), text("%zu, one a clip", clips), "give every clip a prompt");
  }
  std::vector<std::string> every;  // once each
  const auto place = [&](const std::string& prompt) {
    const auto found = std::find(every.begin(), every.end(), prompt);
    const auto at = static_cast<size_t>(found - every.begin());
    if (found == every.end()) every.push_back(prompt);
    return at;
  };
  std::vector<size_t> with, without;
  for (const std::string& prompt : prompts) with.push_back(place(prompt));
  for (const std::string& negative : negatives) without.push_back(place(negative));
  const bool same = std::all_of(without.begin(), without.end(), [&](size_t at) { return at == without[0]; });
  if (same) without.resize(1);
  const auto opened = [this](const std::string& encoder) { return part(encoder, "model"); };
  const std::vector<EncodedText> texts = encoded_prompts(*bundle_, opened, every, [this] { stop_if_cancelled(); });
  std::vector<uint8_t> memory;
  for (const EncodedText& text : texts) {
    conditioning.set_input(text.name, rows_of(text, with, memory));
    conditioning.set_empty(text.name, rows_of(text, without, memory));
  }
}

}  // namespace vditc::internal
