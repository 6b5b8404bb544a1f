// JSON as plain values. Parsed by nlohmann/json, whose header one file of the library includes.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vditc::internal {

class Json {
 public:
  enum Kind { NOTHING, BOOL, INTEGER, REAL, TEXT, LIST, OBJECT };

  // Error VDITC_ERROR_DAMAGED for text that is no JSON, or deeper than 200 levels. NaN and infinities, which Python writes, become NOTHING.
  static Json parse(std::string_view text, const std::string& where);

  Kind kind = NOTHING;
  bool truth = false;
  int64_t integer = 0;
  double real = 0;  // of an INTEGER too
  std::string text;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;  // in the order of the file, each name once

  bool is(Kind wanted) const { return kind == wanted; }
  bool is_number() const { return kind == INTEGER || kind == REAL; }
  const Json* find(std::string_view name) const;  // nullptr: no such member, or no object
  // NOTHING where there is none.
  const Json& operator[](std::string_view name) const;

  // The value, or `otherwise` where it is of another kind.
  std::string text_or(std::string_view otherwise) const { return kind == TEXT ? text : std::string(otherwise); }
  double number_or(double otherwise) const { return is_number() ? real : otherwise; }
  int64_t integer_or(int64_t otherwise) const { return kind == INTEGER ? integer : otherwise; }

  std::string words() const;  // short, for messages
};

}  // namespace vditc::internal
