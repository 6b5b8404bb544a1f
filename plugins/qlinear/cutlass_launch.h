// A CUTLASS 3.x kernel of int8 x [m, k] and weight [n, k] with QLinear's epilogue.
#pragma once
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "native/capture.h"
#include "qlinear/cutlass_status.h"

namespace vditc::qlinear {

constexpr int TMA_ALIGNMENT = 16;  // bytes of a row of a tensor that TMA loads
// Most that a block may have of shared memory on sm_90, 100 and 110 (CUDA C++ Programming Guide, technical specifications).
constexpr int MOST_SHARED = 227 << 10;
constexpr int64_t MOST_BLOCKS_Y = 65535;  // of a grid

// `Finish`: the epilogue collective, with the shared memory that it needs of what the stages of operands leave over.
template <class Arch, class Tile, class Cluster, class Schedule, class Finish>
struct Gemm3x {
  using Stages = cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Finish::SharedStorage))>;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      Arch, cutlass::arch::OpClassTensorOp, int8_t, cutlass::layout::RowMajor, TMA_ALIGNMENT, int8_t, cutlass::layout::ColumnMajor,
      TMA_ALIGNMENT, int32_t, Tile, Cluster, Stages, Schedule>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Finish>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  static_assert(Kernel::SharedStorageSize <= MOST_SHARED, "stages and epilogue");

  static typename Device::Arguments arguments(const Epilogue& e, const int8_t* x, const int8_t* weight, int64_t m, int n, int k) {
    const cute::Stride<int64_t, cute::_1, int64_t> rows{k, {}, 0};
    typename Device::Arguments made{};
    made.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    made.problem_shape = {static_cast<int>(m), n, k, 1};
    made.mainloop = {x, rows, weight, rows};
    made.epilogue = e;
    // sm100's scheduler starts a block for each tile, and where there are more tiles of rows than of columns, rows along y: few enough of them only.
    if ((m + 127) / 128 > MOST_BLOCKS_Y) made.scheduler.raster_order = decltype(made.scheduler.raster_order)::AlongM;
    return made;
  }

  static size_t workspace(int64_t m, int n, int k) { return Device::get_workspace_size(arguments({}, nullptr, nullptr, m, n, k)); }

  static Status run(const char* name, const Epilogue& e, const int8_t* x, const int8_t* weight, int64_t m, int n, int k, void* workspace,
                    cudaStream_t stream) {
    auto made = arguments(e, x, weight, m, n, k);
    auto& gpu = made.hw_info;
    cudaError_t error = cudaGetDevice(&gpu.device_id);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&gpu.sm_count, cudaDevAttrMultiProcessorCount, gpu.device_id);
    if (error != cudaSuccess) return fail_cuda(error, name);
    if (Device::can_implement(made) != cutlass::Status::kSuccess)
      return fail(VDITC_NO_KERNEL, "%s: CUTLASS has no such product: m %lld, n %d, k %d", name, static_cast<long long>(m), n, k);
    const Relaxed relaxed;
    Device gemm;
    return cutlass_status(name, gemm(made, workspace, stream), reinterpret_cast<const void*>(cutlass::device_kernel<Kernel>));
  }
};

}  // namespace vditc::qlinear
