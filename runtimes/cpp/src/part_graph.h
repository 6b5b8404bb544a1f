// One ONNX graph of a VAE decoder: what it takes, gives, and leaves for the next run (vditc.part_graph is the same in Python).
#pragma once
#include <string>
#include <vector>

#include "dtype.h"
#include "json_place.h"

namespace vditc::internal {

// Latents that one run decodes.
struct PieceSize {
  int64_t frames = 0, height = 0, width = 0;
};

// An axis of a graph: a number, or so many of an axis of the latents. `height_x4` is four times as long as `height`; `frames_x8m7` has 8 for
// every one of `frames`, but 7 fewer.
struct GraphDim {
  enum Axis { FIXED, FRAMES, HEIGHT, WIDTH };
  Axis axis = FIXED;
  int64_t size = 0;  // of a FIXED one
  int64_t factor = 1, less = 0;
  int64_t of(const PieceSize& piece) const;
  bool is(Axis wanted, int64_t times) const { return axis == wanted && factor == times && less == 0; }
  static GraphDim read(const JsonPlace& place);
};

// What one run leaves for the next: output `NAME.next` becomes input `NAME`; zeros at the first run.
struct State {
  std::string name;
  std::vector<GraphDim> dims;
  Shape shape(const PieceSize& piece) const;
};

struct PartGraph {
  std::string name, input, output;
  std::vector<GraphDim> input_dims, output_dims;  // [1, channels, frames, height, width], [1, 3, frames, height, width]
  std::vector<State> reads, writes;
  int64_t channels() const { return input_dims[1].size; }
  // `stride`: pixels of a latent step.
  static PartGraph read(const JsonPlace& place, int64_t stride);
};

}  // namespace vditc::internal
