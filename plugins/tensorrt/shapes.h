// Shapes of one run, and what a kernel needs of them.
#pragma once
#include <vector>

#include "native/vditc_plugins.h"
#include "tensorrt/host.h"

namespace vditc::tensorrt {

using Shape = std::vector<int64_t>;

Shape shape_of(const nvinfer1::Dims& dims);
std::string said(const Shape& shape);  // "[2, 77, 1536]"
int64_t elements(const Shape& shape);  // BadPlugin for negative or more than 2^63 of them
Shape leading(const Shape& shape);     // without the last axis; BadPlugin for a scalar

// BadPlugin, with the tensor's name, unless the shape is the wanted one.
void want(const char* name, const Shape& found, const Shape& wanted);
// [leading of x ..., last].
Shape per_token(const Shape& x, int64_t last);
// BadPlugin unless there is one element.
void want_one(const char* name, const Shape& found);

// Which row of `tensor` [..., width] a row of a result [rows ..., width] reads when ONNX broadcasts it. The axes along which it differs have
// to lie next to each other: [b, 1, width] and [1, t, width] for rows [b, t], not [b, 1, w, width] for rows [b, t, w]. BadPlugin else.
vditc_rows broadcast(const char* name, const Shape& tensor, const Shape& rows, int64_t width);

}  // namespace vditc::tensorrt
