// Tiles of space and time: where they lie, and how they become one picture, in the arithmetic of the Python package.
#pragma once
#include <optional>
#include <vector>

#include "video_plan.h"

namespace vditc::internal {

// float32 [3, frames, height, width].
struct Video {
  int64_t frames = 0, height = 0, width = 0;
  std::vector<float> data;
  void resize(int64_t of_frames, int64_t of_height, int64_t of_width);
};

// Latent rows and columns of a tile.
struct Place {
  int64_t row = 0, rows = 0, column = 0, columns = 0;
};
// Row by row; one place where there are no tiles, or the clip is no larger than one.
std::vector<Place> tile_places(int64_t height, int64_t width, const Tiles* tiles);

// One picture of all tiles of a chunk: each is blended with the one above and the one to the left, as those are after their own blending.
class Mosaic {
 public:
  // Latent rows and columns of the whole.
  Mosaic(const Tiles& tiles, int64_t stride, int64_t height, int64_t width);
  // In the order of `tile_places`.
  void add(const Place& place, Video tile);
  // When all are there.
  Video& picture() { return picture_; }

 private:
  const Tiles& tiles_;
  int64_t stride_, height_, width_;
  std::vector<Video> above_;  // this row's tiles so far, and behind them those of the row above
  size_t column_ = 0;
  Video picture_;
};

// What stays of every tile of time, blended with the one before as that is after its own blending.
class TimeBlend {
 public:
  explicit TimeBlend(const TimeTiles& time) : time_(time) {}
  // Changes `piece`; gives the number of its first frames that stay.
  int64_t add(Video& piece);
  // Of a tile that decodes so many frames.
  static int64_t kept(const TimeTiles& time, int64_t frames, bool first);

 private:
  const TimeTiles& time_;
  std::optional<Video> end_;  // of the tile before: all that the next one is blended with
};

}  // namespace vditc::internal
