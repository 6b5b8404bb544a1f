// The epilogue for eight columns (epilogue_vector.h) against the one for a single output (epilogue.h), bit by bit, in the emulator: every
// combination of what a layer can have, with rows and columns that fill no vector. Accumulators come as wgmma leaves them.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "native/launch.h"
#include "qlinear/epilogue_vector.h"

using namespace vditc;
using namespace vditc::qlinear;

namespace {

constexpr int WARP_ROWS = 8, SLICE = 32;

// A warp for eight rows and 32 columns.
struct Kernel {
  struct Arguments {
    Epilogue epilogue;
    const int* sums;  // [m rounded up to 8, n rounded up to 32]
    int width;        // n rounded up
  };
  static constexpr int THREADS = 32;

  static void run(const Arguments& arguments, unsigned char*) {
    const Epilogue& e = arguments.epilogue;
    const int lane = static_cast<int>(threadIdx.x), place = lane % 4;
    const int64_t m = static_cast<int64_t>(blockIdx.x) * WARP_ROWS + lane / 4;
    const int first = static_cast<int>(blockIdx.y) * SLICE;
    int held[4][2], mine[VECTOR];
    for (int g = 0; g < 4; ++g)
      for (int c = 0; c < 2; ++c) held[g][c] = arguments.sums[m * arguments.width + first + VECTOR * g + 2 * place + c];
    gather_group(held, lane, mine);
    const int n = first + VECTOR * place;
    const Row row = row_or_none(e, m);
    Sources sources = {};
    sources_of(e, row, n, sources);
    finish_vector(e, row, n, columns_of(e, n), sources, mine);
  }
};

std::mt19937 numbers(1);
float real() { return std::uniform_real_distribution<float>(-2.0f, 2.0f)(numbers); }

int width_of(int type) { return type == VDITC_FP32 ? 4 : 2; }

void put(unsigned char* to, float value, int type) {
  const uint16_t half = type == VDITC_FP16 ? to_fp16(value) : to_bf16(value);
  if (type == VDITC_FP32)
    std::memcpy(to, &value, 4);
  else
    std::memcpy(to, &half, 2);
}

struct Aligned {
  unsigned char* data;
  size_t bytes;
  explicit Aligned(size_t bytes) : data(static_cast<unsigned char*>(std::aligned_alloc(16, (bytes + 15) / 16 * 16 + 64))), bytes(bytes) {
    std::memset(data, 0x5a, (bytes + 15) / 16 * 16 + 64);
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  float* floats() const { return reinterpret_cast<float*>(data); }
  const float* filled() const {
    for (size_t i = 0; i < bytes / 4; ++i) floats()[i] = real();
    return floats();
  }
  const void* filled(int type) const {
    for (size_t i = 0; i < bytes; i += width_of(type)) put(data + i, real(), type);
    return data;
  }
};

int wrong(const char* what, const Epilogue& e, const unsigned char* found, const std::vector<unsigned char>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i)
    if (found[i] != wanted[i]) {
      std::printf("%s: byte %zu of %zu is %02x; wanted %02x: m %lld, n %d, output %d, rank %d, bias %d, activation %d, gated %d\n", what, i,
                  wanted.size(), found[i], wanted[i], static_cast<long long>(e.m), e.n, e.output, e.rank, e.bias != nullptr, e.activation,
                  e.gate != nullptr);
      return 1;
    }
  return 0;
}

int check(int64_t m, int n, int output, int rank, bool bias, int activation, bool gated, bool scale_per_row, bool gate_per_row) {
  const int64_t rows = (m + WARP_ROWS - 1) / WARP_ROWS * WARP_ROWS;
  const int width = (n + SLICE - 1) / SLICE * SLICE;
  const int64_t gates = gate_per_row ? m : 3;
  const Aligned scale(4 * m), weight_scale(4 * n), left(4 * m * (rank + 1)), right(4 * n * (rank + 1)), biases(4 * n);
  const Aligned gate(gates * n * width_of(output)), residual(m * n * width_of(output)), y(m * n * width_of(output)), integers(m * n * 4);
  std::vector<int> sums(rows * width);
  for (int& sum : sums) sum = static_cast<int>(numbers()) >> 8;
  Epilogue e = {};
  e.scale = scale.filled(), e.weight_scale = weight_scale.filled(), e.left = left.filled(), e.right = right.filled();
  e.bias = bias ? biases.filled() : nullptr;
  e.gate = gated ? gate.filled(output) : nullptr;
  e.residual = gated ? residual.filled(output) : nullptr;
  e.y = y.data;
  e.gate_rows = gate_per_row ? vditc_rows{1, m} : vditc_rows{2, 3};
  e.residual_rows = {1, m};
  e.m = m, e.n = n, e.rank = rank, e.activation = activation, e.output = output, e.scale_per_row = scale_per_row, e.unit = 1.0f / 16;

  const dim3 grid(static_cast<unsigned>(rows / WARP_ROWS), static_cast<unsigned>(width / SLICE));
  std::vector<unsigned char> wanted(m * n * width_of(output) + 64, 0x5a);
  for (int64_t i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j)
      put(wanted.data() + (i * n + j) * width_of(output), finish(e, row_of(e, i), j, scaled(e, j, sums[i * width + j]), false, 0.0f), output);
  if (launch<Kernel>(grid, 0, nullptr, {e, sums.data(), width})) return std::puts(vditc_last_error()), 1;
  if (wrong("outputs", e, y.data, wanted)) return 1;

  e.y = nullptr;
  e.accumulators = reinterpret_cast<int32_t*>(integers.data);
  std::vector<unsigned char> plain(m * n * 4 + 64, 0x5a);
  for (int64_t i = 0; i < m; ++i) std::memcpy(plain.data() + 4 * i * n, &sums[i * width], 4 * n);
  if (launch<Kernel>(grid, 0, nullptr, {e, sums.data(), width})) return std::puts(vditc_last_error()), 1;
  return wrong("accumulators", e, integers.data, plain);
}

}  // namespace

int main() {
  int problems = 0;
  for (const int n : {40, 64, 37, 3})
    for (const int output : {VDITC_FP32, VDITC_FP16, VDITC_BF16})
      for (const int rank : {0, 1, 4})
        for (const int activation : {VDITC_NO_ACTIVATION, VDITC_GELU, VDITC_GELU_TANH})
          for (int bits = 0; bits < 16; ++bits, ++problems)
            if (check(11, n, output, rank, bits & 1, activation, bits & 2, bits & 4, bits & 8)) return 1;
  std::printf("%d problems\n", problems);
  return 0;
}
