// What a scheduler_config.json says, checked: an option that nobody reads would be a walk that nobody asked for.
#pragma once
#include <string>
#include <vector>

#include "json.h"
#include "status.h"

namespace vditc::internal {

// Every option that a scheduler class has with its default, and the values that are known of some; both JSON.
struct SchedulerClass {
  const char* defaults;
  const char* choices;
};

class Options {
 public:
  // Error for an option that the class does not have, a value of another kind, or one that is not computed.
  Options(const Json& config, const SchedulerClass& about, const std::string& where);

  const std::string name, where;
  const Json& operator[](const char* option) const { return values_[option]; }
  bool has(const char* option) const { return values_.find(option) != nullptr; }
  double real(const char* option) const { return values_[option].real; }
  int64_t integer(const char* option) const { return values_[option].integer; }
  bool flag(const char* option) const { return values_[option].truth; }
  const std::string& word(const char* option) const { return values_[option].text; }
  bool is(const char* option, const char* value) const { return values_[option].text == value; }

  // Which of these switches is on, "" for none; Error for more than one.
  std::string one_of(std::initializer_list<const char*> switches) const;
  [[noreturn]] void bad(const std::string& found, const std::string& wanted, const std::string& fix = "correct the scheduler's configuration") const;

 private:
  Json values_;
};

}  // namespace vditc::internal
