// Runs a kernel's own source on the CPU: one fibre for each thread of a block, blocks one after another.
//
// Fibres change hands where threads of a warp or block meet (barriers, shuffles, ldmatrix, mma), so everything that such a meeting
// hands over is computed as PTX ISA says. What it does not model: the order of asynchronous copies, conflicts of banks, memory
// models and time. A block whose threads do not all come to a meeting ends in an error that says where they wait.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define VDITC_DEVICE inline
#define VDITC_BOTH inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
using cudaStream_t = void*;
inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fibre that runs

namespace vditc {
namespace emulator {

// Runs `thread` once for every thread of every block; `shared` bytes of shared memory. Throws std::runtime_error where threads are stuck.
// One launch at a time: calls from other threads of the process wait.
void run(dim3 grid, int threads, size_t shared, const std::function<void(unsigned char*)>& thread);
// The block's threads, or the warp's, wait for each other. `what` names the meeting in errors.
void meet_block(const char* what);
void meet_warp(const char* what);
// As meet_warp; the last lane that arrives calls `compute` with the warp's buffer before any lane goes on.
void meet_warp(const char* what, void (*compute)(unsigned char*));
// A buffer of the warp for this meeting, where lane l owns SLOT bytes at SLOT l; what others read there is complete after `meet_warp`. Buffers of two
// meetings in a row are different ones, so that a fast lane does not write over what a slow one has still to read.
constexpr int SLOT = 40;
unsigned char* exchange();
int lane();

}  // namespace emulator

inline void barrier() { emulator::meet_block("barrier"); }
inline void warp_barrier() { emulator::meet_warp("warp_barrier"); }
float shuffle_xor(float value, int mask);
int shuffle_xor(int value, int mask);
bool any_of_warp(bool yes);
inline void copy_async(void* to, const void* from, bool valid) {
  if (valid)
    std::memcpy(to, from, 16);
  else
    std::memset(to, 0, 16);
}
inline void copy_commit() {}
template <int newest>
inline void copy_wait() {}
void load_matrices(uint32_t (&out)[4], const void* row);
void load_matrices_transposed(uint32_t (&out)[4], const void* row);
void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_s8_u8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_s4(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_s4_u4(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_fp16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// Compiled with -ffp-contract=off.
inline float multiply(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
inline float subtract(float a, float b) { return a - b; }
inline float divide(float a, float b) { return a / b; }
inline float square_root(float a) { return std::sqrt(a); }
inline float round_even(float a) { return std::nearbyint(a); }
inline float from_int(int a) { return static_cast<float>(a); }
inline int to_int(float a) { return static_cast<int>(std::nearbyint(a)); }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }

inline uint32_t bits_of(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float a;
  std::memcpy(&a, &bits, 4);
  return a;
}
inline float float_of_bits(int bits) {
  float a;
  std::memcpy(&a, &bits, 4);
  return a;
}
inline float power_of_two(float a) {
  const float result = std::exp2(a);
  return result < 0x1p-126f ? 0.0f : result;
}
#ifdef __aarch64__  // where g++ has _Float16 from version 13 on
using NativeHalf = __fp16;
#else
using NativeHalf = _Float16;
#endif
inline float from_fp16(uint16_t bits) {
  NativeHalf half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}
inline uint16_t to_fp16(float a) {
  const auto half = static_cast<NativeHalf>(a);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float a;
  std::memcpy(&a, &wide, 4);
  return a;
}
inline uint16_t to_bf16(float a) {
  uint32_t wide;
  std::memcpy(&wide, &a, 4);
  if (a != a) return static_cast<uint16_t>(wide >> 16 | 64);  // a NaN stays one
  return static_cast<uint16_t>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16);
}
inline uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t select) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(both >> (8 * (select >> (4 * i) & 7u)) & 255u) << (8 * i);
  return word;
}
inline uint32_t subtract_bf16(uint32_t a, uint32_t b) {
  const auto half = [](uint32_t word, int i) { return from_bf16(static_cast<uint16_t>(word >> (16 * i))); };
  return static_cast<uint32_t>(to_bf16(half(a, 0) - half(b, 0))) | static_cast<uint32_t>(to_bf16(half(a, 1) - half(b, 1))) << 16;
}
inline uint32_t pack_fp16(float low, float high) { return to_fp16(low) | static_cast<uint32_t>(to_fp16(high)) << 16; }
inline uint32_t pack_bf16(float low, float high) { return to_bf16(low) | static_cast<uint32_t>(to_bf16(high)) << 16; }

}  // namespace vditc
