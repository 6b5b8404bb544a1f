#include "safetensors.h"

#include <algorithm>
#include <cstring>

#include "json.h"
#include "status.h"

namespace vditc::internal {
namespace {

constexpr uint64_t MAX_HEADER = 100000000;  // bytes; the limit of the safetensors library itself
constexpr const char* WANTED = "a whole safetensors file";
constexpr const char* FIX = "copy or download the file again";

std::string quoted(const std::string& name) {
  std::string made = "\"";
  for (const char c : name) {
    if (c == '"' || c == '\\') made += '\\';
    if (static_cast<unsigned char>(c) < 0x20) made += text("\\u%04x", c);
    else made += c;
  }
  return made + "\"";
}

}  // namespace

Safetensors::Safetensors(const std::string& path) : path(path), file_(path, WANTED, FIX) {
  const auto bad = [&](const std::string& found) { return Error(VDITC_ERROR_DAMAGED, path, found, WANTED, FIX); };
  const uint64_t size = file_.size();
  if (size >= 8 && std::memcmp(file_.data(), "version ", 8) == 0) {
    throw Error(VDITC_ERROR_DAMAGED, path, "a git-lfs pointer", WANTED, "fetch it with git lfs pull");
  }
  uint64_t length = 0;
  for (int i = 0; size >= 8 && i < 8; ++i) length |= uint64_t{file_.data()[i]} << (8 * i);
  if (size < 8 || length > std::min(size - 8, MAX_HEADER)) {
    throw bad(text("%llu bytes with a header of %llu", static_cast<unsigned long long>(size), static_cast<unsigned long long>(length)));
  }
  const Json header = Json::parse({reinterpret_cast<const char*>(file_.data()) + 8, length}, path);
  if (!header.is(Json::OBJECT)) throw bad("a header that is no JSON object");
  uint64_t expected = 8 + length;
  for (const auto& [name, about] : header.members) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : about.members) metadata_[key] = value.text_or("");
      continue;
    }
    const Json &kind = about["dtype"], &shape = about["shape"], &offsets = about["data_offsets"];
    TensorView view;
    view.dtype = dtype_of_safetensors(kind.text_or(""));
    if (kind.is(Json::TEXT) && view.dtype == 0) {
      throw Error(VDITC_ERROR_UNSUPPORTED, path, "tensor " + name + " of type " + kind.text, "F64, F32, F16, BF16, F8_E4M3, I64 to I8, U8 or BOOL",
                  "convert the file");
    }
    bool well = kind.is(Json::TEXT) && shape.is(Json::LIST) && offsets.is(Json::LIST) && offsets.items.size() == 2 &&
                offsets.items[0].is(Json::INTEGER) && offsets.items[1].is(Json::INTEGER);
    for (const Json& n : shape.items) {
      well = well && n.is(Json::INTEGER);
      view.shape.push_back(n.integer);
    }
    if (!well) throw bad("tensor " + name + " described as " + about.words());
    const int64_t begin = offsets.items[0].integer, end = offsets.items[1].integer, count = elements(view.shape);
    int64_t bytes = -1;
    if (count < 0 || __builtin_mul_overflow(count, static_cast<int64_t>(dtype_size(view.dtype)), &bytes)) bytes = -1;
    if (begin < 0 || end < begin || bytes < 0 || end - begin != bytes) {
      throw bad(text("tensor %s %s%s in %lld bytes", name.c_str(), kind.text.c_str(), shape_words(view.shape).c_str(),
                     static_cast<long long>(end) - static_cast<long long>(begin < 0 ? 0 : begin)));
    }
    const uint64_t base = 8 + length;
    if (static_cast<uint64_t>(end) > size - base) {
      throw bad(text("%llu bytes where its header promises %llu", static_cast<unsigned long long>(size),
                     static_cast<unsigned long long>(base + static_cast<uint64_t>(end))));
    }
    view.data = file_.data() + base + begin;
    view.bytes = static_cast<uint64_t>(bytes);
    expected = std::max(expected, base + static_cast<uint64_t>(end));
    tensors_[name] = std::move(view);
  }
  if (size != expected) {
    throw bad(text("%llu bytes where its header promises %llu", static_cast<unsigned long long>(size), static_cast<unsigned long long>(expected)));
  }
}

void write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors) {
  std::vector<std::pair<std::string, const TensorView*>> order;
  for (const auto& [name, view] : tensors) order.emplace_back(name, &view);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {  // widest types first, so that all are aligned
    return dtype_size(a.second->dtype) > dtype_size(b.second->dtype);
  });
  std::string header = "{";
  uint64_t at = 0;
  for (const auto& [name, view] : order) {
    std::string shape = shape_words(view->shape);
    shape.erase(std::remove(shape.begin(), shape.end(), ' '), shape.end());
    header += (at || header.size() > 1 ? "," : "") + quoted(name) + ":{\"dtype\":\"" + dtype_name(view->dtype) + "\",\"shape\":" + shape +
              text(",\"data_offsets\":[%llu,%llu]}", static_cast<unsigned long long>(at), static_cast<unsigned long long>(at + view->bytes));
    at += view->bytes;
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(static_cast<uint64_t>(header.size()) >> (8 * i));
  NewFile file(path);
  file.add(length, sizeof length);
  file.add(header.data(), header.size());
  for (const auto& [name, view] : order) file.add(view->data, view->bytes);
  file.done();
}

}  // namespace vditc::internal
