#include "text/post_processor.h"

#include <algorithm>

#include "status.h"
#include "text/normalizers.h"

namespace vditc::internal {
namespace {

constexpr int64_t MOST = 1 << 20;  // tokens of a prompt

// "Left" or "Right".
bool left(const Json& about, const std::string& where) {
  const std::string side = about["direction"].text_or("");
  if (side != "Left" && side != "Right") unsupported(where, "direction " + about["direction"].words(), "Left or Right");
  return side == "Left";
}

size_t count(const Json& value, const char* what, const std::string& where) {
  if (!value.is(Json::INTEGER) || value.integer < 0 || value.integer > MOST) {
    damaged(where, std::string(what) + " " + value.words(), text("0 to %lld", static_cast<long long>(MOST)));
  }
  return static_cast<size_t>(value.integer);
}

int64_t token(const Json& value, const std::string& where) {
  if (!value.is(Json::INTEGER) || value.integer < 0 || value.integer > INT32_MAX) damaged(where, "token " + value.words(), "a number of a token");
  return value.integer;
}

}  // namespace

PostProcessor::PostProcessor(const Json& file, const std::string& where) {
  if (!file["post_processor"].is(Json::NOTHING)) add(file["post_processor"], where);
  if (!file["truncation"].is(Json::NOTHING)) read_truncation(file["truncation"], where + ", truncation");
  if (!file["padding"].is(Json::NOTHING)) read_padding(file["padding"], where + ", padding");
  if (cuts_ && most_ < added_) damaged(where, text("max_length %zu with %zu special tokens", most_, added_), "room for the special tokens");
}

void PostProcessor::add(const Json& about, const std::string& where) {
  const std::string type = about["type"].text_or("");
  const std::string here = where + ", post_processor " + type;
  if (type == "Sequence") {
    for (const Json& part : about["processors"].items) add(part, where);
  } else if (type == "TemplateProcessing") {
    read_template(about, here);
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    if (about["cls"].items.size() != 2 || about["sep"].items.size() != 2) damaged(here, about.words(), "cls and sep, each a token and its number");
    const Part front{false, {token(about["cls"].items[1], here)}}, end{false, {token(about["sep"].items[1], here)}};
    steps_.push_back({front, Part{true, {}}, end});
    added_ += 2;
  } else if (type != "ByteLevel") {  // which moves offsets alone
    unsupported(where, "post_processor " + (type.empty() ? about.words() : type), "Sequence, TemplateProcessing, RobertaProcessing, BertProcessing or ByteLevel");
  }
}

void PostProcessor::read_template(const Json& about, const std::string& where) {
  std::vector<Part> parts;
  if (!about["single"].is(Json::LIST)) damaged(where, "single " + about["single"].words(), "a list");
  for (const Json& piece : about["single"].items) {
    Part made;
    if (const Json* special = piece.find("SpecialToken")) {
      const Json& known = about["special_tokens"][(*special)["id"].text_or("")]["ids"];
      if (!known.is(Json::LIST)) damaged(where, "special token " + (*special)["id"].words(), "one of special_tokens");
      for (const Json& id : known.items) made.ids.push_back(token(id, where));
      added_ += made.ids.size();
    } else if (piece["Sequence"]["id"].text_or("") == "A") {
      made.sequence = true;
    } else {
      unsupported(where, "a piece " + piece.words(), "special tokens and the sequence A");
    }
    parts.push_back(std::move(made));
  }
  steps_.push_back(std::move(parts));
}

void PostProcessor::read_truncation(const Json& about, const std::string& where) {
  cuts_ = true, cuts_left_ = left(about, where);
  most_ = count(about["max_length"], "max_length", where);
  const std::string strategy = about["strategy"].text_or("LongestFirst");
  if (strategy != "LongestFirst" && strategy != "OnlyFirst") unsupported(where, "strategy " + strategy, "LongestFirst or OnlyFirst");
  if (about["stride"].integer_or(0) != 0) unsupported(where, "stride " + about["stride"].words(), "0");
}

void PostProcessor::read_padding(const Json& about, const std::string& where) {
  pads_ = true, pads_left_ = left(about, where);
  pad_id_ = token(about["pad_id"], where);
  const Json& strategy = about["strategy"];
  longest_ = strategy.text_or("") == "BatchLongest";
  if (!longest_ && strategy.find("Fixed") == nullptr) unsupported(where, "strategy " + strategy.words(), "BatchLongest or Fixed");
  if (!longest_) length_ = count(strategy["Fixed"], "strategy Fixed", where);
  if (!about["pad_to_multiple_of"].is(Json::NOTHING)) multiple_ = count(about["pad_to_multiple_of"], "pad_to_multiple_of", where);
}

Ids PostProcessor::processed(const Ids& ids) const {
  Ids made = ids;
  const size_t most = cuts_ ? most_ - added_ : made.size();
  if (made.size() > most && cuts_left_) made.erase(made.begin(), made.end() - static_cast<std::ptrdiff_t>(most));
  if (made.size() > most) made.resize(most);
  for (const std::vector<Part>& step : steps_) {
    Ids next;
    for (const Part& part : step) {
      const Ids& from = part.sequence ? made : part.ids;
      next.insert(next.end(), from.begin(), from.end());
    }
    made = std::move(next);
  }
  return made;
}

void PostProcessor::pad(std::vector<Ids>& ids, std::vector<Ids>& masks) const {
  size_t length = length_;
  for (const Ids& own : ids) length = longest_ ? std::max(length, own.size()) : length;
  if (multiple_ > 0) length = (length + multiple_ - 1) / multiple_ * multiple_;
  masks.clear();
  for (Ids& own : ids) {
    Ids mask(own.size(), 1);
    if (pads_ && own.size() < length) {
      const size_t more = length - own.size();
      own.insert(pads_left_ ? own.begin() : own.end(), more, pad_id_);
      mask.insert(pads_left_ ? mask.begin() : mask.end(), more, 0);
    }
    masks.push_back(std::move(mask));
  }
}

}  // namespace vditc::internal
