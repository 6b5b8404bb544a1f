#include "tensorrt/shapes.h"

namespace vditc::tensorrt {

Shape shape_of(const nvinfer1::Dims& dims) { return Shape(dims.d, dims.d + (dims.nbDims > 0 ? dims.nbDims : 0)); }

std::string said(const Shape& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

int64_t elements(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) throw BadPlugin(text("a shape %s; wanted sizes that are known", said(shape).c_str()));
  return count;
}

Shape leading(const Shape& shape) {
  if (shape.empty()) throw BadPlugin("x is a scalar; wanted [..., K]");
  return Shape(shape.begin(), shape.end() - 1);
}

void want(const char* name, const Shape& found, const Shape& wanted) {
  if (found != wanted) throw BadPlugin(text("%s %s; wanted %s", name, said(found).c_str(), said(wanted).c_str()));
}

Shape per_token(const Shape& x, int64_t last) {
  Shape out = leading(x);
  out.push_back(last);
  return out;
}

void want_one(const char* name, const Shape& found) {
  if (elements(found) != 1) throw BadPlugin(text("%s %s; wanted one element", name, said(found).c_str()));
}

vditc_rows broadcast(const char* name, const Shape& tensor, const Shape& rows, int64_t width) {
  const auto refuse = [&](const char* why) {
    Shape whole = rows;
    whole.push_back(width);
    return BadPlugin(text("%s %s; wanted a shape that is broadcast to %s%s", name, said(tensor).c_str(), said(whole).c_str(), why));
  };
  if (tensor.empty() || tensor.back() != width) throw refuse(", with the last axis whole");
  if (tensor.size() > rows.size() + 1) throw refuse(", with no axis in front");
  // The rows' axes from the last one: axes of 1 behind, then those that the tensor has, then axes of 1.
  vditc_rows out{1, 1};
  enum { BEHIND, WITHIN, BEFORE } part = BEHIND;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t size = rows[rows.size() - 1 - i];
    const int64_t own = i + 2 <= tensor.size() ? tensor[tensor.size() - 2 - i] : 1;
    if (own != 1 && own != size) throw refuse("");
    if (size == 1) continue;
    if (own == 1) {
      part = part == BEHIND ? BEHIND : BEFORE;
      if (part == BEHIND) out.inner *= size;
      continue;
    }
    if (part == BEFORE) throw refuse(", along axes that lie next to each other");
    part = WITHIN;
    out.count *= size;
  }
  if (part == BEHIND) out.inner = 1;
  return out;
}

}  // namespace vditc::tensorrt
