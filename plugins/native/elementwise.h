// Instructions of kernels that compute element by element, beside those of device.h: each of them is one or two of the GPU's.
#pragma once
#include "native/device.h"

namespace vditc {

// a b + c, rounded once.
VDITC_DEVICE float fused(float a, float b, float c) {
#ifdef VDITC_EMULATED
  return std::fma(a, b, c);
#else
  return __fmaf_rn(a, b, c);
#endif
}

// The greater one; NaN if one of them is (PTX ISA, max.NaN.f32), as numpy's maximum and ONNX's Max.
VDITC_DEVICE float larger(float a, float b) {
#ifdef VDITC_EMULATED
  return a != a || b != b ? NAN : a > b ? a : b;
#else
  float out;
  asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(out) : "f"(a), "f"(b));
  return out;
#endif
}

// The lowest bytes of four words, the first one lowest.
VDITC_DEVICE uint32_t lowest_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#ifdef VDITC_EMULATED
  return (a & 255u) | (b & 255u) << 8 | (c & 255u) << 16 | d << 24;
#else
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#endif
}

// sum + the four signed bytes of a word.
VDITC_DEVICE int add_bytes(uint32_t word, int sum) {
#ifdef VDITC_EMULATED
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(word >> (8 * i));
  return sum;
#else
  return __dp4a(static_cast<int>(word), 0x01010101, sum);
#endif
}

// 16 aligned bytes of global memory that nobody reads again soon: they leave what the L1 cache holds alone.
VDITC_DEVICE uint4 load_once(const void* from) {
#ifdef VDITC_EMULATED
  uint4 out;
  std::memcpy(&out, from, 16);
  return out;
#else
  uint4 out;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(from));
  return out;
#endif
}

}  // namespace vditc
