// C++17 over vditc.h: handles that destroy themselves, exceptions instead of statuses. Header only; everything is a call of the C interface.
//
//   vditc::Bundle bundle("wan.bundle");
//   vditc::Session session(bundle, vditc::SessionOptions().backend("rtx-ada"));
//   vditc::Conditioning clips("conditioning.safetensors");
//   std::vector<float> latents = session.sample(clips, [&](const vditc_progress&) { return !stopped; });
#ifndef VDITC_VDITC_HPP
#define VDITC_VDITC_HPP

#include <array>
#include <cmath>
#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "vditc/vditc.h"

namespace vditc {

class Error : public std::runtime_error {
 public:
  Error(vditc_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  vditc_status status() const noexcept { return status_; }
  bool cancelled() const noexcept { return status_ == VDITC_CANCELLED; }

 private:
  vditc_status status_;
};

inline void check(vditc_status status) {
  if (status != VDITC_OK) throw Error(status, vditc_last_error());
}

namespace detail {

// The one owner of a handle.
template <class Opaque, vditc_status (*destroy)(Opaque*)>
class Handle {
 public:
  Handle() noexcept = default;
  explicit Handle(Opaque* handle) noexcept : handle_(handle) {}
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Handle() { destroy(handle_); }
  Opaque* get() const noexcept { return handle_; }
  Opaque** out() noexcept { return &handle_; }

 private:
  Opaque* handle_ = nullptr;
};

template <class Info>
Info sized() {
  Info made{};
  made.abi_version = VDITC_ABI_VERSION;
  made.struct_size = sizeof made;
  return made;
}

// A C++ callback behind a C one; what it throws goes on when the call returns.
template <class Said>
class Told {
 public:
  using Function = std::function<bool(const Said&)>;  // false: stop
  using Callback = int32_t (*)(void*, const Said*);
  explicit Told(Function function) : function_(std::move(function)) {}
  Callback callback() const { return function_ ? &Told::call : nullptr; }
  void* user() { return this; }
  void check(vditc_status status) {
    if (thrown_) std::rethrow_exception(thrown_);
    vditc::check(status);
  }

 private:
  Function function_;
  std::exception_ptr thrown_;
  static int32_t call(void* user, const Said* now) noexcept {
    auto& self = *static_cast<Told*>(user);
    try {
      return self.function_(*now) ? 0 : 1;
    } catch (...) {
      self.thrown_ = std::current_exception();
      return 1;
    }
  }
};

template <class Ask>
std::string text_of(Ask ask) {  // ask(text, capacity, needed)
  size_t needed = 0;
  const vditc_status status = ask(nullptr, size_t{0}, &needed);
  if (status != VDITC_ERROR_SHORT_BUFFER) check(status);
  std::string made(needed, '\0');
  check(ask(&made[0], made.size(), &needed));
  made.resize(needed - 1);
  return made;
}

}  // namespace detail

using OnProgress = detail::Told<vditc_progress>::Function;
using OnFrames = detail::Told<vditc_frames>::Function;

// A tensor of `data`, which the caller keeps.
inline vditc_tensor tensor(const void* data, int32_t dtype, std::initializer_list<int64_t> shape, uint64_t element_bytes) {
  if (shape.size() > VDITC_MAX_RANK) throw Error(VDITC_ERROR_ARGUMENT, "tensor: found too many axes; wanted at most 8; reshape it");
  vditc_tensor made{};
  made.data = data, made.dtype = dtype, made.rank = static_cast<uint32_t>(shape.size());
  made.bytes = element_bytes;
  size_t axis = 0;
  for (const int64_t size : shape) made.shape[axis++] = size, made.bytes *= static_cast<uint64_t>(size);
  return made;
}
inline vditc_tensor tensor(const float* data, std::initializer_list<int64_t> shape) { return tensor(data, VDITC_F32, shape, sizeof(float)); }
inline vditc_tensor tensor(const int64_t* data, std::initializer_list<int64_t> shape) { return tensor(data, VDITC_I64, shape, sizeof(int64_t)); }

class Bundle {
 public:
  // `hashes`: check every file's sha256 now.
  explicit Bundle(const std::string& path, bool hashes = false, OnProgress progress = nullptr) {
    detail::Told<vditc_progress> told(std::move(progress));
    const vditc_bundle_options options = asked(hashes, told);
    told.check(vditc_bundle_open(path.c_str(), &options, handle_.out()));
  }
  void verify(OnProgress progress = nullptr) {
    detail::Told<vditc_progress> told(std::move(progress));
    const vditc_bundle_options options = asked(true, told);
    told.check(vditc_bundle_verify(get(), &options));
  }
  std::string manifest() const {
    return detail::text_of([this](char* text, size_t capacity, size_t* needed) { return vditc_bundle_manifest(get(), text, capacity, needed); });
  }
  vditc_bundle_info info() const { return filled<vditc_bundle_info>([this](auto* to) { return vditc_bundle_info_get(get(), to); }); }
  vditc_file_info file(uint64_t index) const { return filled<vditc_file_info>([=](auto* to) { return vditc_bundle_file(get(), index, to); }); }
  vditc_target_info target(uint64_t index) const { return filled<vditc_target_info>([=](auto* to) { return vditc_bundle_target(get(), index, to); }); }
  vditc_input_info input(uint64_t index) const { return filled<vditc_input_info>([=](auto* to) { return vditc_bundle_input(get(), index, to); }); }
  // Of the text encoder for an input of the model; "": the first.
  std::vector<int64_t> tokenize(const std::string& prompt, const std::string& input = "") const {
    const char* chosen = input.empty() ? nullptr : input.c_str();
    uint64_t needed = 0;
    const vditc_status status = vditc_bundle_tokenize(get(), prompt.c_str(), chosen, nullptr, nullptr, 0, &needed);
    if (status != VDITC_ERROR_SHORT_BUFFER) check(status);
    std::vector<int64_t> made(needed);
    check(vditc_bundle_tokenize(get(), prompt.c_str(), chosen, made.data(), nullptr, needed, nullptr));
    return made;
  }
  Bundle expert(uint64_t index) const {
    Bundle made;
    check(vditc_bundle_expert(get(), index, made.handle_.out()));
    return made;
  }
  vditc_bundle* get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<vditc_bundle, vditc_bundle_destroy> handle_;
  Bundle() = default;
  static vditc_bundle_options asked(bool hashes, detail::Told<vditc_progress>& told) {
    vditc_bundle_options made;
    check(vditc_bundle_options_init(&made, sizeof made));
    made.hashes = hashes, made.progress = told.callback(), made.user = told.user();
    return made;
  }
  template <class Info, class Fill>
  static Info filled(Fill fill) {
    Info made = detail::sized<Info>();
    check(fill(&made));
    return made;
  }
};

// A safetensors file, mapped. Tensors point into it.
class Tensors {
 public:
  explicit Tensors(const std::string& path) { check(vditc_tensors_open(path.c_str(), handle_.out())); }
  uint64_t size() const {
    uint64_t count = 0;
    check(vditc_tensors_count(get(), &count));
    return count;
  }
  vditc_tensor operator[](uint64_t index) const {
    vditc_tensor made{};
    check(vditc_tensors_get(get(), index, &made));
    return made;
  }
  vditc_tensor operator[](const std::string& name) const {
    vditc_tensor made{};
    check(vditc_tensors_find(get(), name.c_str(), &made));
    return made;
  }
  std::string metadata(const std::string& key) const {
    return detail::text_of([&](char* text, size_t capacity, size_t* needed) { return vditc_tensors_metadata(get(), key.c_str(), text, capacity, needed); });
  }
  static void write(const std::string& path, const std::vector<vditc_tensor>& tensors) {
    check(vditc_tensors_write(path.c_str(), tensors.data(), tensors.size()));
  }
  vditc_tensors* get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<vditc_tensors, vditc_tensors_destroy> handle_;
};

// What clips are sampled from.
class Conditioning {
 public:
  explicit Conditioning(const std::string& path) { check(vditc_conditioning_open(path.c_str(), handle_.out())); }
  // channels, frames, height, width; one clip a seed
  Conditioning(const std::array<int64_t, 4>& latent_shape, const std::vector<uint64_t>& seeds) {
    check(vditc_conditioning_create(latent_shape.data(), seeds.data(), seeds.size(), handle_.out()));
  }
  void set_input(const std::string& name, const vditc_tensor& tensor) { check(vditc_conditioning_set_input(get(), name.c_str(), &tensor)); }
  void set_empty(const std::string& name, const vditc_tensor& tensor) { check(vditc_conditioning_set_empty(get(), name.c_str(), &tensor)); }
  void set_channels(const vditc_tensor& tensor) { check(vditc_conditioning_set_channels(get(), &tensor)); }
  void set_known(const vditc_tensor& tensor, const std::vector<int64_t>& frames) {
    check(vditc_conditioning_set_known(get(), &tensor, frames.data(), frames.size()));
  }
  // One a clip.
  void set_seeds(const std::vector<uint64_t>& seeds) { check(vditc_conditioning_set_seeds(get(), seeds.data(), seeds.size())); }
  uint64_t clips() const {
    uint64_t count = 0;
    check(vditc_conditioning_shape(get(), &count, nullptr));
    return count;
  }
  std::array<int64_t, 4> latent_shape() const {
    std::array<int64_t, 4> made{};
    check(vditc_conditioning_shape(get(), nullptr, made.data()));
    return made;
  }
  vditc_conditioning* get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<vditc_conditioning, vditc_conditioning_destroy> handle_;
};

// A scheduler of diffusers.
class Schedule {
 public:
  Schedule(const std::string& config, const vditc_schedule_options& options) {
    check(vditc_schedule_create(config.c_str(), &options, handle_.out()));
  }
  static vditc_schedule_options options(int32_t steps) {
    vditc_schedule_options made;
    check(vditc_schedule_options_init(&made, sizeof made));
    made.steps = steps;
    return made;
  }
  uint64_t steps() const {
    uint64_t count = 0;
    check(vditc_schedule_steps(get(), &count));
    return count;
  }
  double start() const {
    double made = 0;
    check(vditc_schedule_levels(get(), &made, nullptr, nullptr));
    return made;
  }
  std::vector<float> timesteps() const {
    std::vector<float> made(steps());
    check(vditc_schedule_levels(get(), nullptr, made.data(), nullptr));
    return made;
  }
  std::vector<float> sigmas() const {
    std::vector<float> made(steps() + 1);
    check(vditc_schedule_levels(get(), nullptr, nullptr, made.data()));
    return made;
  }
  void shown(uint64_t index, const float* latents, float* to, uint64_t count) { check(vditc_schedule_shown(get(), index, latents, to, count)); }
  void step(uint64_t index, const float* prediction, const float* latents, float* after, uint64_t count, const float* noise = nullptr) {
    check(vditc_schedule_step(get(), index, prediction, latents, noise, after, count));
  }
  vditc_schedule* get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<vditc_schedule, vditc_schedule_destroy> handle_;
};

// Options of a session; text is kept here.
class SessionOptions {
 public:
  SessionOptions() { check(vditc_session_options_init(&options_, sizeof options_)); }
  SessionOptions& backend(std::string name) { return backend_ = std::move(name), *this; }
  SessionOptions& solver(std::string name) { return solver_ = std::move(name), *this; }
  SessionOptions& step_cache(std::string asked) { return step_cache_ = std::move(asked), *this; }
  SessionOptions& denoiser(const vditc_denoiser& own) { return denoiser_ = own, has_denoiser_ = true, backend("host"); }
  SessionOptions& steps(int32_t count) { return options_.steps = count, *this; }
  SessionOptions& passes(int32_t kind) { return options_.passes = kind, *this; }
  SessionOptions& threads(int32_t count) { return options_.threads = count, *this; }
  SessionOptions& device(int32_t number) { return options_.device = number, *this; }
  SessionOptions& shift(double value) { return options_.shift = value, *this; }
  SessionOptions& guidance(double value) { return options_.guidance = value, *this; }
  SessionOptions& guidance_2(double value) { return options_.guidance_2 = value, *this; }
  SessionOptions& embedded_guidance(double value) { return options_.embedded_guidance = value, *this; }
  SessionOptions& weight_budget(int64_t bytes) { return options_.weight_budget = bytes, *this; }
  // Points into this object.
  vditc_session_options get() const {
    vditc_session_options made = options_;
    const auto or_null = [](const std::string& text) { return text.empty() ? nullptr : text.c_str(); };
    made.backend = or_null(backend_), made.solver = or_null(solver_), made.step_cache = or_null(step_cache_);
    made.denoiser = has_denoiser_ ? &denoiser_ : nullptr;
    return made;
  }

 private:
  vditc_session_options options_{};
  vditc_denoiser denoiser_{};
  bool has_denoiser_ = false;
  std::string backend_, solver_, step_cache_;
};

class Session {
 public:
  explicit Session(const Bundle& bundle, const SessionOptions& options = SessionOptions()) {
    const vditc_session_options own = options.get();
    check(vditc_session_create(bundle.get(), &own, handle_.out()));
  }
  // Latents float32 [clips, channels, frames, height, width].
  std::vector<float> sample(const Conditioning& clips, OnProgress progress = nullptr) {
    const std::array<int64_t, 4> shape = clips.latent_shape();
    std::vector<float> made(clips.clips() * static_cast<uint64_t>(shape[0] * shape[1] * shape[2] * shape[3]));
    sample(clips, made.data(), made.size() * sizeof(float), std::move(progress));
    return made;
  }
  // The same into memory of the caller.
  void sample(const Conditioning& clips, float* latents, uint64_t capacity, OnProgress progress = nullptr) {
    detail::Told<vditc_progress> told(std::move(progress));
    told.check(vditc_session_sample(get(), clips.get(), told.callback(), told.user(), latents, capacity, nullptr));
  }
  // Frames, height and width of what latents [channels, frames, height, width] become.
  std::array<uint64_t, 3> frames(const std::array<int64_t, 4>& latent_shape) const {
    std::array<uint64_t, 3> made{};
    check(vditc_session_frames(get(), latent_shape.data(), &made[0], &made[1], &made[2]));
    return made;
  }
  // One clip; its frames come as they are made.
  void decode(const float* latents, const std::array<int64_t, 4>& latent_shape, OnFrames on_frames) {
    uint64_t bytes = sizeof(float);
    for (const int64_t size : latent_shape) bytes *= static_cast<uint64_t>(size);
    detail::Told<vditc_frames> told(std::move(on_frames));
    told.check(vditc_session_decode(get(), latents, bytes, latent_shape.data(), told.callback(), told.user()));
  }
  // The same at once: [frames, height, width, 3].
  std::vector<uint8_t> decode(const float* latents, const std::array<int64_t, 4>& latent_shape) {
    std::vector<uint8_t> made;
    decode(latents, latent_shape, [&](const vditc_frames& now) {
      made.reserve(static_cast<size_t>(now.total * now.height * now.width * 3));
      made.insert(made.end(), now.pixels, now.pixels + now.bytes);
      return true;
    });
    return made;
  }
  // One prompt a clip; `negatives`: as many, or none for "" each.
  void encode(const std::vector<std::string>& prompts, Conditioning& clips, const std::vector<std::string>& negatives = {}) {
    if (!negatives.empty() && negatives.size() != prompts.size()) {
      throw Error(VDITC_ERROR_ARGUMENT, "negatives: found another number than of prompts; wanted one a prompt, or none; correct the call");
    }
    std::vector<const char*> with, without;
    for (const std::string& prompt : prompts) with.push_back(prompt.c_str());
    for (const std::string& negative : negatives) without.push_back(negative.c_str());
    check(vditc_session_encode(get(), with.data(), negatives.empty() ? nullptr : without.data(), with.size(), clips.get()));
  }
  void cancel() { check(vditc_session_cancel(get())); }  // from any thread
  vditc_session_info info() const {
    vditc_session_info made = detail::sized<vditc_session_info>();
    check(vditc_session_info_get(get(), &made));
    return made;
  }
  vditc_session* get() const noexcept { return handle_.get(); }

 private:
  detail::Handle<vditc_session, vditc_session_destroy> handle_;
};

inline std::vector<float> noise(uint64_t seed, uint64_t count) {
  std::vector<float> made(count);
  check(vditc_noise(seed, made.data(), count));
  return made;
}

}  // namespace vditc
#endif
