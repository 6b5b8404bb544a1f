// How latents become a video, as data: `decoder.json` of a bundle (vditc.video_plan is the same in Python).
#pragma once
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "part_graph.h"

namespace vditc::internal {

// Tiles of space: `latent` rows and columns each, every `step` of them; `blend` pixels are blended with the tile before, `keep` stay.
// `unit`: pixels that get one weight.
struct Tiles {
  std::array<int64_t, 2> latent{}, step{}, blend{}, keep{};
  int64_t unit = 1;
};

// Latent frames that are decoded at once.
struct Span {
  int64_t begin = 0, frames = 0;
};

// Tiles of time: `latent` frames each, every `step` of them, the last ones shorter; a clip of at most `whole` is one tile. A tile but the
// first is decoded with `lead` latent frames in front, a frame each, which are dropped. Of what is left, `blend` frames are blended with the
// end of the tile before and `keep` stay; the first tile keeps its lead as well.
struct TimeTiles {
  int64_t latent = 0, step = 0, whole = 0, lead = 0, blend = 0, keep = 0;
};

struct VideoPlan {
  int64_t chunk = 0;  // latent frames of every chunk but the first; 0: the whole clip is one
  std::vector<PartGraph> graphs;
  int64_t stride = 0;  // pixels of a latent step
  // A model's latents x become the VAE's as x * std / scaling + mean, or without mean and std as x / scaling + shift.
  std::vector<float> mean, std;
  float scaling = 1, shift = 0;
  std::optional<Tiles> tiles;
  bool apart = false;  // chunks know nothing of each other
  std::optional<TimeTiles> time;

  int64_t channels() const { return graphs[0].channels(); }
  // Chunks, or tiles of time, of a clip of so many latent frames.
  std::vector<Span> spans(int64_t frames) const;
  // The graph of one of them; Error VDITC_ERROR_INPUT when none was exported for a first chunk, or a tile, of so many frames.
  const PartGraph& graph(const Span& span) const;

  // Error VDITC_ERROR_DAMAGED for what vditc does not write; `file` is named by it.
  static VideoPlan read(const Json& json, const std::string& file);
};

}  // namespace vditc::internal
