#include "tensorrt/fields.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vditc::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

const char* type_name(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kFLOAT32: return "float32";
    case PluginFieldType::kINT32: return "int32";
    case PluginFieldType::kINT64: return "int64";
    case PluginFieldType::kCHAR: return "text";
    default: return "another type";
  }
}

[[noreturn]] void wrong_type(const PluginField& field, const char* wanted) {
  throw BadPlugin(text("attribute %s is %d elements of %s; wanted %s", field.name, field.length, type_name(field.type), wanted));
}

}  // namespace

const PluginField* Reader::find(const char* name) {
  asked_.emplace_back(name);
  const PluginField* found = nullptr;
  for (int32_t i = 0; fields_ && i < fields_->nbFields; ++i) {
    if (!fields_->fields[i].name || std::strcmp(fields_->fields[i].name, name)) continue;
    if (found) throw BadPlugin(text("attribute %s is there twice; wanted once", name));
    found = &fields_->fields[i];
  }
  return found;
}

const PluginField& Reader::need(const char* name) {
  const PluginField* field = find(name);
  if (!field || !field->data) throw BadPlugin(text("no attribute %s; wanted all of this version of the operator: lower the model again", name));
  return *field;
}

int32_t Reader::integer(const char* name) {
  const PluginField& field = need(name);
  if (field.length == 1 && field.type == PluginFieldType::kINT32) {
    int32_t value;
    std::memcpy(&value, field.data, sizeof value);
    return value;
  }
  if (field.length == 1 && field.type == PluginFieldType::kINT64) {
    int64_t value;
    std::memcpy(&value, field.data, sizeof value);
    if (value >= INT32_MIN && value <= INT32_MAX) return static_cast<int32_t>(value);
    throw BadPlugin(text("%s %lld; wanted a number of 32 bits", name, static_cast<long long>(value)));
  }
  wrong_type(field, "one int32");
}

void Reader::number(const char* name, int32_t& out, int32_t least, int32_t greatest) {
  out = integer(name);
  if (out < least || out > greatest) throw BadPlugin(text("%s %d; wanted %d to %d", name, out, least, greatest));
}

void Reader::choice(const char* name, int32_t& out, std::initializer_list<int32_t> allowed) {
  out = integer(name);
  if (std::find(allowed.begin(), allowed.end(), out) != allowed.end()) return;
  std::string wanted;
  for (const int32_t one : allowed) wanted += (wanted.empty() ? "" : " or ") + std::to_string(one);
  throw BadPlugin(text("%s %d; wanted %s", name, out, wanted.c_str()));
}

void Reader::word(const char* name, int32_t& out, Words words) {
  const PluginField& field = need(name);
  if (field.type != PluginFieldType::kCHAR || field.length < 0) wrong_type(field, "text");
  const auto* begin = static_cast<const char*>(field.data);
  const std::string said(begin, ::strnlen(begin, static_cast<size_t>(field.length)));
  std::string wanted;
  out = 0;
  for (const char* one : words) {
    if (said == one) return;
    wanted += (wanted.empty() ? "" : " or ") + std::string(one);
    ++out;
  }
  throw BadPlugin(text("%s \"%s\"; wanted %s", name, said.c_str(), wanted.c_str()));
}

void Reader::real(const char* name, float& out) {
  const PluginField& field = need(name);
  if (field.length != 1 || field.type != PluginFieldType::kFLOAT32) wrong_type(field, "one float32");
  std::memcpy(&out, field.data, sizeof out);
  if (!std::isfinite(out)) throw BadPlugin(text("%s %g; wanted a finite number", name, static_cast<double>(out)));
}

void Reader::stored(const char* name, int64_t& out) {
  const PluginField* field = find(name);
  out = -1;
  if (!field) return;
  if (!field->data || field->length != sizeof out) wrong_type(*field, "8 bytes");
  std::memcpy(&out, field->data, sizeof out);
}

void Reader::finish() const {
  for (int32_t i = 0; fields_ && i < fields_->nbFields; ++i) {
    const char* name = fields_->fields[i].name;
    if (std::find(asked_.begin(), asked_.end(), name ? name : "") == asked_.end())
      throw BadPlugin(text("attribute %s is unknown: this library is of another version than the graph or engine", name ? name : "without a name"));
  }
}

}  // namespace vditc::tensorrt
