// Attributes of an operator as TensorRT hands them over, as it stores them in an engine, and as text.
//
// An operator describes its attributes once, `template <class Visitor> void visit(Visitor&)` of a struct of them, with the names of op.py:
//
//   visitor.number("n", n, 1, INT32_MAX);
//   visitor.choice("bits", bits, {8, 4, 3});
//   visitor.flag("bias", bias);
//   visitor.word("activation", activation, {"none", "gelu", "gelu_tanh"});   // stored as the word's number
//   visitor.real("epsilon", epsilon);
#pragma once
#include <cstring>
#include <deque>
#include <initializer_list>
#include <string>
#include <vector>

#include "tensorrt/host.h"

namespace vditc::tensorrt {

using Words = std::initializer_list<const char*>;

// Reads every attribute out of the fields. BadPlugin for one that is missing, unknown, of another type or out of range.
class Reader {
 public:
  explicit Reader(const nvinfer1::PluginFieldCollection* fields) : fields_(fields) {}

  void number(const char* name, int32_t& out, int32_t least, int32_t greatest);
  void choice(const char* name, int32_t& out, std::initializer_list<int32_t> allowed);
  void flag(const char* name, int32_t& out) { choice(name, out, {0, 1}); }
  void word(const char* name, int32_t& out, Words words);
  void real(const char* name, float& out);
  // Raw bytes of a field that TensorRT's parser does not know; -1 where there are none.
  void stored(const char* name, int64_t& out);
  // BadPlugin for a field that nobody asked for.
  void finish() const;

 private:
  const nvinfer1::PluginField* find(const char* name);
  const nvinfer1::PluginField& need(const char* name);
  int32_t integer(const char* name);

  const nvinfer1::PluginFieldCollection* fields_;
  std::vector<std::string> asked_;
};

// Names and types, for IPluginCreatorV3One::getFieldNames: the parser hands over attributes of these names, integers as int32, words as chars.
class Names {
 public:
  void number(const char* name, int32_t&, int32_t, int32_t) { add(name, nvinfer1::PluginFieldType::kINT32); }
  void choice(const char* name, int32_t&, std::initializer_list<int32_t>) { add(name, nvinfer1::PluginFieldType::kINT32); }
  void flag(const char* name, int32_t&) { add(name, nvinfer1::PluginFieldType::kINT32); }
  void word(const char* name, int32_t&, Words) { add(name, nvinfer1::PluginFieldType::kCHAR); }
  void real(const char* name, float&) { add(name, nvinfer1::PluginFieldType::kFLOAT32); }
  const nvinfer1::PluginFieldCollection* collection() {
    collected_.nbFields = static_cast<int32_t>(fields_.size());
    collected_.fields = fields_.data();
    return &collected_;
  }

 private:
  void add(const char* name, nvinfer1::PluginFieldType type) { fields_.emplace_back(name, nullptr, type, 1); }
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collected_;
};

// Fields with data, for getFieldsToSerialize; the data is kept here.
class Writer {
 public:
  void number(const char* name, int32_t& value, int32_t, int32_t) { add(name, &value, sizeof value, nvinfer1::PluginFieldType::kINT32, 1); }
  void choice(const char* name, int32_t& value, std::initializer_list<int32_t>) { number(name, value, 0, 0); }
  void flag(const char* name, int32_t& value) { number(name, value, 0, 0); }
  void word(const char* name, int32_t& value, Words words) {
    const char* said = words.begin()[value];
    add(name, said, std::strlen(said), nvinfer1::PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(said)));
  }
  void real(const char* name, float& value) { add(name, &value, sizeof value, nvinfer1::PluginFieldType::kFLOAT32, 1); }
  void stored(const char* name, int64_t value) { add(name, &value, sizeof value, nvinfer1::PluginFieldType::kUNKNOWN, sizeof value); }
  const nvinfer1::PluginFieldCollection* collection() {
    collected_.nbFields = static_cast<int32_t>(fields_.size());
    collected_.fields = fields_.data();
    return &collected_;
  }

 private:
  void add(const char* name, const void* data, size_t bytes, nvinfer1::PluginFieldType type, int32_t length) {
    kept_.emplace_back(static_cast<const char*>(data), bytes);
    fields_.emplace_back(name, kept_.back().data(), type, length);
  }
  std::deque<std::string> kept_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collected_;
};

// "n=1536;bits=4;...": the same for the same attributes, in every process.
class Describer {
 public:
  void number(const char* name, int32_t& value, int32_t, int32_t) { said += text("%s=%d;", name, value); }
  void choice(const char* name, int32_t& value, std::initializer_list<int32_t>) { number(name, value, 0, 0); }
  void flag(const char* name, int32_t& value) { number(name, value, 0, 0); }
  void word(const char* name, int32_t& value, Words words) { said += text("%s=%s;", name, words.begin()[value]); }
  void real(const char* name, float& value) { said += text("%s=%a;", name, static_cast<double>(value)); }
  std::string said;
};

}  // namespace vditc::tensorrt
