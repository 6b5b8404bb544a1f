#include "conditioning.h"

#include <algorithm>

#include "json.h"
#include "safetensors.h"
#include "status.h"

namespace vditc::internal {
namespace {

constexpr size_t MAX_CLIPS = 1 << 20;

Error bad(const std::string& found, const std::string& wanted, const std::string& fix) {
  return Error(VDITC_ERROR_INPUT, "conditioning", found, wanted, fix);
}

HostArray copied(const vditc_tensor& tensor) {
  HostArray made;
  if (dtype_size(tensor.dtype) == 0 || tensor.rank > VDITC_MAX_RANK) {
    throw Error(VDITC_ERROR_ARGUMENT, "tensor", text("type %d of rank %u", tensor.dtype, tensor.rank),
                text("VDITC_F64 to VDITC_BOOL, at most %d axes", VDITC_MAX_RANK), "correct the tensor");
  }
  made.dtype = tensor.dtype;
  made.shape.assign(tensor.shape, tensor.shape + tensor.rank);
  const int64_t count = elements(made.shape);
  int64_t bytes = 0;
  const bool fits = count >= 0 && !__builtin_mul_overflow(count, static_cast<int64_t>(dtype_size(tensor.dtype)), &bytes);
  if (!fits || static_cast<uint64_t>(bytes) != tensor.bytes || (tensor.data == nullptr && bytes > 0)) {
    throw Error(VDITC_ERROR_ARGUMENT, "tensor", text("%s %s in %llu bytes", dtype_name(tensor.dtype), shape_words(made.shape).c_str(),
                                                     static_cast<unsigned long long>(tensor.bytes)),
                "data of as many bytes as its shape says", "correct the tensor");
  }
  auto memory = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(bytes));
  if (bytes > 0) std::memcpy(memory->data(), tensor.data, static_cast<size_t>(bytes));
  made.data = memory->data();
  made.owner = std::move(memory);
  return made;
}

}  // namespace

size_t Clips::latents() const { return static_cast<size_t>(elements(latent_shape, 4)); }

std::map<std::string, int64_t> Clips::sizes(const std::vector<InputSpec>& specs) const {
  std::map<std::string, int64_t> found;
  const auto clips_here = static_cast<int64_t>(count());
  for (size_t number = 0; number < specs.size(); ++number) {
    const InputSpec& spec = specs[number];
    Shape shape;
    if (number == 0) {
      shape = {clips_here, latent_shape[0] + (channels ? channels.shape[1] : 0), latent_shape[1], latent_shape[2], latent_shape[3]};
    } else {
      const auto own = inputs.find(spec.name);
      if (own == inputs.end()) continue;
      shape = own->second.shape;
    }
    bool fits = shape.size() == spec.dims.size();
    for (size_t i = 0; i < std::min(shape.size(), spec.dims.size()); ++i) {
      const Dim& dim = spec.dims[i];
      const int64_t wanted = dim.axis.empty() ? dim.size : dim.axis == "batch" ? clips_here : found.emplace(dim.axis, shape[i]).first->second;
      // An input of one value for all clips may have an axis of one.
      fits = fits && shape[i] == wanted;
    }
    if (!fits) {
      std::string known;
      for (const auto& [axis, size] : found) known += (known.empty() ? " (" : ", ") + axis + " = " + std::to_string(size);
      throw bad(spec.name + " " + shape_words(shape), spec.dims_words() + (known.empty() ? "" : known + ")"),
                "encode the prompts and choose the latent size for this model");
    }
  }
  return found;
}

void Clips::check(const std::vector<InputSpec>& specs) const {
  sizes(specs);
  std::string missing, wanted;
  for (size_t i = 1; i < specs.size(); ++i) {
    const InputSpec& spec = specs[i];
    if (spec.fill.empty() || spec.fill == "timestep" || inputs.count(spec.name)) continue;
    missing += (missing.empty() ? "no " : ", ") + spec.name;
    wanted += (wanted.empty() ? "" : ", ") + spec.name + " " + spec.dims_words();
  }
  if (!missing.empty()) throw bad(missing, wanted, "give everything that the model takes (docs/conditioning.md)");
  const auto finite = [](const std::string& name, const HostArray& array) {
    const size_t all = array.count(), at = first_not_finite(array.data, array.dtype, all);
    if (at == all) return;
    const std::string clip = array.shape.size() > 1 ? text(", clip %zu", at / (all / static_cast<size_t>(array.shape[0]))) : "";
    throw bad(name + clip + " with numbers that are not finite", "finite numbers", "encode the prompts again");
  };
  for (const auto& [name, array] : inputs) finite("inputs/" + name, array);
  for (const auto& [name, array] : empty) finite("empty/" + name, array);
  if (channels) finite("channels", channels);
  std::string strangers, names;
  for (const auto& [name, array] : inputs) {
    const auto known = std::find_if(specs.begin() + 1, specs.end(), [&own = name](const InputSpec& spec) { return spec.name == own; });
    if (known == specs.end()) strangers += (strangers.empty() ? "inputs " : ", ") + name;
  }
  for (size_t i = 1; i < specs.size(); ++i) names += (names.empty() ? "only " : ", ") + specs[i].name;
  if (!strangers.empty()) throw bad(strangers, names.empty() ? "none" : names, "leave out what the model does not take");
}

Conditioning::Conditioning(const int64_t latent_shape[4], const uint64_t* seeds, size_t clips) {
  std::copy(latent_shape, latent_shape + 4, clips_.latent_shape);
  if (clips < 1 || clips > MAX_CLIPS) throw bad(text("%zu clips", clips), text("1 to %zu", MAX_CLIPS), "sample fewer at once");
  clips_.seeds.assign(seeds, seeds + clips);
  check_shape();
}

Conditioning::Conditioning(const std::string& path) {
  const auto file = std::make_shared<Safetensors>(path);
  const auto wrong = [&](const std::string& why) {
    return Error(VDITC_ERROR_DAMAGED, path, "no conditioning (" + why + ")", "tensors inputs/NAME, empty/NAME, channels, known; metadata vditc",
                 "save it with vditc.conditioning (docs/conditioning.md)");
  };
  const auto said = file->metadata().find("vditc");
  if (said == file->metadata().end()) throw wrong("no metadata vditc");
  const Json about = Json::parse(said->second, path);
  const Json &shape = about["latent_shape"], &seeds = about["seeds"], &prompts = about["prompts"], &frames = about["known_frames"];
  if (shape.items.size() != 4 || !prompts.is(Json::LIST) || !frames.is(Json::LIST) || !seeds.is(Json::LIST)) throw wrong(about.words());
  for (size_t i = 0; i < 4; ++i) clips_.latent_shape[i] = shape.items[i].integer_or(0);
  for (const Json& seed : seeds.items) {
    if (!seed.is(Json::INTEGER) || seed.integer < 0) throw wrong("seed " + seed.words());
    clips_.seeds.push_back(static_cast<uint64_t>(seed.integer));
  }
  if (prompts.items.size() != clips_.seeds.size()) {
    throw bad(text("%zu prompts and %zu seeds", prompts.items.size(), clips_.seeds.size()), "one seed a prompt", "give every clip a prompt and a seed");
  }
  if (clips_.seeds.empty() || clips_.seeds.size() > MAX_CLIPS) throw bad("no prompt", "at least one", "give a prompt");
  check_shape();
  for (const auto& [name, view] : file->tensors()) {
    const HostArray array{view.dtype, view.shape, static_cast<const uint8_t*>(view.data), file};
    if (name.rfind("inputs/", 0) == 0) clips_.inputs[name.substr(7)] = array;
    else if (name.rfind("empty/", 0) == 0) clips_.empty[name.substr(6)] = array;
    else if (name == "channels") clips_.channels = array;
    else if (name == "known") clips_.known = array;
    else throw wrong("a tensor " + name);
  }
  for (const Json& frame : frames.items) clips_.known_frames.push_back(frame.integer_or(-1));
  std::string strangers;
  for (const auto& [name, array] : clips_.empty) {
    const auto own = clips_.inputs.find(name);
    if (own == clips_.inputs.end()) {
      strangers += (strangers.empty() ? "" : ", ") + name;
      continue;
    }
    const Shape &a = array.shape, &b = own->second.shape;
    const bool like = !a.empty() && a.size() == b.size() && std::equal(a.begin() + 1, a.end(), b.begin() + 1);
    if (!like || (a[0] != 1 && a[0] != static_cast<int64_t>(clips_.count()))) {
      throw bad(name + " " + shape_words(a) + " of the empty prompt, " + shape_words(b) + " of the prompts", "one encoding like theirs, or one a clip",
                "encode the empty prompt like the others");
    }
  }
  if (!strangers.empty()) throw bad(strangers + " of the empty prompt alone", "the same of the prompts", "save it for both, or for neither");
  if (clips_.channels) check_extra("channels", clips_.channels, -1);
  if (clips_.known) check_extra("known", clips_.known, clips_.latent_shape[0]);
  check_known_frames();
}

void Conditioning::check_shape() const {
  const Shape shape(clips_.latent_shape, clips_.latent_shape + 4);
  const int64_t count = elements(shape);
  int64_t bytes;
  if (count < 1 || __builtin_mul_overflow(count, static_cast<int64_t>(clips_.count()) * 8, &bytes)) {
    throw bad("latents " + shape_words(shape), "channels, frames, height and width, each at least 1", "choose a size that the model takes");
  }
}

void Conditioning::check_extra(const char* what, const HostArray& array, int64_t channels) const {
  const int64_t* own = clips_.latent_shape;
  const Shape& shape = array.shape;
  const bool fits = shape.size() == 5 && (shape[0] == 1 || shape[0] == static_cast<int64_t>(clips_.count())) && shape[1] >= 1 &&
                    (channels < 0 || shape[1] == channels) && std::equal(shape.begin() + 2, shape.end(), own + 1);
  if (fits) return;
  const std::string first = channels < 0 ? "E" : std::to_string(channels);
  throw bad(std::string(what) + " " + shape_words(shape),
            text("[1 or %zu, %s, %lld, %lld, %lld]", clips_.count(), first.c_str(), static_cast<long long>(own[1]), static_cast<long long>(own[2]),
                 static_cast<long long>(own[3])),
            "make them as large as the latents");
}

void Conditioning::check_known_frames() const {
  bool fits = static_cast<bool>(clips_.known) == !clips_.known_frames.empty();
  for (const int64_t frame : clips_.known_frames) fits = fits && frame >= 0 && frame < clips_.latent_shape[1];
  if (fits) return;
  throw bad(text("%zu known frames%s", clips_.known_frames.size(), clips_.known ? "" : " without known"),
            text("frames 0 to %lld of the latents, together with known", static_cast<long long>(clips_.latent_shape[1] - 1)), "say which frames are given");
}

Clips Conditioning::snapshot() const {
  std::lock_guard<std::mutex> hold(lock_);
  return clips_;
}

void Conditioning::set_input(const std::string& name, const vditc_tensor& tensor) {
  HostArray made = copied(tensor);
  std::lock_guard<std::mutex> hold(lock_);
  clips_.inputs[name] = std::move(made);
  clips_.empty.erase(name);  // its shape may not fit any more
}

void Conditioning::set_empty(const std::string& name, const vditc_tensor& tensor) {
  HostArray made = copied(tensor);
  std::lock_guard<std::mutex> hold(lock_);
  const auto own = clips_.inputs.find(name);
  if (own == clips_.inputs.end()) throw bad(name + " of the empty prompt alone", "the same of the prompts", "set the prompts' first");
  const Shape &a = made.shape, &b = own->second.shape;
  const bool like = !a.empty() && a.size() == b.size() && std::equal(a.begin() + 1, a.end(), b.begin() + 1);
  if (!like || (a[0] != 1 && a[0] != static_cast<int64_t>(clips_.count()))) {
    throw bad(name + " " + shape_words(a) + " of the empty prompt, " + shape_words(b) + " of the prompts", "one encoding like theirs, or one a clip",
              "encode the empty prompt like the others");
  }
  clips_.empty[name] = std::move(made);
}

void Conditioning::set_channels(const vditc_tensor& tensor) {
  HostArray made = copied(tensor);
  std::lock_guard<std::mutex> hold(lock_);
  check_extra("channels", made, -1);
  clips_.channels = std::move(made);
}

void Conditioning::set_known(const vditc_tensor& tensor, const int64_t* frames, size_t count) {
  HostArray made = copied(tensor);
  std::lock_guard<std::mutex> hold(lock_);
  check_extra("known", made, clips_.latent_shape[0]);
  const HostArray before = clips_.known;
  const std::vector<int64_t> frames_before = clips_.known_frames;
  clips_.known = std::move(made);
  clips_.known_frames.assign(frames, frames + count);
  try {
    check_known_frames();
  } catch (...) {
    clips_.known = before, clips_.known_frames = frames_before;
    throw;
  }
}

}  // namespace vditc::internal
