// SHA-256 by instructions for it: x86's SHA extensions, ARMv8's cryptography extension. Chosen when the library runs, not when it is built.
#include <cstring>

#include "sha256.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

namespace vditc::internal::sha256 {
namespace {

__attribute__((target("sha,sse4.1,ssse3"))) void compress_x86(uint32_t state[8], const uint8_t* blocks, size_t count) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);  // words are big-endian
  // The instructions want {a, b, e, f} and {c, d, g, h}, the first letter highest.
  const __m128i dcba = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state)), 0xB1);
  const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4)), 0x1B);
  __m128i abef = _mm_alignr_epi8(dcba, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, dcba, 0xF0);
  for (; count > 0; --count, blocks += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
#pragma GCC unroll 16
    for (int four = 0; four < 16; ++four) {  // rounds 4 * four and the next three
      __m128i& now = w[four % 4];
      if (four < 4) {
        now = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks + 16 * four)), swap);
      } else {
        const __m128i last = w[(four + 3) % 4];
        const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(now, w[(four + 1) % 4]), _mm_alignr_epi8(last, w[(four + 2) % 4], 4));
        now = _mm_sha256msg2_epu32(sum, last);
      }
      const __m128i with = _mm_add_epi32(now, _mm_load_si128(reinterpret_cast<const __m128i*>(ROUND + 4 * four)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, with);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(with, 0x0E));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace

Compress processor_compress() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_1) || !(c & bit_SSSE3)) return nullptr;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) ? compress_x86 : nullptr;
}

}  // namespace vditc::internal::sha256

#elif defined(__aarch64__) && defined(__linux__)
#include <arm_neon.h>
#include <sys/auxv.h>

namespace vditc::internal::sha256 {
namespace {

__attribute__((target("+crypto"))) void compress_arm(uint32_t state[8], const uint8_t* blocks, size_t count) {
  uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
  for (; count > 0; --count, blocks += 64) {
    const uint32x4_t abcd_before = abcd, efgh_before = efgh;
    uint32x4_t w[4];
#pragma GCC unroll 16
    for (int four = 0; four < 16; ++four) {  // rounds 4 * four and the next three
      uint32x4_t& now = w[four % 4];
      now = four < 4 ? vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(blocks + 16 * four)))
                     : vsha256su1q_u32(vsha256su0q_u32(now, w[(four + 1) % 4]), w[(four + 2) % 4], w[(four + 3) % 4]);
      const uint32x4_t with = vaddq_u32(now, vld1q_u32(ROUND + 4 * four)), first = abcd;
      abcd = vsha256hq_u32(abcd, efgh, with);
      efgh = vsha256h2q_u32(efgh, first, with);
    }
    abcd = vaddq_u32(abcd, abcd_before);
    efgh = vaddq_u32(efgh, efgh_before);
  }
  vst1q_u32(state, abcd);
  vst1q_u32(state + 4, efgh);
}

}  // namespace

Compress processor_compress() {
  constexpr unsigned long SHA2 = 1UL << 6;  // HWCAP_SHA2
  return getauxval(AT_HWCAP) & SHA2 ? compress_arm : nullptr;
}

}  // namespace vditc::internal::sha256

#else
namespace vditc::internal::sha256 {
Compress processor_compress() { return nullptr; }
}  // namespace vditc::internal::sha256
#endif
