#include "video_tiles.h"

#include <algorithm>

namespace vditc::internal {
namespace {

// Fades from the end of `before` to the beginning of `tile`. Both are [outer, n, inner], of which n alone differs. A weight is divided in
// float64 and rounded once; products and sums are of float32.
void blend(const std::vector<float>& before, int64_t n_before, std::vector<float>& tile, int64_t n_tile, int64_t outer, int64_t inner,
           int64_t extent, int64_t unit) {
  extent = std::min({n_before, n_tile, extent});
  for (int64_t i = 0; i < extent; ++i) {
    const float weight = static_cast<float>(static_cast<double>(i / unit) / static_cast<double>(extent / unit)), rest = 1.0f - weight;
    for (int64_t o = 0; o < outer; ++o) {
      const float* from = before.data() + (o * n_before + n_before - extent + i) * inner;
      float* to = tile.data() + (o * n_tile + i) * inner;
      for (int64_t k = 0; k < inner; ++k) {
        const float old = from[k] * rest, own = to[k] * weight;
        to[k] = old + own;
      }
    }
  }
}

// Frames [begin, begin + count) of all channels.
void copy_frames(const Video& from, int64_t begin, int64_t count, Video& to) {
  to.resize(count, from.height, from.width);
  const int64_t frame = from.height * from.width;
  for (int64_t c = 0; c < 3; ++c) {
    std::copy_n(from.data.begin() + (c * from.frames + begin) * frame, count * frame, to.data.begin() + c * count * frame);
  }
}

}  // namespace

void Video::resize(int64_t of_frames, int64_t of_height, int64_t of_width) {
  frames = of_frames, height = of_height, width = of_width;
  data.resize(static_cast<size_t>(3 * frames * height * width));
}

std::vector<Place> tile_places(int64_t height, int64_t width, const Tiles* tiles) {
  if (tiles == nullptr || (height <= tiles->latent[0] && width <= tiles->latent[1])) return {{0, height, 0, width}};
  std::vector<Place> made;
  for (int64_t row = 0; row < height; row += tiles->step[0]) {
    for (int64_t column = 0; column < width; column += tiles->step[1]) {
      made.push_back({row, std::min(tiles->latent[0], height - row), column, std::min(tiles->latent[1], width - column)});
    }
  }
  return made;
}

Mosaic::Mosaic(const Tiles& tiles, int64_t stride, int64_t height, int64_t width)
    : tiles_(tiles), stride_(stride), height_(height * stride), width_(width * stride) {
  above_.resize(static_cast<size_t>((width + tiles.step[1] - 1) / tiles.step[1]));
}

void Mosaic::add(const Place& place, Video tile) {
  if (place.row == 0 && place.column == 0) picture_.resize(tile.frames, height_, width_);
  column_ = place.column == 0 ? 0 : column_ + 1;
  if (place.row > 0) {
    const Video& above = above_[column_];
    blend(above.data, above.height, tile.data, tile.height, 3 * tile.frames, tile.width, tiles_.blend[0], tiles_.unit);
  }
  if (place.column > 0) {
    const Video& left = above_[column_ - 1];
    blend(left.data, left.width, tile.data, tile.width, 3 * tile.frames * tile.height, 1, tiles_.blend[1], tiles_.unit);
  }
  const int64_t top = place.row * stride_, side = place.column * stride_;
  const int64_t rows = std::min({tile.height, tiles_.keep[0], height_ - top}), columns = std::min({tile.width, tiles_.keep[1], width_ - side});
  for (int64_t plane = 0; plane < 3 * tile.frames; ++plane) {
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(tile.data.begin() + (plane * tile.height + row) * tile.width, columns,
                  picture_.data.begin() + (plane * height_ + top + row) * width_ + side);
    }
  }
  above_[column_] = std::move(tile);
}

int64_t TimeBlend::kept(const TimeTiles& time, int64_t frames, bool first) {
  return first ? std::min(frames, time.keep + time.lead) : std::min(std::max<int64_t>(0, frames - time.lead), time.keep);
}

int64_t TimeBlend::add(Video& piece) {
  const int64_t keep = kept(time_, piece.frames, !end_);
  if (end_) {
    const int64_t lead = std::min(time_.lead, piece.frames);
    Video behind;
    copy_frames(piece, lead, piece.frames - lead, behind);
    blend(end_->data, end_->frames, behind.data, behind.frames, 3, piece.height * piece.width, time_.blend, 1);
    piece = std::move(behind);
  }
  if (!end_) end_.emplace();
  const int64_t tail = std::min(time_.blend, piece.frames);
  copy_frames(piece, piece.frames - tail, tail, *end_);
  return keep;
}

}  // namespace vditc::internal
