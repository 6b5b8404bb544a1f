#include "dtype.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "status.h"

namespace vditc::internal {
namespace {

struct Type {
  int32_t dtype;
  const char* safetensors;
  const char* numpy;
  size_t size;
  bool floating;
};
constexpr Type TYPES[] = {
    {VDITC_F64, "F64", "float64", 8, true},   {VDITC_F32, "F32", "float32", 4, true},
    {VDITC_F16, "F16", "float16", 2, true},   {VDITC_BF16, "BF16", "bfloat16", 2, true},
    {VDITC_F8_E4M3, "F8_E4M3", "float8_e4m3fn", 1, true},
    {VDITC_I64, "I64", "int64", 8, false},    {VDITC_I32, "I32", "int32", 4, false},
    {VDITC_I16, "I16", "int16", 2, false},    {VDITC_I8, "I8", "int8", 1, false},
    {VDITC_U8, "U8", "uint8", 1, false},      {VDITC_BOOL, "BOOL", "bool", 1, false},
};

const Type* type_of(int32_t dtype) {
  for (const Type& type : TYPES) {
    if (type.dtype == dtype) return &type;
  }
  return nullptr;
}

template <class To, class From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To made;
  std::memcpy(&made, &value, sizeof made);
  return made;
}

// A float of few bits, `mantissa` of them fraction, as float. No infinities in E4M3, whose NaN is all ones.
float widened(uint32_t code, int exponent_bits, int mantissa, bool infinities) {
  const uint32_t sign = code >> (exponent_bits + mantissa) & 1, exponent = code >> mantissa & ((1u << exponent_bits) - 1);
  const uint32_t fraction = code & ((1u << mantissa) - 1), top = (1u << exponent_bits) - 1;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  float value;
  if (infinities ? exponent == top : exponent == top && fraction == (1u << mantissa) - 1) {
    value = infinities && fraction == 0 ? HUGE_VALF : NAN;
  } else {
    const int scale = (exponent == 0 ? 1 : static_cast<int>(exponent)) - bias - mantissa;
    value = std::ldexp(static_cast<float>(fraction | (exponent == 0 ? 0u : 1u << mantissa)), scale);
  }
  return sign ? -value : value;
}

// To nearest, ties to even.
uint32_t narrowed(float value, int exponent_bits, int mantissa, bool infinities) {
  const uint32_t sign = (bits<uint32_t>(value) >> 31) << (exponent_bits + mantissa), top = (1u << exponent_bits) - 1;
  const uint32_t fractions = (1u << mantissa) - 1;
  if (std::isnan(value)) return sign | top << mantissa | (infinities ? 1u << (mantissa - 1) : fractions);
  const uint32_t beyond = infinities ? top << mantissa : top << mantissa | fractions;  // infinity, or NaN where there is none
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const float size = std::fabs(value);
  if (std::isinf(size)) return sign | beyond;
  if (size == 0) return sign;
  int power = 0;
  std::frexp(size, &power);
  int exponent = power - 1 + bias;
  if (exponent < 1) exponent = 1;
  const double steps = std::nearbyint(std::ldexp(static_cast<double>(size), mantissa + bias - exponent));
  // A mantissa that was rounded up to the next power carries into the exponent by itself.
  const double code = steps + (exponent - 1) * std::ldexp(1.0, mantissa);
  return sign | (code >= beyond ? beyond : static_cast<uint32_t>(code));
}

struct Half {
  uint16_t code;
};
struct Bfloat {
  uint16_t code;
};
struct Eight {
  uint8_t code;
};
struct Truth {
  uint8_t value;
};

inline float read(Half x) { return widened(x.code, 5, 10, true); }
inline float read(Bfloat x) { return bits<float>(static_cast<uint32_t>(x.code) << 16); }
inline float read(Eight x) { return widened(x.code, 4, 3, false); }
inline int64_t read(Truth x) { return x.value != 0; }
template <class T>
T read(T x) {
  return x;
}

template <class T>
struct Write {
  template <class From>
  static T of(From x) {
    return static_cast<T>(x);
  }
};
template <>
struct Write<Half> {
  template <class From>
  static Half of(From x) {
    return {static_cast<uint16_t>(narrowed(static_cast<float>(x), 5, 10, true))};
  }
};
template <>
struct Write<Bfloat> {
  template <class From>
  static Bfloat of(From x) {
    return {static_cast<uint16_t>(narrowed(static_cast<float>(x), 8, 7, true))};
  }
};
template <>
struct Write<Eight> {
  template <class From>
  static Eight of(From x) {
    return {static_cast<uint8_t>(narrowed(static_cast<float>(x), 4, 3, false))};
  }
};
template <>
struct Write<Truth> {
  template <class From>
  static Truth of(From x) {
    return {static_cast<uint8_t>(x != From{0})};
  }
};

template <class Do>
void with_type(int32_t dtype, Do then) {
  switch (dtype) {
    case VDITC_F64: return then(double{});
    case VDITC_F32: return then(float{});
    case VDITC_F16: return then(Half{});
    case VDITC_BF16: return then(Bfloat{});
    case VDITC_F8_E4M3: return then(Eight{});
    case VDITC_I64: return then(int64_t{});
    case VDITC_I32: return then(int32_t{});
    case VDITC_I16: return then(int16_t{});
    case VDITC_I8: return then(int8_t{});
    case VDITC_U8: return then(uint8_t{});
    case VDITC_BOOL: return then(Truth{});
    default: throw Error(VDITC_ERROR_ARGUMENT, "tensor", text("type %d", dtype), "one of VDITC_F64 to VDITC_BOOL", "correct the call");
  }
}

}  // namespace

int32_t dtype_of_safetensors(std::string_view name) {
  for (const Type& type : TYPES) {
    if (name == type.safetensors) return type.dtype;
  }
  return 0;
}

int32_t dtype_of_numpy(std::string_view name) {
  for (const Type& type : TYPES) {
    if (name == type.numpy) return type.dtype;
  }
  return 0;
}

const char* dtype_name(int32_t dtype) {
  const Type* type = type_of(dtype);
  return type ? type->safetensors : "?";
}

size_t dtype_size(int32_t dtype) {
  const Type* type = type_of(dtype);
  return type ? type->size : 0;
}

bool dtype_is_float(int32_t dtype) {
  const Type* type = type_of(dtype);
  return type && type->floating;
}

void convert(const void* from, int32_t from_dtype, void* to, int32_t to_dtype, size_t count) {
  if (count == 0) return;
  if (from_dtype == to_dtype && from_dtype != VDITC_BOOL) {
    if (to != from) std::memcpy(to, from, count * dtype_size(to_dtype));
    return;
  }
  with_type(from_dtype, [&](auto of) {
    using From = decltype(of);
    with_type(to_dtype, [&](auto as) {
      using To = decltype(as);
      const auto* a = static_cast<const uint8_t*>(from);
      auto* b = static_cast<uint8_t*>(to);
      for (size_t i = 0; i < count; ++i) {  // memory of safetensors need not be aligned
        From x;
        std::memcpy(&x, a + i * sizeof x, sizeof x);
        const To y = Write<To>::of(read(x));
        std::memcpy(b + i * sizeof y, &y, sizeof y);
      }
    });
  });
}

size_t first_not_finite(const void* data, int32_t dtype, size_t count) {
  if (!dtype_is_float(dtype)) return count;
  size_t found = count;
  with_type(dtype, [&](auto of) {
    using T = decltype(of);
    for (size_t i = 0; i < count; ++i) {
      T x;
      std::memcpy(&x, static_cast<const uint8_t*>(data) + i * sizeof x, sizeof x);
      if (!std::isfinite(static_cast<double>(read(x)))) {
        found = i;
        return;
      }
    }
  });
  return found;
}

std::string shape_words(const Shape& shape) {
  std::string made = "[";
  for (size_t i = 0; i < shape.size(); ++i) made += (i ? ", " : "") + std::to_string(shape[i]);
  return made + "]";
}

int64_t elements(const int64_t* shape, size_t rank) {
  int64_t product = 1;
  for (size_t i = 0; i < rank; ++i) {
    if (shape[i] < 0 || __builtin_mul_overflow(product, shape[i], &product)) return -1;
  }
  return product;
}

}  // namespace vditc::internal
