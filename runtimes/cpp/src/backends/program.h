// One graph of a text encoder or a VAE decoder: named tensors in, named tensors out, in the host's memory.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "dtype.h"

namespace vditc::internal {

// What a run gives, float32. Who asks says its name and shape; "" is the only output of a graph that has one.
struct Output {
  std::string name;
  Shape shape;
  std::vector<float> data;
};

class Program {
 public:
  virtual ~Program() = default;
  // Fills `outputs`; memory that is large enough is used again. Error for tensors that the graph does not take or give so.
  virtual void run(const std::vector<vditc_tensor>& inputs, std::vector<Output>& outputs) = 0;
};

// Every output is a fixed function of all inputs (docs/cpp.md).
std::unique_ptr<Program> null_program();

}  // namespace vditc::internal
