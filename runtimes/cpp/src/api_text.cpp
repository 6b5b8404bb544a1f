#include <cstring>

#include "api.h"
#include "session.h"
#include "text/text_encoder.h"

using namespace vditc::internal;

namespace {

std::vector<std::string> texts_of(const char* const* given, uint64_t count, const char* what) {
  std::vector<std::string> made;
  for (uint64_t i = 0; i < count; ++i) made.emplace_back(&required((&required(given, what))[i], what));
  return made;
}

const TextInput& chosen(const std::vector<TextInput>& texts, const char* input) {
  std::string known;
  for (const TextInput& text : texts) {
    if (input == nullptr || text.input == input) return text;
    known += (known.empty() ? "" : ", ") + text.input;
  }
  throw Error(VDITC_ERROR_NOT_FOUND, "bundle", std::string("no text encoder for ") + input, known, "choose one of these");
}

}  // namespace

extern "C" {

vditc_status vditc_bundle_tokenize(vditc_bundle* handle, const char* prompt, const char* input, int64_t* ids, int64_t* mask, uint64_t capacity, uint64_t* needed) {
  return guarded([&] {
    const auto bundle = of_handle<Bundle>(handle, "bundle");
    const Tokens made = tokens_of(*bundle, chosen(text_inputs(*bundle), input), {&required(prompt, "prompt")});
    if (needed != nullptr) *needed = made.length();
    if (ids == nullptr || capacity < made.length()) {
      throw Error(VDITC_ERROR_SHORT_BUFFER, "ids", text("room for %llu", static_cast<unsigned long long>(ids ? capacity : 0)), text("%zu", made.length()),
                  "call again with a larger buffer");
    }
    std::copy(made.ids[0].begin(), made.ids[0].end(), ids);
    if (mask != nullptr) std::copy(made.mask[0].begin(), made.mask[0].end(), mask);
  });
}

vditc_status vditc_session_encode(vditc_session* handle, const char* const* prompts, const char* const* negatives, uint64_t count,
                                  vditc_conditioning* conditioning) {
  return guarded([&] {
    const auto session = of_handle<Session>(handle, "session");
    const auto to = of_handle<Conditioning>(conditioning, "conditioning");
    if (count == 0) throw Error(VDITC_ERROR_ARGUMENT, "prompts", "none", "one a clip", "give a prompt");
    const std::vector<std::string> without = negatives ? texts_of(negatives, count, "negatives") : std::vector<std::string>(count);
    session->encode(texts_of(prompts, count, "prompts"), without, *to);
  });
}
}
