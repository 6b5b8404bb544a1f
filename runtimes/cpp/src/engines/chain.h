// One engine, or segments of one that run one after the other: tensors between them stay on the GPU, and all share their scratch memory.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engines/engine.h"

namespace vditc::internal {

class EngineChain {
 public:
  // `outputs`: of the whole model, others are read by later segments; none: all that the only engine gives. Error VDITC_ERROR_ENGINE for
  // segments that do not fit each other.
  EngineChain(std::vector<std::unique_ptr<Engine>> segments, const std::vector<std::string>& outputs, const std::string& where);

  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }

  bool records() const;  // whether all segments' launches may be recorded

  // Shapes of the inputs -> of the outputs. Memory grows behind the work of `stream`, and addresses of earlier calls are no good any more.
  void resize(const Cuda& cuda, const std::vector<Shape>& inputs, std::vector<Shape>& outputs, Stream stream);
  // Addresses of the inputs and of the outputs, in order. Nothing is allocated.
  void enqueue(const std::vector<DeviceAddress>& inputs, const std::vector<DeviceAddress>& outputs, Stream stream);
  void release(const Cuda& cuda, Stream stream) noexcept;

 private:
  // Where a segment finds a tensor.
  struct Place {
    enum Kind { INPUT, OUTPUT, BETWEEN } kind;
    size_t index;
  };
  struct Segment {
    std::unique_ptr<Engine> engine;
    std::vector<Place> places;  // of its inputs, then of its outputs
    std::vector<DeviceAddress> addresses;
  };
  struct Memory {
    size_t bytes = 0;
    DeviceAddress address = 0;
  };

  std::vector<Segment> segments_;
  std::vector<Port> inputs_, outputs_, between_;
  std::vector<Memory> memory_;  // between segments
  Memory scratch_;

  static void grow(const Cuda& cuda, Memory& memory, size_t bytes, Stream stream);
  std::vector<Shape>& shapes_of(Place::Kind kind);
  std::vector<Shape> input_shapes_, output_shapes_, between_shapes_;
};

size_t bytes_of(const Shape& shape, int32_t dtype);

}  // namespace vditc::internal
