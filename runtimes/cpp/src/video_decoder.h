// Latents -> frames: a VAE decoder's graphs, chunk by chunk, and tile by tile in space and time
// (vditc.runtimes.parts.video_decoder is the same in Python).
#pragma once
#include <string>

#include "decoder.h"
#include "video_tiles.h"

namespace vditc::internal {

class VideoDecoder : public Decoder {
 public:
  // `tiled`: in the VAE's tiles of space, where a clip is larger than one; another result than without. `file`: of the plan, for errors.
  VideoDecoder(VideoPlan plan, bool tiled, const std::string& file);
  VideoSize size(const LatentShape& shape) const override;
  void decode(const Decoding& clip, Workers& workers) const override;

 private:
  VideoPlan plan_;
  bool tiled_;

  std::vector<float> piece(const Decoding& clip, const Span& span, const Place& place, Workers& workers) const;
  Video run(Program& program, const PartGraph& graph, const PieceSize& size, const std::vector<float>& latents, std::vector<Output>& left) const;
};

}  // namespace vditc::internal
