#include "text/text_encoder.h"

#include <algorithm>
#include <cstring>

#include "files.h"
#include "status.h"
#include "text/cleaning.h"

namespace vditc::internal {
namespace {

constexpr const char* FILE_NAME = "components/conditioner.json";
constexpr uint64_t MAX_FILE = 1u << 20;
const char* const KEYS[] = {"clean",       "empty_hidden", "encoder",  "input",           "mask_input", "masked",
                            "max_length", "skip_layers",  "template", "template_tokens", "tokenizer",  "zero_padding"};

TextInput text_input(const Json& about, const Bundle& bundle) {
  const auto wrong = [&](const std::string& why) { bundle.damaged("a conditioner.json with wrong keys (" + why + ")", "what vditc writes"); };
  for (const auto& [name, value] : about.members) {
    if (std::find(std::begin(KEYS), std::end(KEYS), name) == std::end(KEYS)) wrong(name);
  }
  const auto words = [&](const char* name, bool needed) {
    if (!about[name].is(Json::TEXT) && (needed || !about[name].is(Json::NOTHING))) wrong(name);
    return about[name].text;
  };
  const auto truth = [&](const char* name) {
    if (!about[name].is(Json::BOOL)) wrong(name);
    return about[name].truth;
  };
  TextInput made;
  made.encoder = words("encoder", true), made.tokenizer = words("tokenizer", true), made.input = words("input", true);
  made.mask_input = words("mask_input", false);
  made.masked = truth("masked"), made.zero_padding = truth("zero_padding"), made.empty_hidden = truth("empty_hidden");
  if (!about["clean"].is(Json::LIST)) wrong("clean");
  for (const Json& step : about["clean"].items) made.clean.push_back(step.text_or(""));
  const std::string around = about.find("template") ? words("template", true) : "{}";
  const size_t at = around.find("{}");
  if (at == around.npos || around.find("{}", at + 1) != around.npos) wrong("template");
  made.before = around.substr(0, at), made.behind = around.substr(at + 2);
  const int64_t tokens = about["template_tokens"].integer_or(0);
  if (tokens < 0) wrong("template_tokens");
  made.template_tokens = static_cast<size_t>(tokens);
  return made;
}

// Size of a token's vector, and whether there is one a token.
struct Width {
  int64_t size;
  bool tokens;
};
Width width_of(const Bundle& bundle, const TextInput& text) {
  for (const InputSpec& spec : bundle.inputs()) {
    if (spec.name != text.input) continue;
    const size_t rank = spec.dims.size();
    if ((rank == 2 || rank == 3) && spec.dims.back().size > 0) return {spec.dims.back().size, rank == 3};
    throw Error(VDITC_ERROR_UNSUPPORTED, "bundle " + bundle.path(), "encoded prompts " + spec.name + " " + spec.dims_words(), "[batch, tokens, width] or [batch, width]",
                "encode prompts with the pipeline, and give them with vditc_conditioning_set_input");
  }
  bundle.damaged("a text encoder for " + text.input, "an input of the transformer");
}

vditc_tensor ids_tensor(const char* name, const Ids& from, size_t count) {
  vditc_tensor made{};
  made.name = name, made.data = from.data(), made.dtype = VDITC_I64, made.bytes = count * sizeof(int64_t);
  made.rank = 2, made.shape[0] = 1, made.shape[1] = static_cast<int64_t>(count);
  return made;
}

template <class T>
void append(std::vector<uint8_t>& to, const T* from, size_t count) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(from);
  to.insert(to.end(), bytes, bytes + count * sizeof(T));
}

// One prompt's states, [tokens, width] without the template's, or [width].
void encode(const TextInput& text, Width width, Program& program, const Ids& ids, const Ids& mask, std::vector<Output>& outputs, std::vector<float>& row) {
  const size_t length = ids.size();
  const Ids seen = text.masked ? mask : Ids(length, 1);
  const auto all = static_cast<size_t>(std::count(seen.begin(), seen.end(), 1));
  // What is hidden and becomes zero need not be computed.
  const bool cuts = width.tokens && text.zero_padding && text.masked && length > 0 && seen[0] == 1;
  const size_t used = cuts ? std::max<size_t>(1, all) : length, size = static_cast<size_t>(width.size);
  outputs.resize(1);
  outputs[0].name.clear();
  outputs[0].shape = width.tokens ? Shape{1, static_cast<int64_t>(used), width.size} : Shape{1, width.size};
  program.run({ids_tensor("input_ids", ids, used), ids_tensor("attention_mask", seen, used)}, outputs);
  const std::vector<float>& hidden = outputs[0].data;
  if (!width.tokens) {
    row = hidden;
    return;
  }
  row.assign((length - text.template_tokens) * size, 0);
  for (size_t token = text.template_tokens; token < used; ++token) {
    const float* from = hidden.data() + token * size;
    float* to = row.data() + (token - text.template_tokens) * size;
    const float factor = text.zero_padding ? static_cast<float>(mask[token]) : 1.0f;
    for (size_t i = 0; i < size; ++i) to[i] = from[i] * factor;
  }
}

}  // namespace

bool encodes_prompts(const Bundle& bundle) { return bundle.file(FILE_NAME) != nullptr; }

std::vector<TextInput> text_inputs(const Bundle& bundle) {
  if (!encodes_prompts(bundle)) {
    throw Error(VDITC_ERROR_NOT_FOUND, "bundle " + bundle.path(), "no text encoder", "a bundle that was compiled with its pipeline's text encoders",
                "encode prompts with the pipeline, and give them with vditc_conditioning_set_input");
  }
  const std::string path = inside(bundle.path(), FILE_NAME, "bundle " + bundle.path());
  const Json about = Json::parse(read_file(path, MAX_FILE, "conditioner", "a conditioner.json", "compile the bundle again"), path);
  if (about["text"].items.empty()) bundle.damaged("a conditioner.json without text encoders", "one or more");
  std::vector<TextInput> made;
  for (const Json& text : about["text"].items) made.push_back(text_input(text, bundle));
  return made;
}

Tokens tokens_of(const Bundle& bundle, const TextInput& text, const std::vector<std::string>& prompts) {
  std::vector<std::string> whole;
  for (const std::string& prompt : prompts) whole.push_back(text.before + cleaned(prompt, text.clean) + text.behind);
  Tokens made = bundle.tokenizer(text.tokenizer)->tokenize(whole);
  if (made.length() < text.template_tokens) {
    bundle.damaged(internal::text("%zu tokens with %zu of the template", made.length(), text.template_tokens), "a prompt's behind the template's");
  }
  for (size_t i = 0; text.empty_hidden && i < prompts.size(); ++i) {
    if (!prompts[i].empty()) continue;
    std::fill(made.ids[i].begin(), made.ids[i].end(), 0);
    std::fill(made.mask[i].begin(), made.mask[i].end(), 0);
  }
  return made;
}

std::vector<EncodedText> encoded_prompts(const Bundle& bundle, const std::function<std::unique_ptr<Program>(const std::string& encoder)>& open,
                                         const std::vector<std::string>& prompts, const std::function<void()>& before_each) {
  const std::vector<TextInput> texts = text_inputs(bundle);
  std::vector<Tokens> tokens;  // of all, so that what is wrong with a prompt is told before an encoder is read
  std::vector<Width> widths;
  for (const TextInput& text : texts) {
    before_each();
    tokens.push_back(tokens_of(bundle, text, prompts));
    widths.push_back(width_of(bundle, text));
  }
  std::vector<EncodedText> made;
  std::vector<float> row;
  for (size_t i = 0; i < texts.size(); ++i) {
    const TextInput& text = texts[i];
    const size_t skipped = text.template_tokens;
    const auto length = static_cast<int64_t>(tokens[i].length() - skipped);
    EncodedText hidden{text.input, VDITC_F32, widths[i].tokens ? Shape{length, widths[i].size} : Shape{widths[i].size}, {}};
    const size_t dropped = widths[i].tokens ? skipped : 0;  // as in Python, the mask of one vector is that of the template too
    EncodedText mask{text.mask_input, VDITC_I64, {static_cast<int64_t>(tokens[i].length() - dropped)}, {}};
    before_each();
    const std::unique_ptr<Program> program = open(text.encoder);
    std::vector<Output> outputs;
    for (size_t prompt = 0; prompt < prompts.size(); ++prompt) {
      before_each();
      const Ids& own = tokens[i].mask[prompt];
      encode(text, widths[i], *program, tokens[i].ids[prompt], own, outputs, row);
      append(hidden.data, row.data(), row.size());
      append(mask.data, own.data() + dropped, own.size() - dropped);
    }
    made.push_back(std::move(hidden));
    if (!text.mask_input.empty()) made.push_back(std::move(mask));
  }
  return made;
}

}  // namespace vditc::internal
