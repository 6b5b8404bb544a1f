#include "part_graph.h"

#include <algorithm>

namespace vditc::internal {
namespace {

constexpr int64_t MOST = 1 << 20;    // numbers of an axis
constexpr int64_t MOST_TIMES = 256;  // pixels or frames of a latent step

// Digits alone; -1 for other text.
int64_t digits(const std::string& text) {
  if (text.empty() || text.size() > 6 || text.find_first_not_of("0123456789") != std::string::npos) return -1;
  return std::stoll(text);
}

std::vector<GraphDim> dims(const JsonPlace& place) {
  std::vector<GraphDim> made;
  for (const JsonPlace& dim : place.items()) made.push_back(GraphDim::read(dim));
  if (made.empty() || made.size() > VDITC_MAX_RANK) place.wrong("1 to 8 axes");
  return made;
}

std::vector<State> states(const JsonPlace& place) {
  std::vector<State> made;
  for (const JsonPlace& state : place.items()) {
    state.only({"name", "dims"});
    made.push_back({state["name"].text(), dims(state["dims"])});
    const auto& own = made.back().dims;
    if (std::any_of(own.begin(), own.end(), [](const GraphDim& dim) { return dim.axis == GraphDim::FRAMES; })) {
      state["dims"].wrong("a number of frames that is fixed: chunks of any length leave them");
    }
  }
  return made;
}

}  // namespace

int64_t GraphDim::of(const PieceSize& piece) const {
  if (axis == FIXED) return size;
  return (axis == FRAMES ? piece.frames : axis == HEIGHT ? piece.height : piece.width) * factor - less;
}

GraphDim GraphDim::read(const JsonPlace& place) {
  GraphDim made;
  if (!place.is(Json::TEXT)) {
    made.size = place.integer(1, MOST);
    return made;
  }
  std::string axis = place.text();
  const size_t scale = axis.rfind("_x");
  if (scale != std::string::npos) {
    const size_t less = axis.find('m', scale);
    if (less != std::string::npos) made.less = digits(axis.substr(less + 1));
    made.factor = digits(axis.substr(scale + 2, less == std::string::npos ? less : less - scale - 2));
    axis.resize(scale);
  }
  made.axis = axis == "frames" ? FRAMES : axis == "height" ? HEIGHT : axis == "width" ? WIDTH : FIXED;
  // What is taken off is less than the factor: every piece gives something.
  if (made.axis == FIXED || made.factor < 1 || made.factor > MOST_TIMES || made.less < 0 || made.less >= made.factor) {
    place.wrong("a number, or frames, height or width, behind it _xN or _xNmN");
  }
  return made;
}

Shape State::shape(const PieceSize& piece) const {
  Shape made;
  for (const GraphDim& dim : dims) made.push_back(dim.of(piece));
  return made;
}

PartGraph PartGraph::read(const JsonPlace& place, int64_t stride) {
  place.only({"name", "inputs", "output", "output_dims", "reads", "writes"});
  PartGraph made;
  made.name = place["name"].text();
  const std::vector<JsonPlace> inputs = place["inputs"].items();
  if (inputs.size() != 1) place["inputs"].wrong("one, the latents");
  made.input = inputs[0]["name"].text();
  if (inputs[0]["dtype"].text() != "float32") inputs[0]["dtype"].wrong("float32");
  made.input_dims = dims(inputs[0]["dims"]);
  const auto of = [](const std::vector<GraphDim>& dims, int64_t times) {
    return dims.size() == 5 && dims[0].axis == GraphDim::FIXED && dims[0].size == 1 && dims[1].axis == GraphDim::FIXED &&
           (dims[2].axis == GraphDim::FIXED || dims[2].axis == GraphDim::FRAMES) && dims[3].is(GraphDim::HEIGHT, times) &&
           dims[4].is(GraphDim::WIDTH, times);
  };
  if (!of(made.input_dims, 1)) inputs[0]["dims"].wrong("1, channels, frames, height, width");
  made.output = place["output"].text();
  made.output_dims = dims(place["output_dims"]);
  if (!of(made.output_dims, stride) || made.output_dims[1].size != 3) {
    place["output_dims"].wrong("1, 3, frames, and height and width times the stride, " + std::to_string(stride));
  }
  made.reads = states(place["reads"]);
  made.writes = states(place["writes"]);
  return made;
}

}  // namespace vditc::internal
