#include "schedulers/options.h"

#include <cmath>

namespace vditc::internal {
namespace {

// Options that diffusers leaves in the file when a scheduler was made from another one's configuration, and that the new one does not read.
const char* const LEFT_OVER[] = {"skip_prk_steps", "set_alpha_to_one", "clip_sample", "clip_sample_range", "interpolation_type", "timestep_type"};

// Whether a value may stand where `other` does, the default; null takes numbers, words and lists.
bool like(const Json& value, const Json& other) {
  switch (other.kind) {
    case Json::BOOL: return value.is(Json::BOOL);
    case Json::INTEGER: return value.is(Json::INTEGER) && value.integer >= 0;
    case Json::REAL: return value.is_number() && !std::isnan(value.real);
    case Json::TEXT: return value.is(Json::TEXT);
    case Json::LIST:
      for (const Json& item : value.items) {
        if (!item.is(Json::INTEGER)) return false;
      }
      return value.is(Json::LIST);
    default: return value.kind == Json::NOTHING || value.is(Json::LIST) || value.is(Json::TEXT) || value.is_number();
  }
}

bool same(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number()) return a.real == b.real;
  return a.kind == b.kind && a.truth == b.truth && a.text == b.text;
}

}  // namespace

Options::Options(const Json& config, const SchedulerClass& about, const std::string& where)
    : name(config["_class_name"].text_or("scheduler")), where(where), values_(Json::parse(about.defaults, "options of " + name)) {
  std::string strangers, known;
  for (const auto& member : values_.members) known += (known.empty() ? "" : ", ") + member.first;
  for (const auto& [option, value] : config.members) {
    if (option[0] == '_') continue;
    Json* own = const_cast<Json*>(values_.find(option));
    if (own == nullptr) {
      bool left = false;
      for (const char* other : LEFT_OVER) left = left || option == other;
      if (!left) strangers += (strangers.empty() ? "" : ", ") + option;
      continue;
    }
    if (!like(value, *own)) bad(option + " = " + value.words(), "something like " + own->words());
    *own = value;
  }
  if (!strangers.empty()) bad(name + " with " + strangers, "options of " + known, "take out what this scheduler does not have");
  const Json choices = Json::parse(about.choices, "options of " + name);
  for (const auto& [option, allowed] : choices.members) {
    bool found = false;
    std::string words;
    for (const Json& item : allowed.items) {
      found = found || same(item, values_[option]);
      words += (words.empty() ? "" : " or ") + item.words();
    }
    if (!found) bad(name + " with " + option + " = " + values_[option].words(), words);
  }
}

std::string Options::one_of(std::initializer_list<const char*> switches) const {
  std::string chosen;
  for (const char* name : switches) {
    if (!has(name) || !flag(name)) continue;
    if (!chosen.empty()) bad(chosen + " and " + name, "one of them");
    chosen = name;
  }
  return chosen;
}

void Options::bad(const std::string& found, const std::string& wanted, const std::string& fix) const {
  throw Error(VDITC_ERROR_INPUT, where, found, wanted, fix);
}

}  // namespace vditc::internal
