// The parts that launch.cu puts together into tactics of QLinear. Problems that come here are checked, have rows and fit the tactic.
#pragma once
#include "native/status.h"
#include "qlinear/epilogue.h"

namespace vditc::qlinear {

// Packed codes (vditc.plugins.packing) to int8 row-major [n, k]: 0 ... 15 where the problem's weights are unsigned, else two's complement.
// `out` is aligned to 16 bytes.
Status expand_weights(const vditc_qlinear_problem& problem, const int8_t* weight, int8_t* out, cudaStream_t stream);

// Rows of x of k bytes, k no multiple of 16, to rows of `row_bytes`, which is one, with zeros behind them: what copies of 16 bytes need.
Status pad_rows(const int8_t* x, int8_t* out, int64_t m, int k, int64_t row_bytes, cudaStream_t stream);

struct UnpackArguments;
// The kernels that unpack weights in registers (unpack_kernel.h), by tactic: VDITC_UNPACK_128, VDITC_UNPACK_64, VDITC_INT4, VDITC_CARRIER.
// Grouped where the arguments have group scales. The arguments' tiles are set here.
Status launch_w8(int tactic, bool packed, UnpackArguments& arguments, cudaStream_t stream);
Status launch_w4(int tactic, bool packed, UnpackArguments& arguments, cudaStream_t stream);
Status launch_u4(int tactic, bool packed, UnpackArguments& arguments, cudaStream_t stream);
Status launch_w3(int tactic, bool packed, UnpackArguments& arguments, cudaStream_t stream);

#ifdef VDITC_CUTLASS
// x [m, k] times weight [n, k] transposed, both int8 row-major with rows aligned to 16 bytes (k a multiple of 16), and the epilogue as it says,
// or the sums alone into `epilogue.accumulators` where `epilogue.y` is null; `epilogue.unit` is 1, weight_scale is there. n is any number.
// `workspace`: aligned to 16 bytes, of as many bytes as cutlass_*_workspace says, of which the weights are no part.
size_t cutlass_sm80_workspace(int64_t m, int n, int k);
size_t cutlass_sm90_workspace(int64_t m, int n, int k);
size_t cutlass_sm100_workspace(int64_t m, int n, int k);
Status launch_cutlass_sm80(const Epilogue& epilogue, const int8_t* x, const int8_t* weight, int64_t m, int n, int k, void* workspace, size_t bytes,
                           cudaStream_t stream);
Status launch_cutlass_sm90(const Epilogue& epilogue, const int8_t* x, const int8_t* weight, int64_t m, int n, int k, void* workspace, size_t bytes,
                           cudaStream_t stream);
Status launch_cutlass_sm100(const Epilogue& epilogue, const int8_t* x, const int8_t* weight, int64_t m, int n, int k, void* workspace, size_t bytes,
                            cudaStream_t stream);
#endif

}  // namespace vditc::qlinear
