#include "engines/chain.h"

#include <algorithm>
#include <map>

#include "status.h"

namespace vditc::internal {
namespace {

[[noreturn]] void apart(const std::string& where, const std::string& found) {
  throw Error(VDITC_ERROR_ENGINE, where, found, "segments of one engine", "build the engine again");
}

}  // namespace

size_t bytes_of(const Shape& shape, int32_t dtype) { return static_cast<size_t>(elements(shape)) * dtype_size(dtype); }

EngineChain::EngineChain(std::vector<std::unique_ptr<Engine>> segments, const std::vector<std::string>& outputs, const std::string& where) {
  std::map<std::string, std::pair<Place, int32_t>> made;  // and the type
  const auto put = [&](std::vector<Port>& list, Place::Kind kind, const Port& port) {
    const Place place{kind, list.size()};
    list.push_back(port);
    made.insert_or_assign(port.name, std::make_pair(place, port.dtype));
    return place;
  };
  outputs_.resize(outputs.size());
  for (std::unique_ptr<Engine>& engine : segments) {
    Segment segment;
    for (const Port& port : engine->inputs()) {
      const auto found = made.find(port.name);
      if (found == made.end()) {
        segment.places.push_back(put(inputs_, Place::INPUT, port));
        continue;
      }
      if (found->second.second != port.dtype) {
        apart(where, port.name + " of type " + dtype_name(found->second.second) + " for a segment that reads " + dtype_name(port.dtype));
      }
      segment.places.push_back(found->second.first);
    }
    for (const Port& port : engine->outputs()) {
      const auto whole = std::find(outputs.begin(), outputs.end(), port.name);
      if (outputs.empty()) {
        segment.places.push_back(put(outputs_, Place::OUTPUT, port));
      } else if (whole != outputs.end()) {
        const Place place{Place::OUTPUT, static_cast<size_t>(whole - outputs.begin())};
        outputs_[place.index] = port;
        made.insert_or_assign(port.name, std::make_pair(place, port.dtype));
        segment.places.push_back(place);
      } else {
        segment.places.push_back(put(between_, Place::BETWEEN, port));
      }
    }
    segment.addresses.resize(segment.places.size());
    segment.engine = std::move(engine);
    segments_.push_back(std::move(segment));
  }
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (outputs_[i].name.empty()) apart(where, "no segment that makes " + outputs[i]);
  }
  if (outputs_.empty() || inputs_.empty()) apart(where, "an engine without inputs or outputs");
  memory_.resize(between_.size());
  between_shapes_.resize(between_.size());
  output_shapes_.resize(outputs_.size());
}

bool EngineChain::records() const {
  return std::all_of(segments_.begin(), segments_.end(), [](const Segment& segment) { return segment.engine->records(); });
}

std::vector<Shape>& EngineChain::shapes_of(Place::Kind kind) {
  return kind == Place::INPUT ? input_shapes_ : kind == Place::OUTPUT ? output_shapes_ : between_shapes_;
}

void EngineChain::resize(const Cuda& cuda, const std::vector<Shape>& inputs, std::vector<Shape>& outputs, Stream stream) {
  input_shapes_ = inputs;
  size_t scratch = 0;
  std::vector<Shape> given, found;
  for (Segment& segment : segments_) {
    const size_t takes = segment.engine->inputs().size();
    given.clear();
    for (size_t i = 0; i < takes; ++i) given.push_back(shapes_of(segment.places[i].kind)[segment.places[i].index]);
    segment.engine->resize(given, found);
    for (size_t i = takes; i < segment.places.size(); ++i) shapes_of(segment.places[i].kind)[segment.places[i].index] = found[i - takes];
    scratch = std::max(scratch, segment.engine->scratch_bytes());
  }
  for (size_t i = 0; i < between_.size(); ++i) grow(cuda, memory_[i], bytes_of(between_shapes_[i], between_[i].dtype), stream);
  grow(cuda, scratch_, scratch, stream);
  for (Segment& segment : segments_) segment.engine->take_scratch(scratch_.address, scratch_.bytes);
  outputs = output_shapes_;
}

void EngineChain::enqueue(const std::vector<DeviceAddress>& inputs, const std::vector<DeviceAddress>& outputs, Stream stream) {
  for (Segment& segment : segments_) {
    for (size_t i = 0; i < segment.places.size(); ++i) {
      const Place& place = segment.places[i];
      segment.addresses[i] = place.kind == Place::INPUT ? inputs[place.index] : place.kind == Place::OUTPUT ? outputs[place.index] : memory_[place.index].address;
    }
    segment.engine->enqueue(segment.addresses, stream);
  }
}

void EngineChain::release(const Cuda& cuda, Stream stream) noexcept {
  for (Memory& memory : memory_) cuda.release(memory.address, stream), memory = {};
  cuda.release(scratch_.address, stream), scratch_ = {};
}

void EngineChain::grow(const Cuda& cuda, Memory& memory, size_t bytes, Stream stream) {
  if (bytes <= memory.bytes) return;
  cuda.release(memory.address, stream);
  memory = {};
  memory.address = cuda.allocate(bytes, stream);
  memory.bytes = bytes;
}

}  // namespace vditc::internal
