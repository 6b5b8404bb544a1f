// What kernels are written in: CUDA C++ and the few instructions below, of which g++ has emulations (emulator.h).
//
// A kernel is a struct, so that one source is compiled by nvcc for GPUs and by g++ -DVDITC_EMULATED for the CPU:
//
//   struct Kernel {
//     struct Arguments { ... };                          // plain data, passed by value
//     static constexpr int THREADS = 128;                // of a block
//     static constexpr int BLOCKS_PER_SM = 1;            // least number that the compiler keeps registers for
//     static constexpr bool runs_on(int sm);             // only if it is not for every GPU: 10 major + minor
//     static VDITC_DEVICE void run(const Arguments&, unsigned char* shared);
//   };
//
// `launch.h` starts it. Shared memory is one piece of bytes, aligned to 128; its size is said at the launch.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace vditc {
// Bytes of shared memory that a block may have on every GPU from sm_80 on: those of sm_86, 89 and 120 (CUDA C++ Programming Guide, technical
// specifications). A multiprocessor of theirs has 1 KB more, and keeps 1 KB for itself for each of its blocks.
constexpr int LEAST_SHARED = 99 << 10, LEAST_SHARED_OF_SM = 100 << 10;
}  // namespace vditc

#ifdef VDITC_EMULATED
#include "native/emulator.h"
#else
#ifndef __CUDACC_RTC__  // which knows CUDA's types by itself
#include <cuda_runtime.h>
#endif
#define VDITC_DEVICE __device__ __forceinline__
#define VDITC_BOTH __host__ __device__ __forceinline__

namespace vditc {

VDITC_DEVICE void barrier() { __syncthreads(); }
VDITC_DEVICE void warp_barrier() { __syncwarp(); }

// The value of lane `lane ^ mask` of the warp; all 32 lanes call it.
VDITC_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
VDITC_DEVICE int shuffle_xor(int value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
// Whether any lane says yes; all 32 lanes call it.
VDITC_DEVICE bool any_of_warp(bool yes) { return __any_sync(~0u, yes); }

// 16 bytes from global to shared memory, both aligned to 16, in the background; zeros where not `valid`.
VDITC_DEVICE void copy_async(void* to, const void* from, bool valid) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from), "r"(bytes));
}
VDITC_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;\n"); }
// All but the newest `newest` committed groups of this thread are there.
template <int newest>
VDITC_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(newest));
}

// Four 8 x 8 matrices of 16-bit elements; lane l says where row l % 8 of matrix l / 8 begins (PTX ISA, ldmatrix).
VDITC_DEVICE void load_matrices(uint32_t (&out)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}
// The same, each matrix transposed.
VDITC_DEVICE void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}

#define VDITC_MMA(name, instruction, number, constraint)                                                                     \
  VDITC_DEVICE void name(number(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) {                                   \
    asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"                            \
                 : "+" constraint(d[0]), "+" constraint(d[1]), "+" constraint(d[2]), "+" constraint(d[3])                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                            \
  }
// d += a b of one warp; fragments as in PTX ISA, "Matrix Fragments for mma.m16n8k..". a is signed; sums are int32 or float.
VDITC_MMA(mma_s8, "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", int, "r")
VDITC_MMA(mma_s8_u8, "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32", int, "r")
VDITC_MMA(mma_s4, "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32", int, "r")
VDITC_MMA(mma_s4_u4, "mma.sync.aligned.m16n8k64.row.col.s32.s4.u4.s32", int, "r")
VDITC_MMA(mma_fp16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", float, "f")
VDITC_MMA(mma_bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", float, "f")
#undef VDITC_MMA

// One IEEE operation each: never contracted to a fused multiply-add.
VDITC_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
VDITC_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
VDITC_DEVICE float subtract(float a, float b) { return __fsub_rn(a, b); }
VDITC_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
VDITC_DEVICE float square_root(float a) { return __fsqrt_rn(a); }
VDITC_DEVICE float round_even(float a) { return rintf(a); }
VDITC_DEVICE float from_int(int a) { return __int2float_rn(a); }
VDITC_DEVICE int to_int(float a) { return __float2int_rn(a); }
VDITC_DEVICE uint32_t bits_of(float a) { return __float_as_uint(a); }
VDITC_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

VDITC_DEVICE float float_of_bits(int bits) { return __int_as_float(bits); }
// 2^a, to two units in the last place; 0 where that is below 2^-126 (PTX ISA, ex2.approx.ftz.f32).
VDITC_DEVICE float power_of_two(float a) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(a));
  return result;
}

// PTX ISA, cvt: to the nearest, ties to even.
VDITC_DEVICE float from_fp16(uint16_t bits) {
  float a;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(a) : "h"(bits));
  return a;
}
VDITC_DEVICE uint16_t to_fp16(float a) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;\n" : "=h"(bits) : "f"(a));
  return bits;
}
VDITC_DEVICE float from_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
VDITC_DEVICE uint16_t to_bf16(float a) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;\n" : "=h"(bits) : "f"(a));
  return bits;
}

// Byte i of the result is byte s_i of b:a, s_i being hexadecimal digit i (from the lowest) of `select`, 0 ... 7.
VDITC_DEVICE uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t select) { return __byte_perm(a, b, select); }
// a - b of the two bf16 in each word, rounded once.
VDITC_DEVICE uint32_t subtract_bf16(uint32_t a, uint32_t b) {
  uint32_t d;  // an instruction of sm_80, as sub.bf16x2 is of sm_90: b * -1 + a
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(b), "r"(0xbf80bf80u), "r"(a));
  return d;
}

// Two numbers, the first in the low half: a register of a 16-bit fragment.
VDITC_DEVICE uint32_t pack_fp16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
VDITC_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace vditc
#endif
