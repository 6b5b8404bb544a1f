// A place in a JSON file that vditc wrote: Error VDITC_ERROR_DAMAGED names the file, the key, and what was wanted there.
#pragma once
#include <initializer_list>
#include <string>
#include <vector>

#include "json.h"

namespace vditc::internal {

class JsonPlace {
 public:
  // The whole file; both live longer than this.
  JsonPlace(const Json& json, const std::string& file) : json_(&json), file_(&file) {}

  // A member that must be there.
  JsonPlace operator[](const char* key) const;
  // A member that may be missing or null: false for these.
  bool has(const char* key) const { return !(*json_)[key].is(Json::NOTHING); }
  bool is(Json::Kind kind) const { return json_->is(kind); }
  // Of a list.
  std::vector<JsonPlace> items() const;
  // An object with no keys but these.
  void only(std::initializer_list<const char*> keys) const;

  int64_t integer(int64_t least, int64_t most) const;
  double number() const;
  bool truth() const;
  std::string text() const;  // not empty
  [[noreturn]] void wrong(const std::string& wanted) const;

 private:
  const Json* json_;
  const std::string* file_;
  std::string key_;
  JsonPlace at(const Json& json, std::string key) const;
};

}  // namespace vditc::internal
