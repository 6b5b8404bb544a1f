#include "feeder.h"

#include <cmath>
#include <cstring>

#include "status.h"

namespace vditc::internal {

std::vector<Shape> input_shapes(const std::vector<InputSpec>& specs, const std::map<std::string, int64_t>& sizes, const Clips& clips, int64_t batch) {
  std::vector<Shape> made;
  for (const InputSpec& spec : specs) {
    Shape shape;
    const auto own = clips.inputs.find(spec.name);
    for (size_t i = 0; i < spec.dims.size(); ++i) {
      const Dim& dim = spec.dims[i];
      if (dim.axis.empty()) shape.push_back(dim.size);
      else if (dim.axis == "batch") shape.push_back(batch);
      else if (const auto size = sizes.find(dim.axis); size != sizes.end()) shape.push_back(size->second);
      else if (own != clips.inputs.end()) shape.push_back(own->second.shape[i]);
      else {
        throw Error(VDITC_ERROR_INPUT, "conditioning", "no size for axis " + dim.axis + " of " + spec.name, spec.dims_words(), "give this input");
      }
    }
    made.push_back(std::move(shape));
  }
  return made;
}

Feeder::Feeder(const std::vector<InputSpec>& specs, const Clips& clips, std::vector<int> branches, double embedded)
    : specs_(specs), clips_(clips), branches_(std::move(branches)), embedded_(embedded), count_(clips.latents()) {
  shapes_ = input_shapes(specs_, clips_.sizes(specs_), clips_, static_cast<int64_t>(batch(0)));
  wide_ = static_cast<size_t>(elements(shapes_[0])) / batch(0);
  if (specs_[0].dtype != VDITC_F32) shown_.resize(count_);
}

Call Feeder::call() const {
  Call made;
  made.specs = &specs_;
  made.shapes = shapes_;
  made.runs = branches_.size();
  made.prediction = {static_cast<int64_t>(batch(0)), clips_.latent_shape[0], clips_.latent_shape[1], clips_.latent_shape[2], clips_.latent_shape[3]};
  return made;
}

float* Feeder::latents(Denoiser& denoiser) {
  return shown_.empty() ? static_cast<float*>(denoiser.input(0, 0)) : shown_.data();
}

const HostArray* Feeder::given(const std::string& name, bool prompted) const {
  if (!prompted) {
    const auto found = clips_.empty.find(name);
    if (found != clips_.empty.end()) return &found->second;
  }
  const auto found = clips_.inputs.find(name);
  return found == clips_.inputs.end() ? nullptr : &found->second;
}

void Feeder::still(Denoiser& denoiser, size_t clip) {
  for (size_t run = 0; run < branches_.size(); ++run) {
    const size_t rows = batch(run);
    for (size_t i = 1; i < specs_.size(); ++i) {
      const InputSpec& spec = specs_[i];
      auto* to = static_cast<uint8_t*>(denoiser.input(run, i));
      if (spec.fill == "timestep" || to == nullptr) continue;
      const size_t all = static_cast<size_t>(elements(shapes_[i])), count = spec.batched() ? all / rows : all, bytes = count * dtype_size(spec.dtype);
      for (size_t row = 0; row < (spec.batched() ? rows : 1); ++row) {
        const bool prompted = row == 0 && (branches_[run] & PROMPTED);
        const HostArray* array = given(spec.name, prompted);
        uint8_t* at = to + row * bytes;
        const bool told = !std::isnan(embedded_) && spec.fill.empty() && spec.name == "guidance";
        if (array == nullptr || told) {
          const double value = told ? 1000 * embedded_ : spec.value;  // in thousandths, as HunyuanVideo is told it
          if (count > 0) {
            convert(&value, VDITC_F64, at, spec.dtype, 1);
            for (size_t k = 1; k < count; ++k) std::memcpy(at + k * dtype_size(spec.dtype), at, dtype_size(spec.dtype));
          }
          continue;
        }
        const size_t of = spec.batched() && array->shape[0] != 1 ? clip : 0;
        convert(array->data + of * count * dtype_size(array->dtype), array->dtype, at, spec.dtype, count);
      }
      denoiser.changed(run, i);
    }
    if (wide_ > count_) {
      const HostArray& extra = clips_.channels;
      const size_t more = wide_ - count_, of = extra.shape[0] != 1 ? clip : 0, size = dtype_size(specs_[0].dtype);
      auto* to = static_cast<uint8_t*>(denoiser.input(run, 0));
      for (size_t row = 0; row < rows; ++row) {
        convert(extra.data + of * more * dtype_size(extra.dtype), extra.dtype, to + (row * wide_ + count_) * size, specs_[0].dtype, more);
      }
    }
  }
}

void Feeder::feed(Denoiser& denoiser, Workers& workers, size_t run, float timestep) {
  const float* shown = latents(denoiser);
  const InputSpec& spec = specs_[0];
  auto* to = static_cast<uint8_t*>(denoiser.input(run, 0));
  const size_t size = dtype_size(spec.dtype);
  for (size_t row = 0; row < batch(run); ++row) {
    uint8_t* at = to + row * wide_ * size;
    if (at == reinterpret_cast<const uint8_t*>(shown)) continue;
    workers.run(count_, [&](size_t begin, size_t end) { convert(shown + begin, VDITC_F32, at + begin * size, spec.dtype, end - begin); });
  }
  denoiser.changed(run, 0);
  for (size_t i = 1; i < specs_.size(); ++i) {
    auto* time = static_cast<uint8_t*>(specs_[i].fill == "timestep" ? denoiser.input(run, i) : nullptr);
    if (time == nullptr) continue;
    const InputSpec& told = specs_[i];
    const size_t count = static_cast<size_t>(elements(shapes_[i])), width = dtype_size(told.dtype);
    const bool by_frame = told.dims.size() == 2 && told.dims[1].axis == "frames";
    const auto frames = by_frame ? static_cast<size_t>(shapes_[i][1]) : 1;
    for (size_t k = 0; k < count; ++k) {
      float value = timestep;
      for (const int64_t frame : clips_.known_frames) {
        if (by_frame && k % frames == static_cast<size_t>(frame)) value = 0;  // a given frame is at the end of its way
      }
      convert(&value, VDITC_F32, time + k * width, told.dtype, 1);
    }
    denoiser.changed(run, i);
  }
}

}  // namespace vditc::internal
