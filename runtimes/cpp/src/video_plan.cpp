#include "video_plan.h"

#include <algorithm>

#include "status.h"

namespace vditc::internal {
namespace {

constexpr int64_t MOST = 1 << 20;

std::array<int64_t, 2> pair(const JsonPlace& place, int64_t least) {
  const std::vector<JsonPlace> items = place.items();
  if (items.size() != 2) place.wrong("two numbers, of rows and columns");
  return {items[0].integer(least, MOST), items[1].integer(least, MOST)};
}

Tiles read_tiles(const JsonPlace& place, int64_t stride) {
  place.only({"latent", "step", "blend", "keep", "unit"});
  Tiles made;
  made.latent = pair(place["latent"], 1), made.step = pair(place["step"], 1);
  made.blend = pair(place["blend"], 0), made.keep = pair(place["keep"], 1);
  made.unit = place["unit"].integer(1, MOST);
  for (size_t i = 0; i < 2; ++i) {
    if (made.step[i] > made.latent[i]) place["step"].wrong("steps that leave no gap between tiles");
    if (made.keep[i] != made.step[i] * stride) place["keep"].wrong("the pixels of a step");
  }
  return made;
}

TimeTiles read_time(const JsonPlace& place) {
  place.only({"latent", "step", "whole", "lead", "blend", "keep"});
  TimeTiles made;
  made.latent = place["latent"].integer(1, MOST), made.step = place["step"].integer(1, MOST), made.whole = place["whole"].integer(0, MOST);
  made.lead = place["lead"].integer(0, MOST), made.blend = place["blend"].integer(0, MOST), made.keep = place["keep"].integer(1, MOST);
  return made;
}

std::vector<float> numbers(const JsonPlace& place, int64_t count) {
  std::vector<float> made;
  for (const JsonPlace& item : place.items()) made.push_back(static_cast<float>(item.number()));
  if (!made.empty() && made.size() != static_cast<size_t>(count)) place.wrong("none, or " + std::to_string(count) + ", one a channel");
  return made;
}

}  // namespace

std::vector<Span> VideoPlan::spans(int64_t frames) const {
  std::vector<Span> made;
  if (time) {
    if (frames <= time->whole) return {{0, frames}};
    for (int64_t begin = 0; begin < frames; begin += time->step) {
      const int64_t length = std::min(time->latent, frames - begin);
      if (begin == 0 || length > time->lead) made.push_back({begin, length});  // one of its lead alone decodes nothing
    }
    return made;
  }
  const int64_t first = chunk == 0 ? frames : std::min(frames, chunk + frames % chunk);
  made.push_back({0, first});
  for (int64_t begin = first; begin < frames; begin += chunk) made.push_back({begin, chunk});
  return made;
}

const PartGraph& VideoPlan::graph(const Span& span) const {
  const bool first = span.begin == 0 || apart;
  const std::string count = std::to_string(span.frames);
  const std::string wanted = time ? "tile" + count : chunk == 0 ? "whole" : first ? "first" + count : "next";
  const auto found = std::find_if(graphs.begin(), graphs.end(), [&](const PartGraph& graph) { return graph.name == wanted; });
  if (found != graphs.end()) return *found;
  const std::string kind = time ? "tile" : "first";
  std::string known;
  for (const PartGraph& graph : graphs) {
    if (graph.name.compare(0, kind.size(), kind) == 0) known += (known.empty() ? "" : ", ") + graph.name.substr(kind.size());
  }
  throw Error(VDITC_ERROR_INPUT, "VAE decoder",
              std::string("a clip ") + (time ? "with a tile of time of " : "whose first chunk has ") + count + " latent frames",
              first || time ? "one of " + known : "a clip of one chunk", "compile with a --profile that holds clips of this length");
}

VideoPlan VideoPlan::read(const Json& json, const std::string& file) {
  const JsonPlace place(json, file);
  place.only({"chunk", "graphs", "stride", "mean", "std", "scaling", "shift", "tiles", "apart", "time"});
  VideoPlan made;
  made.chunk = place["chunk"].integer(0, MOST);
  made.stride = place["stride"].integer(1, 256);
  for (const JsonPlace& graph : place["graphs"].items()) {
    made.graphs.push_back(PartGraph::read(graph, made.stride));
    if (made.graphs.back().channels() != made.channels()) graph["inputs"].wrong("the channels of the other graphs");
  }
  if (made.graphs.empty()) place["graphs"].wrong("one or more");
  made.mean = numbers(place["mean"], made.channels()), made.std = numbers(place["std"], made.channels());
  made.scaling = static_cast<float>(place["scaling"].number()), made.shift = static_cast<float>(place["shift"].number());
  if (made.scaling == 0) place["scaling"].wrong("another number than 0");
  if (!place["tiles"].is(Json::NOTHING)) made.tiles = read_tiles(place["tiles"], made.stride);
  if (place.has("apart")) made.apart = place["apart"].truth();
  if (place.has("time")) made.time = read_time(place["time"]);
  return made;
}

}  // namespace vditc::internal
