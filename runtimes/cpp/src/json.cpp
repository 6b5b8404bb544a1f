#include "json.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "status.h"

namespace vditc::internal {
namespace {

constexpr size_t DEPTH = 200;

// Python's json writes NaN, Infinity and -Infinity, which are no JSON: null stands for them.
std::string without_nonfinite(std::string_view given) {
  std::string made;
  made.reserve(given.size());
  bool quoted = false;
  for (size_t i = 0; i < given.size(); ++i) {
    const char now = given[i];
    if (quoted && now == '\\' && i + 1 < given.size()) {
      made += now;
      made += given[++i];
      continue;
    }
    if (now == '"') quoted = !quoted;
    size_t skipped = 0;
    for (const std::string_view word : {"NaN", "Infinity", "-Infinity"}) {
      if (!quoted && now == word[0] && given.substr(i, word.size()) == word) skipped = word.size();
    }
    if (skipped > 0) {
      made += "null";
      i += skipped - 1;
    } else {
      made += now;
    }
  }
  return made;
}

class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Json root;
  std::string trouble;

  bool null() override { return put(Json()); }
  bool boolean(bool value) override {
    Json made;
    made.kind = Json::BOOL, made.truth = value;
    return put(std::move(made));
  }
  bool number_integer(number_integer_t value) override { return whole(value, static_cast<double>(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) return number_float(static_cast<double>(value), "");
    return whole(static_cast<int64_t>(value), static_cast<double>(value));
  }
  bool number_float(number_float_t value, const string_t&) override {
    Json made;
    made.kind = Json::REAL, made.real = value;
    return put(std::move(made));
  }
  bool string(string_t& value) override {
    Json made;
    made.kind = Json::TEXT, made.text = std::move(value);
    return put(std::move(made));
  }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return begin(Json::OBJECT); }
  bool key(string_t& value) override {
    key_ = std::move(value);
    return true;
  }
  bool end_object() override { return end(); }
  bool start_array(size_t) override { return begin(Json::LIST); }
  bool end_array() override { return end(); }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    if (trouble.empty()) trouble = error.what();
    return false;
  }

 private:
  std::vector<Json> open_;
  std::vector<std::string> keys_;  // under which the open ones stand
  std::string key_;

  bool whole(int64_t value, double real) {
    Json made;
    made.kind = Json::INTEGER, made.integer = value, made.real = real;
    return put(std::move(made));
  }
  bool put(Json&& made) {
    if (open_.empty()) {
      root = std::move(made);
    } else if (Json& outer = open_.back(); outer.kind == Json::LIST) {
      outer.items.push_back(std::move(made));
    } else {
      // The last of equal names counts, as everywhere; found again only when the object is whole, for objects are large.
      outer.members.emplace_back(std::move(key_), std::move(made));
    }
    return true;
  }
  bool begin(Json::Kind kind) {
    if (open_.size() >= DEPTH) {
      trouble = internal::text("more than %zu levels", DEPTH);
      return false;
    }
    keys_.push_back(std::move(key_));
    open_.emplace_back();
    open_.back().kind = kind;
    return true;
  }
  bool end() {
    Json made = std::move(open_.back());
    open_.pop_back();
    key_ = std::move(keys_.back());
    keys_.pop_back();
    if (made.kind == Json::OBJECT) once(made.members);
    return put(std::move(made));
  }
  static void once(std::vector<std::pair<std::string, Json>>& members) {
    std::vector<size_t> order(members.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return members[a].first < members[b].first; });
    std::vector<bool> dropped(members.size());
    bool any = false;
    for (size_t i = 0; i + 1 < order.size(); ++i) {
      if (members[order[i]].first == members[order[i + 1]].first) dropped[order[i]] = any = true;
    }
    if (!any) return;
    std::vector<std::pair<std::string, Json>> kept;
    for (size_t i = 0; i < members.size(); ++i) {
      if (!dropped[i]) kept.push_back(std::move(members[i]));
    }
    members = std::move(kept);
  }
};

}  // namespace

Json Json::parse(std::string_view given, const std::string& where) {
  Builder builder;
  const std::string clean = without_nonfinite(given);
  if (!nlohmann::json::sax_parse(clean, &builder)) {
    throw Error(VDITC_ERROR_DAMAGED, where, "no JSON (" + builder.trouble + ")", "JSON", "copy the file again");
  }
  return std::move(builder.root);
}

const Json* Json::find(std::string_view name) const {
  for (const auto& member : members) {
    if (member.first == name) return &member.second;
  }
  return nullptr;
}

const Json& Json::operator[](std::string_view name) const {
  static const Json none;
  const Json* found = find(name);
  return found ? *found : none;
}

std::string Json::words() const {
  switch (kind) {
    case NOTHING: return "null";
    case BOOL: return truth ? "true" : "false";
    case INTEGER: return std::to_string(integer);
    case REAL: return number(real);
    case TEXT: return "'" + (text.size() > 80 ? text.substr(0, 80) + "…" : text) + "'";
    case LIST: return internal::text("a list of %zu", items.size());
    case OBJECT: return internal::text("an object of %zu", members.size());
  }
  return "";
}

}  // namespace vditc::internal
