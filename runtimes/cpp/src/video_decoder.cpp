#include "video_decoder.h"

#include <algorithm>

#include "status.h"

namespace vditc::internal {
namespace {

PieceSize piece_size(const Span& span, const Place& place) { return {span.frames, place.rows, place.columns}; }

vditc_tensor tensor(const std::string& name, const Shape& shape, const std::vector<float>& data) {
  vditc_tensor made{};
  made.name = name.c_str(), made.data = data.data(), made.bytes = data.size() * sizeof(float);
  made.dtype = VDITC_F32, made.rank = static_cast<uint32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), made.shape);
  return made;
}

// Of [-1, 1], rounded as diffusers rounds images, halves to even; what is no number is black.
uint8_t to_uint8(float value) {
  constexpr float WHOLE = 1 << 23;  // floats from here on have no fractions: adding it rounds
  const float half = std::clamp(value, -1.0f, 1.0f) * 0.5f, shown = (half + 0.5f) * 255.0f;
  return shown >= 0 ? static_cast<uint8_t>(static_cast<int32_t>(shown + WHOLE) - (1 << 23)) : 0;
}

// The first `count` frames as pixels [count, height, width, 3].
void show(const Video& video, int64_t count, std::vector<uint8_t>& pixels, Workers& workers) {
  const auto size = static_cast<size_t>(count * video.height * video.width);
  const auto channel = static_cast<size_t>(video.frames * video.height * video.width);
  pixels.resize(3 * size);
  workers.prepare(size);
  workers.run(size, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      for (size_t c = 0; c < 3; ++c) pixels[3 * i + c] = to_uint8(video.data[c * channel + i]);
    }
  });
}

}  // namespace

VideoDecoder::VideoDecoder(VideoPlan plan, bool tiled, const std::string& file) : plan_(std::move(plan)), tiled_(tiled) {
  if (tiled && !plan_.tiles) {
    throw Error(VDITC_ERROR_DAMAGED, file, "no tiles", "those of a bundle that was compiled with --vae-tiles", "compile the bundle again");
  }
}

VideoSize VideoDecoder::size(const LatentShape& shape) const {
  check_latents(shape, plan_.channels());
  VideoSize made{0, static_cast<uint64_t>(shape[2] * plan_.stride), static_cast<uint64_t>(shape[3] * plan_.stride)};
  for (const Span& span : plan_.spans(shape[1])) {
    const PartGraph& graph = plan_.graph(span);
    const PieceSize size{span.frames, shape[2], shape[3]};
    const int64_t takes = graph.input_dims[2].of(size);
    if (takes != span.frames) {
      throw Error(VDITC_ERROR_DAMAGED, "VAE decoder", "graph " + graph.name + " of " + std::to_string(takes) + " latent frames",
                  std::to_string(span.frames) + ", as its name says", "compile the bundle again");
    }
    const int64_t frames = graph.output_dims[2].of(size);
    made.frames += static_cast<uint64_t>(plan_.time ? TimeBlend::kept(*plan_.time, frames, span.begin == 0) : frames);
  }
  return made;
}

// Latents of a piece as the VAE was trained on them; every product, quotient and sum is rounded to float32, as numpy does.
std::vector<float> VideoDecoder::piece(const Decoding& clip, const Span& span, const Place& place, Workers& workers) const {
  const auto channels = static_cast<size_t>(clip.shape[0]), frames = static_cast<size_t>(span.frames);
  const auto rows = static_cast<size_t>(place.rows), columns = static_cast<size_t>(place.columns);
  std::vector<float> made(channels * frames * rows * columns);
  const bool normal = !plan_.mean.empty() && !plan_.std.empty();
  workers.prepare(made.size());
  workers.run(made.size(), [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const size_t x = i % columns, y = i / columns % rows, f = i / columns / rows % frames, c = i / columns / rows / frames;
      const size_t row = (c * static_cast<size_t>(clip.shape[1]) + static_cast<size_t>(span.begin) + f) * static_cast<size_t>(clip.shape[2]) +
                         static_cast<size_t>(place.row) + y;
      const float latent = clip.latents[row * static_cast<size_t>(clip.shape[3]) + static_cast<size_t>(place.column) + x];
      if (normal) {
        const float spread = latent * plan_.std[c], scaled = spread / plan_.scaling;
        made[i] = scaled + plan_.mean[c];
      } else {
        const float scaled = latent / plan_.scaling;
        made[i] = scaled + plan_.shift;
      }
    }
  });
  return made;
}

// `left`: states of this place, which the run before has left; becomes those that this one leaves.
Video VideoDecoder::run(Program& program, const PartGraph& graph, const PieceSize& size, const std::vector<float>& latents,
                        std::vector<Output>& left) const {
  std::vector<Output> zeros;
  zeros.reserve(graph.reads.size());  // tensors point into it
  std::vector<vditc_tensor> inputs{tensor(graph.input, {1, plan_.channels(), size.frames, size.height, size.width}, latents)};
  for (const State& state : graph.reads) {
    const auto found = std::find_if(left.begin(), left.end(), [&](const Output& output) { return output.name == state.name + ".next"; });
    if (found == left.end()) {
      const Shape shape = state.shape(size);
      zeros.push_back({state.name, shape, std::vector<float>(static_cast<size_t>(elements(shape)))});
    }
    const Output& given = found == left.end() ? zeros.back() : *found;
    inputs.push_back(tensor(state.name, given.shape, given.data));
  }
  const int64_t frames = graph.output_dims[2].of(size);
  std::vector<Output> outputs{{graph.output, {1, 3, frames, size.height * plan_.stride, size.width * plan_.stride}, {}}};
  for (const State& state : graph.writes) outputs.push_back({state.name + ".next", state.shape(size), {}});
  program.run(inputs, outputs);
  Video made{frames, size.height * plan_.stride, size.width * plan_.stride, std::move(outputs[0].data)};
  left.assign(std::make_move_iterator(outputs.begin() + 1), std::make_move_iterator(outputs.end()));
  return made;
}

void VideoDecoder::decode(const Decoding& clip, Workers& workers) const {
  const int64_t height = clip.shape[2], width = clip.shape[3];
  const std::vector<Place> places = tile_places(height, width, tiled_ ? &*plan_.tiles : nullptr);
  std::vector<std::vector<Output>> left(places.size());
  std::optional<TimeBlend> time;
  if (plan_.time) time.emplace(*plan_.time);
  std::unique_ptr<Program> program;
  const PartGraph* opened = nullptr;
  std::vector<uint8_t> pixels;
  uint64_t first = 0;
  for (const Span& span : plan_.spans(clip.shape[1])) {
    clip.pause();
    const PartGraph& graph = plan_.graph(span);
    if (opened != &graph) {
      program.reset();  // one graph's weights at a time
      program = clip.open(graph.name);
      opened = &graph;
    }
    Video video;
    if (places.size() == 1) {
      video = run(*program, graph, piece_size(span, places[0]), piece(clip, span, places[0], workers), left[0]);
    } else {
      Mosaic mosaic(*plan_.tiles, plan_.stride, height, width);
      for (size_t i = 0; i < places.size(); ++i) {
        if (i > 0) clip.pause();
        mosaic.add(places[i], run(*program, graph, piece_size(span, places[i]), piece(clip, span, places[i], workers), left[i]));
      }
      video = std::move(mosaic.picture());
    }
    const int64_t count = time ? time->add(video) : video.frames;
    if (count == 0) continue;
    show(video, count, pixels, workers);
    clip.on_frames(pixels.data(), first, static_cast<uint64_t>(count));
    first += static_cast<uint64_t>(count);
  }
}

}  // namespace vditc::internal
