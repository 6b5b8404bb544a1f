// QLinear's products by CUTLASS 2.x: mma.sync on int8, cp.async. Runs on sm_80 and everything later.
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <type_traits>

#include "native/capture.h"
#include "qlinear/cutlass_epilogue_sm80.h"
#include "qlinear/cutlass_status.h"
#include "qlinear/tactics.h"

namespace vditc::qlinear {
namespace {

constexpr int STAGES = 3;  // 48 KB of a 128 x 128 tile, so that two blocks share an SM of 100 KB (sm_86, 89, 120)
constexpr int LOAD = 16;   // bytes

template <class Tile>
struct Gemm {
  using Warp = cutlass::gemm::GemmShape<64, 64, 64>;
  using Map = cutlass::epilogue::threadblock::OutputTileThreadLayout<Tile, Warp, cutlass::half_t, VECTOR, 1>;
  using Swizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>;  // eight tiles of columns read the same rows at a time
  // The type of C decides how threads share rows out; nothing of that type is read or written.
  using Base = typename cutlass::gemm::kernel::DefaultGemmUniversal<
      int8_t, cutlass::layout::RowMajor, cutlass::ComplexTransform::kNone, LOAD, int8_t, cutlass::layout::ColumnMajor,
      cutlass::ComplexTransform::kNone, LOAD, cutlass::half_t, cutlass::layout::RowMajor, int32_t, cutlass::arch::OpClassTensorOp,
      cutlass::arch::Sm80, Tile, Warp, cutlass::gemm::GemmShape<16, 8, 32>,
      cutlass::epilogue::thread::LinearCombination<cutlass::half_t, VECTOR, int32_t, float>, Swizzle, STAGES,
      cutlass::arch::OpMultiplyAddSaturate>::GemmKernel;
  static_assert(std::is_base_of_v<typename Base::Epilogue::OutputTileIterator::ThreadMap, Map>, "the places of accumulators");
  // Not unrolled: the epilogue is long, and its accumulators pass through shared memory anyway.
  using Visited = cutlass::epilogue::threadblock::EpilogueWithVisitorCallbacks<typename Base::Epilogue, Sm80Epilogue<Map>, 1, false>;
  using Kernel = cutlass::gemm::kernel::GemmWithEpilogueVisitor<typename Base::Mma, Visited, Swizzle>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  static_assert(sizeof(typename Kernel::SharedStorage) <= LEAST_SHARED, "stages and epilogue");

  static Status run(const Epilogue& e, const int8_t* x, const int8_t* weight, int m, int n, int k, cudaStream_t stream) {
    const typename Device::Arguments arguments(cutlass::gemm::GemmUniversalMode::kGemm, {m, n, k}, 1, e, x, weight, nullptr, nullptr, 0, 0,
                                               0, 0, k, k, 0, 0);
    const Relaxed relaxed;
    Device gemm;
    return cutlass_status("expand-sm80", gemm(arguments, nullptr, stream), reinterpret_cast<const void*>(cutlass::Kernel2<Kernel>));
  }
};

// A tile of 256 x 128 reads a quarter less than two of 128 x 128, and takes a whole SM: worth it where that has no room for two small ones'
// memory anyway or much more (A100, Orin, H100), and where there are enough tiles for all SMs. By calculation, not measured.
bool tall(int64_t m, int n) {
  int device = 0, shared = 0, sms = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return (void)cudaGetLastError(), false;
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  return shared >= 160 << 10 && (m / 256) * ((n + 127) / 128) >= 4 * static_cast<int64_t>(sms);
}

}  // namespace

size_t cutlass_sm80_workspace(int64_t, int, int) { return 0; }

Status launch_cutlass_sm80(const Epilogue& e, const int8_t* x, const int8_t* weight, int64_t m, int n, int k, void* workspace, size_t bytes,
                           cudaStream_t stream) {
  if (!m) return VDITC_OK;
  VDITC_TRY(cutlass_check("expand-sm80", e, m, n, k, workspace, bytes, cutlass_sm80_workspace(m, n, k)));
  const int rows = static_cast<int>(m);
  if (tall(m, n)) return Gemm<cutlass::gemm::GemmShape<256, 128, 64>>::run(e, x, weight, rows, n, k, stream);
  return Gemm<cutlass::gemm::GemmShape<128, 128, 64>>::run(e, x, weight, rows, n, k, stream);
}

}  // namespace vditc::qlinear
