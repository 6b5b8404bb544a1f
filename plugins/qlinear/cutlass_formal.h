// What CUTLASS 3.x asks of an epilogue collective besides its work: types of what it would load and store, and host functions.
#pragma once
#include <cute/layout.hpp>
#include <cutlass/cuda_host_adapter.hpp>
#include <cutlass/gemm/dispatch_policy.hpp>

#include "qlinear/epilogue.h"

namespace vditc::qlinear {

struct FormalEpilogue {
  using EpilogueSchedule = cutlass::gemm::EpilogueDefault;
  using DispatchPolicy = EpilogueSchedule;
  using ElementC = int32_t;
  using ElementD = int32_t;
  using StrideC = cute::Stride<int64_t, cute::_1, int64_t>;
  using StrideD = StrideC;
  using GmemTiledCopyC = void;
  using GmemTiledCopyD = void;
  struct ThreadEpilogueOp {
    using ElementOutput = int32_t;
    using ElementAccumulator = int32_t;
    using ElementCompute = float;
    using ElementScalar = float;
    using ElementC = int32_t;
    using ElementD = int32_t;
    static constexpr int kCount = 1;
  };
  struct SharedStorage {};
  using TensorStorage = SharedStorage;
  using Arguments = Epilogue;
  using Params = Epilogue;
  static constexpr uint32_t TmaTransactionBytes = 0;

  template <class Shape>
  static constexpr Params to_underlying_arguments(const Shape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class Shape>
  static size_t get_workspace_size(const Shape&, const Arguments&) {
    return 0;
  }
  template <class Shape>
  static cutlass::Status initialize_workspace(const Shape&, const Arguments&, void*, cudaStream_t, cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }
  template <class Shape>
  static bool can_implement(const Shape&, const Arguments&) {
    return true;
  }
};

}  // namespace vditc::qlinear
