#include "pixel_codec.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "json_place.h"

namespace vditc::internal {
namespace {

// As `vditc.clips.to_pixels`: float64, halves to even; what is no number is black.
uint8_t pixel(float value) {
  const double shown = std::nearbyint((static_cast<double>(std::clamp(value, -1.0f, 1.0f)) + 1) * 127.5);
  return shown >= 0 ? static_cast<uint8_t>(shown) : 0;
}

}  // namespace

PixelCodec PixelCodec::read(const Json& config, const std::string& file) {
  const JsonPlace place(config, file);
  PixelCodec made;
  made.block_ = place["block"].integer(1, 64);
  made.mean_ = static_cast<float>(place["latents_mean"].number());
  made.std_ = static_cast<float>(place["latents_std"].number());
  return made;
}

VideoSize PixelCodec::size(const LatentShape& shape) const {
  check_latents(shape, block_ * block_);
  return {static_cast<uint64_t>(shape[1]), static_cast<uint64_t>(shape[2] * block_), static_cast<uint64_t>(shape[3] * block_)};
}

void PixelCodec::decode(const Decoding& clip, Workers&) const {
  const VideoSize size = this->size(clip.shape);
  const size_t height = size.height, width = size.width, block = static_cast<size_t>(block_);
  const size_t rows = static_cast<size_t>(clip.shape[2]), columns = static_cast<size_t>(clip.shape[3]);
  std::vector<uint8_t> pixels(height * width * 3);
  for (size_t frame = 0; frame < size.frames; ++frame) {
    clip.pause();
    for (size_t y = 0; y < height; ++y) {
      for (size_t x = 0; x < width; ++x) {
        const size_t channel = y % block * block + x % block;
        const float latent = clip.latents[((channel * size.frames + frame) * rows + y / block) * columns + x / block];
        const float scaled = latent * std_;
        std::fill_n(pixels.begin() + static_cast<std::ptrdiff_t>((y * width + x) * 3), 3, pixel(scaled + mean_));
      }
    }
    clip.on_frames(pixels.data(), frame, 1);
  }
}

}  // namespace vditc::internal
