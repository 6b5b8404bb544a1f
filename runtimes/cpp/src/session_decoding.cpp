// The part of a session that decodes latents into frames.
#include "session.h"
#include "status.h"

namespace vditc::internal {

const Decoder& Session::decoder() {
  const std::lock_guard<std::mutex> hold(decoder_lock_);
  if (!decoder_) decoder_ = open_decoder(*bundle_);
  return *decoder_;
}

VideoSize Session::video_size(const LatentShape& shape) { return decoder().size(shape); }

void Session::decode(const float* latents, const LatentShape& shape, const OnFrames& on_frames) {
  const AtWork at_work(*this);
  const VideoSize size = video_size(shape);  // whatever is wrong is said before any work
  Decoding clip;
  clip.latents = latents, clip.shape = shape;
  clip.pause = [this] { stop_if_cancelled(); };
  clip.open = [this](const std::string& graph) { return part("vae", graph); };
  clip.on_frames = [&](const uint8_t* pixels, uint64_t first, uint64_t count) {
    if (!on_frames({first, count, size, pixels})) throw Error(VDITC_CANCELLED, "session", "a callback that asks to stop", "0", "decode again");
  };
  decoder().decode(clip, workers_);
}

}  // namespace vditc::internal
