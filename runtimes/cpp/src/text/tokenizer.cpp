#include "text/tokenizer.h"

#include "files.h"
#include "status.h"

namespace vditc::internal {
namespace {

constexpr uint64_t MAX_FILE = 256u << 20;

const Json& checked(const Json& file, const std::string& path) {
  if (!file.is(Json::OBJECT) || !file["model"].is(Json::OBJECT)) damaged(path, file.words(), "a tokenizer");
  if (file["version"].text_or("1.0") != "1.0") unsupported(path, "version " + file["version"].words(), "version 1.0");
  return file;
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::open(const std::string& path) {
  const std::string text = read_file(path, MAX_FILE, "tokenizer", "a tokenizer", "compile the bundle again");
  return std::shared_ptr<const Tokenizer>(new Tokenizer(Json::parse(text, path), path));
}

Tokenizer::Tokenizer(const Json& file, const std::string& path)
    : path_(path),
      normalizer_(normalizer_of(checked(file, path)["normalizer"], path)),
      pre_tokenizer_(pre_tokenizer_of(file["pre_tokenizer"], path)),
      model_(model_of(file["model"], path)),
      added_(file["added_tokens"], *model_, normalizer_.get(), path),
      post_(file, path) {}

Tokens Tokenizer::tokenize(const std::vector<std::string>& prompts) const {
  Tokens made;
  for (const std::string& prompt : prompts) {
    Ids ids;
    for (const AddedTokens::Part& part : added_.split(decoded(prompt, "prompt"), normalizer_.get())) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      for (const Text& piece : pre_tokenizer_ ? pre_tokenizer_->split(part.text) : std::vector<Text>{part.text}) {
        if (!piece.empty()) model_->tokenize(encoded(piece), ids);
      }
    }
    made.ids.push_back(post_.processed(ids));
  }
  post_.pad(made.ids, made.mask);
  for (const Ids& ids : made.ids) {
    if (ids.size() == made.length()) continue;
    throw Error(VDITC_ERROR_INPUT, path_, text("prompts of %zu and %zu tokens", made.length(), ids.size()), "a tokenizer that pads prompts to one length",
                "encode them one by one, or compile the bundle again");
  }
  return made;
}

}  // namespace vditc::internal
