// Types of tensors, by the names of safetensors and of numpy, and their values as others.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "vditc/vditc.h"

namespace vditc::internal {

using Shape = std::vector<int64_t>;

int32_t dtype_of_safetensors(std::string_view name);  // "BF16"; 0: not known
int32_t dtype_of_numpy(std::string_view name);        // "bfloat16"; 0: not known
const char* dtype_name(int32_t dtype);                // of safetensors; "?" for others
size_t dtype_size(int32_t dtype);                     // bytes; 0 for others
bool dtype_is_float(int32_t dtype);
// Values of `count` elements as another type, rounded to nearest even, cut off to zero from a float to an integer, as numpy does.
void convert(const void* from, int32_t from_dtype, void* to, int32_t to_dtype, size_t count);
// Index of the first number that is not finite; `count` if all are, or none is a float.
size_t first_not_finite(const void* data, int32_t dtype, size_t count);
std::string shape_words(const Shape& shape);  // "[1, 16, 21]"
// Product; -1: negative sizes, or more than fit.
int64_t elements(const int64_t* shape, size_t rank);
inline int64_t elements(const Shape& shape) { return elements(shape.data(), shape.size()); }

}  // namespace vditc::internal
