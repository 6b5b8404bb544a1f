/* A linear layer with 4-bit weights by the C interface alone: no CUDA runtime, no TensorRT, no C++.
 *
 *   gcc -std=c99 -I plugins plugins/example/one_layer.c libvditc_plugins.so -o one_layer && ./one_layer
 *
 * It packs weights, computes 64 x 96 outputs on the current GPU and compares them with a loop. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "native/vditc_plugins.h"

enum { M = 64, N = 96, K = 128 };

static void try(vditc_status status, const char* what) {
  if (status == VDITC_OK) return;
  fprintf(stderr, "%s: %s\n", what, vditc_last_error());
  exit(1);
}

/* Device memory that holds a copy of `bytes` bytes, or nothing yet. */
static void* device(const void* from, size_t bytes) {
  void* memory = NULL;
  try(vditc_device_allocate(bytes, &memory), "memory");
  if (from) try(vditc_device_copy(memory, from, bytes), "copy");
  return memory;
}

/* Where the 4-bit code of output n and input k lies: a block is 32 x 32, of which lane l of a warp has 16 bytes (plugins/packing.py). */
static void pack(uint8_t* packed, int n, int k, int code) {
  const int block = n / 32 * (K / 32) + k / 32, tile = n % 32 / 8, lane = n % 8 * 4 + k % 16 / 4, high = k % 32 / 16;
  uint8_t* const byte = packed + 512 * block + 16 * lane + 4 * tile + k % 4;
  *byte = (uint8_t)(*byte | (code & 15) << 4 * high);
}

int main(void) {
  static int8_t x[M][K], w[N][K];
  static uint8_t packed[N * K / 2];
  static float scale[M], weight_scale[N], y[M][N];
  for (int m = 0; m < M; ++m) {
    scale[m] = 0.5f;
    for (int k = 0; k < K; ++k) x[m][k] = (int8_t)((m * 31 + k * 17) % 255 - 127);
  }
  for (int n = 0; n < N; ++n) {
    weight_scale[n] = 0.25f;
    for (int k = 0; k < K; ++k) pack(packed, n, k, w[n][k] = (int8_t)((n * 7 + k * 3) % 16 - 8));
  }

  vditc_qlinear_problem problem;
  memset(&problem, 0, sizeof problem);
  problem.struct_bytes = sizeof problem;
  problem.m = M;
  problem.n = N;
  problem.k = K;
  problem.bits = 4;
  problem.activation_bits = 8;
  problem.layout = VDITC_LAYOUT;
  problem.output = VDITC_FP32;
  problem.scale_per_row = 1;

  vditc_qlinear_tensors tensors;
  memset(&tensors, 0, sizeof tensors);
  void* out = device(NULL, sizeof y);
  void* const inputs[] = {device(x, sizeof x), device(scale, sizeof scale), device(packed, sizeof packed), device(weight_scale, sizeof weight_scale)};
  tensors.x = inputs[0];
  tensors.scale = inputs[1];
  tensors.weight = inputs[2];
  tensors.weight_scale = inputs[3];
  tensors.y = out;

  const int32_t sm = vditc_device_sm();
  size_t bytes = 0;
  try(vditc_qlinear_workspace(&problem, VDITC_ANY_TACTIC, sm, &bytes), "workspace");
  void* const workspace = device(NULL, bytes);
  try(vditc_qlinear_launch(&problem, &tensors, VDITC_ANY_TACTIC, workspace, bytes, NULL), "launch");
  try(vditc_device_copy(y, out, sizeof y), "copy");

  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      int acc = 0;
      for (int k = 0; k < K; ++k) acc += x[m][k] * w[n][k];
      if (y[m][n] != (float)acc * 0.125f) {
        fprintf(stderr, "[%d, %d] is %g; wanted %g\n", m, n, (double)y[m][n], acc * 0.125);
        return 1;
      }
    }
  int32_t ids[16], count = 0;
  try(vditc_qlinear_tactics(&problem, sm, ids, 16, &count), "tactics");
  printf("%d x %d outputs are right; tactics of sm_%d:", M, N, (int)sm);
  for (int i = 0; i < count; ++i) printf(" %s", vditc_qlinear_tactic_name(ids[i]));
  printf("\n");
  for (int i = 0; i < 4; ++i) try(vditc_device_free(inputs[i]), "free");
  try(vditc_device_free(out), "free");
  try(vditc_device_free(workspace), "free");
  return 0;
}
