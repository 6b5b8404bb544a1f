// What stands for a graph of a text encoder or a VAE decoder, so that everything around it is tested on any machine (docs/cpp.md has it):
//
//   output o [i0, i1, ...] = bounded(first input at [floor(i0 n0 / m0), floor(i1 n1 / m1), ...]) + bias + pattern
//   bias    = sum over the other inputs i = 1, 2, ... of 2^-(i + 2) bounded(mean of i) + o / 8,   bounded(x) = x / (1 + |x|)
//   pattern = ((37 k mod 64) - 32) / 64, k: the index within the output's axes that the first input does not have, 0 without any
//
// n, m: sizes of the axis in the input and in the output; input axes that the output does not have are read at 0. In float64, summed in order
// and rounded to float32 once.
#include <algorithm>
#include <cmath>

#include "backends/backend.h"
#include "backends/null_numbers.h"
#include "backends/program.h"
#include "status.h"

namespace vditc::internal {
namespace {

class NullProgram : public Program {
 public:
  void run(const std::vector<vditc_tensor>& inputs, std::vector<Output>& outputs) override {
    if (inputs.empty()) throw Error(VDITC_ERROR_INPUT, "null program", "no inputs", "one or more", "correct the graph's description");
    const vditc_tensor& first = inputs[0];
    first_.resize(static_cast<size_t>(elements(first.shape, first.rank)));
    convert(first.data, first.dtype, first_.data(), VDITC_F64, first_.size());
    double bias = 0;
    for (size_t i = 1; i < inputs.size(); ++i) {
      const auto count = static_cast<size_t>(elements(inputs[i].shape, inputs[i].rank));
      bias += std::ldexp(bounded(mean_.of(static_cast<const uint8_t*>(inputs[i].data), inputs[i].dtype, count)), -static_cast<int>(i) - 2);
    }
    for (size_t o = 0; o < outputs.size(); ++o) fill(first, bias + static_cast<double>(o) / 8, outputs[o]);
  }

 private:
  std::vector<double> first_;
  NullMean mean_;

  void fill(const vditc_tensor& first, double bias, Output& output) {
    const size_t rank = output.shape.size(), shared = std::min<size_t>(rank, first.rank);
    size_t extra = 1, steps[VDITC_MAX_RANK];  // of the input, for every shared axis
    for (size_t axis = shared; axis < rank; ++axis) extra *= static_cast<size_t>(output.shape[axis]);
    for (size_t axis = first.rank, step = 1; axis-- > 0; step *= static_cast<size_t>(first.shape[axis])) steps[axis] = step;
    output.data.resize(static_cast<size_t>(elements(output.shape)));
    for (size_t at = 0; at < output.data.size(); ++at) {
      size_t left = at / extra, from = 0;
      for (size_t axis = shared; axis-- > 0;) {
        const auto size = static_cast<size_t>(output.shape[axis]);
        from += left % size * static_cast<size_t>(first.shape[axis]) / size * steps[axis];
        left /= size;
      }
      const double pattern = extra == 1 ? 0 : (static_cast<double>(at % extra * 37 % 64) - 32) / 64;
      output.data[at] = static_cast<float>(bounded(first_[from]) + bias + pattern);
    }
  }
};

}  // namespace

std::unique_ptr<Program> null_program() { return std::make_unique<NullProgram>(); }

}  // namespace vditc::internal
