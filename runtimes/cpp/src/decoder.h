// What makes frames of latents: graphs of a VAE, or the fixed codec of the bundled models.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "backends/program.h"
#include "bundle.h"
#include "workers.h"

namespace vditc::internal {

using LatentShape = std::array<int64_t, 4>;  // channels, frames, height, width

struct VideoSize {
  uint64_t frames = 0, height = 0, width = 0;
};

// One clip that is decoded.
struct Decoding {
  const float* latents = nullptr;  // [channels, frames, height, width]
  LatentShape shape{};
  std::function<std::unique_ptr<Program>(const std::string& graph)> open;  // of the VAE
  std::function<void()> pause;                                             // between two pieces of work; throws where the call is to end
  // uint8 [count, height, width, 3], good during the call; `first`: the number of the first.
  std::function<void(const uint8_t* pixels, uint64_t first, uint64_t count)> on_frames;
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  // What a clip becomes; Error VDITC_ERROR_INPUT for one that is not decoded.
  virtual VideoSize size(const LatentShape& shape) const = 0;
  // A clip that has a size. Memory is that of a chunk, beside the latents; frames come as they are made.
  virtual void decode(const Decoding& clip, Workers& workers) const = 0;
};

// Of a bundle; Error VDITC_ERROR_UNSUPPORTED for one without any, VDITC_ERROR_DAMAGED for one that is not whole.
std::unique_ptr<Decoder> open_decoder(const Bundle& bundle);
bool has_decoder(const Bundle& bundle);
// Frames a second that clips are meant to be shown at.
int32_t frame_rate(const Bundle& bundle);

// Error VDITC_ERROR_INPUT for latents of other channels, or of a size that no clip has.
void check_latents(const LatentShape& shape, int64_t channels);

}  // namespace vditc::internal
