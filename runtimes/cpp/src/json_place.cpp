#include "json_place.h"

#include <algorithm>

#include "status.h"

namespace vditc::internal {

JsonPlace JsonPlace::at(const Json& json, std::string key) const {
  JsonPlace made(json, *file_);
  made.key_ = std::move(key);
  return made;
}

void JsonPlace::wrong(const std::string& wanted) const {
  throw Error(VDITC_ERROR_DAMAGED, *file_, (key_.empty() ? "" : key_ + " ") + json_->words(), wanted,
              "copy the bundle again, or compile it again");
}

JsonPlace JsonPlace::operator[](const char* key) const {
  const Json* found = json_->find(key);
  if (found == nullptr) wrong(std::string("an object with ") + key);
  return at(*found, key_.empty() ? key : key_ + "." + key);
}

std::vector<JsonPlace> JsonPlace::items() const {
  if (!is(Json::LIST)) wrong("a list");
  std::vector<JsonPlace> made;
  for (size_t i = 0; i < json_->items.size(); ++i) made.push_back(at(json_->items[i], key_ + "[" + std::to_string(i) + "]"));
  return made;
}

void JsonPlace::only(std::initializer_list<const char*> keys) const {
  if (!is(Json::OBJECT)) wrong("an object");
  for (const auto& [name, value] : json_->members) {
    if (std::none_of(keys.begin(), keys.end(), [&, &name = name](const char* key) { return name == key; })) {
      throw Error(VDITC_ERROR_DAMAGED, *file_, "key " + (key_.empty() ? "" : key_ + ".") + name, "those that this version writes",
                  "use the libvditc of the version that compiled the bundle, or compile it again");
    }
  }
}

int64_t JsonPlace::integer(int64_t least, int64_t most) const {
  if (!is(Json::INTEGER) || json_->integer < least || json_->integer > most) {
    wrong("a whole number, " + std::to_string(least) + " to " + std::to_string(most));
  }
  return json_->integer;
}

double JsonPlace::number() const {
  if (!json_->is_number()) wrong("a number");
  return json_->real;
}

bool JsonPlace::truth() const {
  if (!is(Json::BOOL)) wrong("true or false");
  return json_->truth;
}

std::string JsonPlace::text() const {
  if (!is(Json::TEXT) || json_->text.empty()) wrong("text");
  return json_->text;
}

}  // namespace vditc::internal
