// Vectors of 8 numbers in memory: what fp32, fp16 and bf16 are to the kernel.
#pragma once
#include "native/elementwise.h"

namespace vditc::quantize_token {

// A vector as it lies in memory.
template <class Type>
struct Pieces {
  uint32_t word[Type::WORDS];
};

// What the types share. `Type` has Element, WORDS of 8 elements, and unpack and pack between words and float32. Addresses are `at`, in
// elements; WHOLE vectors are aligned to 16 bytes, others have `filled` elements and zeros behind.
template <class Type>
struct Vectors {
  // x and the like: each address once.
  template <bool WHOLE>
  static VDITC_DEVICE Pieces<Type> once(const void* base, int64_t at, int filled) {
    Pieces<Type> out;
    if (WHOLE) {
      const auto* from = static_cast<const typename Type::Element*>(base) + at;
#pragma unroll
      for (int w = 0; w < Type::WORDS; w += 4) {
        const uint4 four = load_once(from + w * 4 / sizeof *from);
        out.word[w] = four.x, out.word[w + 1] = four.y, out.word[w + 2] = four.z, out.word[w + 3] = four.w;
      }
    } else {
      singly(base, at, filled, out);
    }
    return out;
  }

  // Vectors that many tokens read.
  template <bool WHOLE>
  static VDITC_DEVICE void values(const void* base, int64_t at, int filled, float (&out)[8]) {
    Pieces<Type> pieces;
    if (WHOLE) {
      const auto* from = reinterpret_cast<const uint4*>(static_cast<const typename Type::Element*>(base) + at);
#pragma unroll
      for (int w = 0; w < Type::WORDS; w += 4) {
        const uint4 four = from[w / 4];
        pieces.word[w] = four.x, pieces.word[w + 1] = four.y, pieces.word[w + 2] = four.z, pieces.word[w + 3] = four.w;
      }
    } else {
      singly(base, at, filled, pieces);
    }
    Type::unpack(pieces, out);
  }

  template <bool WHOLE>
  static VDITC_DEVICE void write(void* base, int64_t at, int filled, const Pieces<Type>& pieces) {
    auto* to = static_cast<typename Type::Element*>(base) + at;
    if (WHOLE) {
#pragma unroll
      for (int w = 0; w < Type::WORDS; w += 4)
        reinterpret_cast<uint4*>(to)[w / 4] = uint4{pieces.word[w], pieces.word[w + 1], pieces.word[w + 2], pieces.word[w + 3]};
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (e < filled) to[e] = Type::element(pieces, e);
    }
  }

 private:
  static VDITC_DEVICE void singly(const void* base, int64_t at, int filled, Pieces<Type>& out) {
    const auto* from = static_cast<const typename Type::Element*>(base) + at;
#pragma unroll
    for (int w = 0; w < Type::WORDS; ++w) out.word[w] = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (e < filled) out.word[e * Type::WORDS / 8] |= static_cast<uint32_t>(from[e]) << (Type::WORDS == 4 ? 16 * (e & 1) : 0);
  }
};

struct Float32 : Vectors<Float32> {
  using Element = uint32_t;
  static constexpr int WORDS = 8;
  static VDITC_DEVICE void unpack(const Pieces<Float32>& pieces, float (&out)[8]) {
#pragma unroll
    for (int e = 0; e < 8; ++e) out[e] = float_of(pieces.word[e]);
  }
  static VDITC_DEVICE Pieces<Float32> pack(const float (&values)[8]) {
    Pieces<Float32> out;
#pragma unroll
    for (int e = 0; e < 8; ++e) out.word[e] = bits_of(values[e]);
    return out;
  }
  static VDITC_DEVICE Element element(const Pieces<Float32>& pieces, int e) { return pieces.word[e]; }

  // Half a vector; `left` elements are there.
  template <bool WHOLE>
  static VDITC_DEVICE void four(const float* base, int64_t at, int left, float (&out)[4]) {
    if (WHOLE) {
      const float4 found = *reinterpret_cast<const float4*>(base + at);
      out[0] = found.x, out[1] = found.y, out[2] = found.z, out[3] = found.w;
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) out[e] = e < left ? base[at + e] : 0.0f;
    }
  }
};

// 16 bits: `Format` converts one number.
template <class Type, float (*widen)(uint16_t), uint16_t (*narrow)(float)>
struct Halves : Vectors<Type> {
  using Element = uint16_t;
  static constexpr int WORDS = 4;
  static VDITC_DEVICE void unpack(const Pieces<Type>& pieces, float (&out)[8]) {
#pragma unroll
    for (int e = 0; e < 8; ++e) out[e] = widen(element(pieces, e));
  }
  static VDITC_DEVICE Pieces<Type> pack(const float (&values)[8]) {
    Pieces<Type> out;
#pragma unroll
    for (int w = 0; w < 4; ++w) out.word[w] = narrow(values[2 * w]) | static_cast<uint32_t>(narrow(values[2 * w + 1])) << 16;
    return out;
  }
  static VDITC_DEVICE Element element(const Pieces<Type>& pieces, int e) {
    return static_cast<uint16_t>(pieces.word[e / 2] >> (16 * (e & 1)));
  }
};
struct Float16 : Halves<Float16, from_fp16, to_fp16> {};
struct BFloat16 : Halves<BFloat16, from_bf16, to_bf16> {};

}  // namespace vditc::quantize_token
