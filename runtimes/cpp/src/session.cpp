#include "session.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/engines.h"
#include "random.h"
#include "status.h"

namespace vditc::internal {
namespace {

std::string targets_words(const Bundle& bundle) {
  std::string made = "null, host";
  for (const Target& target : bundle.targets()) made += ", " + target.name;
  return made;
}

}  // namespace

std::unique_ptr<Backend> backend_of(const Bundle& bundle, const SessionOptions& options) {
  if (options.backend == "null") return null_backend();
  if (options.backend == "host") {
    if (options.denoiser.predict == nullptr) {
      throw Error(VDITC_ERROR_ARGUMENT, "backend host", "no denoiser", "a function that predicts", "set vditc_session_options.denoiser");
    }
    return host_backend(options.denoiser);
  }
  const std::vector<Target>& targets = bundle.targets();
  const auto found = std::find_if(targets.begin(), targets.end(), [&](const Target& target) { return target.name == options.backend; });
  if (!options.backend.empty() && found == targets.end()) {
    throw Error(VDITC_ERROR_ARGUMENT, "bundle " + bundle.path(), "backend " + options.backend, targets_words(bundle), "choose one of these");
  }
  return engine_backend(bundle, options.backend, options.device, options.weight_budget);
}

Session::Session(std::shared_ptr<Bundle> bundle, SessionOptions options)
    : bundle_(std::move(bundle)), options_(std::move(options)), specs_(bundle_->inputs()), workers_(options_.threads) {
  if (options_.threads < 0 || options_.device < 0) {
    throw Error(VDITC_ERROR_ARGUMENT, "session", text("threads %d, device %d", options_.threads, options_.device), "0 or more", "correct the options");
  }
  find_experts();
  backend_ = backend_of(*bundle_, options_);
  const int64_t own = bundle_->manifest()["sampling"]["steps"].integer_or(0);
  const int64_t steps = options_.steps > 0 ? options_.steps : experts_.size() > 1 ? static_cast<int64_t>(experts_.back().end) : own;
  if (options_.steps < 0 || steps < 1) {
    throw Error(VDITC_ERROR_ARGUMENT, "sampling", text("%lld steps", static_cast<long long>(options_.steps < 0 ? options_.steps : steps)), "at least 1",
                "change the number of steps");
  }
  steps_ = static_cast<size_t>(steps);
  if (experts_.size() > 1 && steps_ != experts_.back().end) {
    throw Error(VDITC_ERROR_ARGUMENT, "bundle " + bundle_->path(), text("%zu steps", steps_), text("%zu, which the experts share", experts_.back().end),
                "leave out the steps, or compile for another number of them");
  }
  if (experts_.size() == 1) experts_[0].end = steps_;
  choose_passes();
  if (!options_.step_cache.empty()) read_step_cache();
  if (!std::isnan(options_.embedded_guidance) &&
      std::none_of(specs_.begin(), specs_.end(), [](const InputSpec& spec) { return spec.name == "guidance" && spec.fill.empty(); })) {
    throw Error(VDITC_ERROR_ARGUMENT, "session", "embedded guidance " + number(options_.embedded_guidance), "a model with an input `guidance`",
                "use guidance: this model is guided by two branches");
  }
  if (bundle_->manifest()["sampling"]["solver"].is(Json::NOTHING) &&
      (!options_.solver.empty() || !std::isnan(options_.shift) || options_.steps > 0)) {
    throw Error(VDITC_ERROR_ARGUMENT, "bundle " + bundle_->path(), "another solver, shift or number of steps for a bundle without a solver",
                "none of these", "compile the model again");
  }
  open(0);
}

void Session::find_experts() {
  const Json& about = bundle_->manifest()["sampling"];
  const std::string where = "bundle " + bundle_->path();
  if (about["schedule"]["first"].integer_or(0) > 0) {
    throw Error(VDITC_ERROR_ARGUMENT, where, bundle_->manifest()["model"]["part"].text_or("an expert") + ", which goes on with clips that another expert has begun",
                "the bundle of the whole model", "open the folder that this one is in");
  }
  const std::vector<std::shared_ptr<Bundle>>& others = bundle_->experts();
  if (!std::isnan(options_.guidance_2) && others.empty()) {
    throw Error(VDITC_ERROR_ARGUMENT, where, "a second guidance scale", "a bundle of two experts", "give guidance alone");
  }
  const double own = about["guidance_scale"].number_or(NAN);
  const double first = std::isnan(options_.guidance) ? own : options_.guidance;
  const double second = !std::isnan(options_.guidance_2) ? options_.guidance_2 : about["guidance_scale_2"].number_or(first);
  const bool finite = std::isfinite(first) && std::isfinite(second);
  if (!finite) {
    throw Error(VDITC_ERROR_INPUT, where, "guidance " + number(first) + " and " + number(second), "finite scales", "give guidance");
  }
  const size_t all = about["schedule"]["timesteps"].items.size();
  experts_.push_back({bundle_, 0, all, first});
  for (size_t i = 0; i < others.size(); ++i) {
    experts_.back().end = static_cast<size_t>(bundle_->first_steps()[i]);
    experts_.push_back({others[i], experts_.back().end, all, second});
  }
  for (const Expert& expert : experts_) guided_ = guided_ || expert.guidance != 1.0;
}

void Session::choose_passes() {
  if (options_.passes < VDITC_PASSES_AUTO || options_.passes > VDITC_PASSES_TWO) {
    throw Error(VDITC_ERROR_ARGUMENT, "session", text("passes %d", options_.passes), "VDITC_PASSES_AUTO, _BATCHED or _TWO", "correct the options");
  }
  if (!guided_) return;  // only the prompts run
  const Dim clips = backend_->inputs(*bundle_)[0].dims[0];
  Range takes{clips.size, clips.size, clips.size};
  if (!clips.axis.empty()) {
    const Range* known = backend_->built() ? bundle_->range(clips.axis) : nullptr;
    takes = known ? *known : Range{1, 1, 2};
  }
  const bool two = takes.smallest <= 1 && 1 <= takes.greatest, batched = takes.smallest <= 2 && 2 <= takes.greatest;
  const bool asked = options_.passes == VDITC_PASSES_AUTO || (options_.passes == VDITC_PASSES_TWO ? two : batched);
  if (!asked || (!two && !batched)) {
    throw Error(VDITC_ERROR_ARGUMENT, "bundle " + bundle_->path(),
                text("guidance in %s with a model for %lld to %lld clips at once",
                     options_.passes == VDITC_PASSES_TWO ? "two passes" : "one pass", static_cast<long long>(takes.smallest),
                     static_cast<long long>(takes.greatest)),
                two ? "two passes" : batched ? "one pass" : "an engine for one clip or two",
                "choose another way, guidance 1, or build an engine with --profile batch=1:2:2");
  }
  batched_ = options_.passes == VDITC_PASSES_AUTO ? batched : options_.passes == VDITC_PASSES_BATCHED;
}

void Session::read_step_cache() {
  const std::string where = "bundle " + bundle_->path();
  const Json& about = bundle_->manifest()["sampling"]["step_cache"];
  if (about.is(Json::NOTHING)) {
    throw Error(VDITC_ERROR_INPUT, where, "no step cache", "a polynomial that was fitted at compile", "compile the model again, in more than 3 steps");
  }
  cache_ = std::make_unique<StepCache>(StepCache::of(about, where));
  threshold_ = cache_->threshold(options_.step_cache);
  if (experts_[0].guidance != 1.0 && cache_->unprompted.empty()) {
    throw Error(VDITC_ERROR_INPUT, where, "a step cache at guidance " + number(experts_[0].guidance), "guidance 1, which it was fitted to",
                "compile with --guidance");
  }
}

void Session::check_profile(const Clips& clips) const {
  if (!backend_->built()) return;
  for (const auto& [axis, size] : clips.sizes(specs_)) {
    const Range* range = bundle_->range(axis);
    if (range == nullptr || (range->smallest <= size && size <= range->greatest)) continue;
    throw Error(VDITC_ERROR_INPUT, "conditioning", text("%s of %lld", axis.c_str(), static_cast<long long>(size)),
                text("%lld to %lld, which the engine serves", static_cast<long long>(range->smallest), static_cast<long long>(range->greatest)),
                "build an engine with a wider --profile");
  }
}

std::shared_ptr<const Walk> Session::walk(const Clips& clips) const {
  const std::string where = "bundle " + bundle_->path();
  const Json &about = bundle_->manifest()["sampling"], &solver = about["solver"];
  if (solver.is(Json::NOTHING)) return walk_of_table(about["schedule"], where);
  Json config = solver["config"];
  Json name;
  name.kind = Json::TEXT, name.text = solver["class"].text_or("None");
  config.kind = Json::OBJECT;
  config.members.emplace_back("_class_name", name);
  config = solver_config(config, options_.solver, where);
  if (!std::isnan(options_.shift)) config = shifted_config(config, options_.shift, where);
  Given given;
  given.pipeline = solver["pipeline"].text_or("");
  given.patch = std::max<int64_t>(1, solver["patch"].integer_or(1));
  for (int i = 0; i < 3; ++i) given.size[i] = clips.latent_shape[i + 1];
  auto made = walk_of(config, static_cast<int64_t>(steps_), given, where);
  const Json& table = about["schedule"]["timesteps"];
  const auto differs = [&](double absolute, double relative) {  // first step whose time is another; `steps_` if none is
    for (size_t i = 0; i < steps_; ++i) {
      const double own = table.items.size() == steps_ ? table.items[i].number_or(NAN) : NAN;
      if (!(std::fabs(static_cast<double>(made->timesteps[i]) - own) <= absolute + relative * std::fabs(own))) return i;
    }
    return steps_;
  };
  for (const Expert& expert : experts_) {
    const std::vector<InputSpec> inputs = backend_->inputs(*expert.bundle);
    if (std::none_of(inputs.begin(), inputs.end(), [](const InputSpec& spec) { return spec.name == "step"; })) continue;
    const size_t step = differs(1e-6, 1e-6);  // a few units of float32: levels by powers and logarithms are another library's
    if (step == steps_) continue;
    throw Error(VDITC_ERROR_INPUT, where, text("timestep %g at step %zu of %zu", static_cast<double>(made->timesteps[step]), step, steps_),
                text("the %zu steps that the graph's tables were made for", table.items.size()),
                "sample with the schedule of the calibration, all of its steps, or compile for another one (--steps, --keep-time-path)");
  }
  if (cache_ && differs(1, 1e-5) != steps_) {
    throw Error(VDITC_ERROR_INPUT, where, text("a step cache on %zu steps of another schedule", steps_),
                text("the %zu steps that it was fitted to", table.items.size()), "leave out steps, shift and solver, or the step cache");
  }
  return made;
}

std::vector<int> Session::branches(double guidance) const {
  if (guidance == 1.0) return {PROMPTED};
  return batched_ ? std::vector<int>{BOTH} : std::vector<int>{PROMPTED, UNPROMPTED};
}

void Session::open(size_t expert) {
  if (denoiser_ && opened_ == expert) return;
  denoiser_.reset();  // one is in memory at a time
  denoiser_ = backend_->open(*experts_[expert].bundle, expert);
  opened_ = expert;
}

std::unique_ptr<Program> Session::part(const std::string& component, const std::string& graph) {
  denoiser_.reset();
  return backend_->program(*bundle_, component, graph);
}

void Session::load_known(const Clips& clips) {
  known_.resize(clips.known ? clips.known.count() : 0);
  if (clips.known) convert(clips.known.data, clips.known.dtype, known_.data(), VDITC_F32, known_.size());
}

void Session::put_known(const Clips& clips, size_t clip, float* latents) const {
  if (known_.empty()) return;
  const size_t count = clips.latents(), frames = static_cast<size_t>(clips.latent_shape[1]);
  const auto channels = static_cast<size_t>(clips.latent_shape[0]), frame = count / (channels * frames);
  const float* from = known_.data() + (clips.known.shape[0] == 1 ? 0 : clip * count);
  for (size_t c = 0; c < channels; ++c) {
    for (const int64_t given : clips.known_frames) {
      const size_t at = (c * frames + static_cast<size_t>(given)) * frame;
      std::memcpy(latents + at, from + at, frame * sizeof(float));
    }
  }
}

void Session::stop_if_cancelled() {
  if (closed_) throw Error(VDITC_CANCELLED, "session", "a session that is being destroyed", "one that lives", "create another session");
  if (cancelled_.exchange(false)) throw Error(VDITC_CANCELLED, "session", "a request to stop", "none", "call it again");
}

Session::AtWork::AtWork(Session& session) : session_(session), hold_(session.busy_, std::defer_lock) {
  const std::thread::id here = std::this_thread::get_id();
  if (session_.caller_ == here || !hold_.try_lock()) {
    throw Error(VDITC_ERROR_BUSY, "session", "a call that is at work", "one at a time", "wait for it, or create another session");
  }
  session_.caller_ = here;
}

void Session::close() {
  if (caller_ == std::this_thread::get_id()) {
    throw Error(VDITC_ERROR_BUSY, "session", "a callback that destroys the session which called it", "one that asks to stop", "return 1, and destroy it after the call");
  }
  closed_ = true;
  const std::lock_guard<std::mutex> hold(busy_);
}

void Session::one_step(Feeder& feeder, Clip& clip, const Expert& expert, size_t index, float* latents) {
  const Trajectory& trajectory = *clip.trajectory;
  const size_t count = mixed_.size(), runs = feeder.branches().size();
  float* shown = feeder.latents(*denoiser_);
  trajectory.shown(workers_, index, latents, shown);
  if (clip.skips) clip.skips->look(workers_, index, shown);
  bool begun[2] = {false, false};
  for (size_t run = 0; run < runs; ++run) {
    ++asked_;
    const bool have_one = index > expert.begin;  // of this expert
    if (clip.skips && clip.skips->skips(index, feeder.branches()[run], have_one)) {
      ++skipped_;
      continue;
    }
    feeder.feed(*denoiser_, workers_, run, trajectory.walk().timesteps[index]);
    denoiser_->begin(run, static_cast<int64_t>(index - expert.begin));
    begun[run] = true;
  }
  const float* said[2] = {nullptr, nullptr};  // with the prompt, and without
  for (size_t run = 0; run < runs; ++run) {
    const float* prediction = predictions_[run].data();
    if (begun[run]) {
      prediction = denoiser_->result(run);
      if (clip.skips) {
        std::vector<float>& kept = predictions_[run];
        const float* from = prediction;
        workers_.run(kept.size(), [&](size_t begin, size_t end) { std::copy(from + begin, from + end, kept.data() + begin); });
      }
    }
    if (feeder.branches()[run] == BOTH) said[0] = prediction, said[1] = prediction + count;
    else said[run] = prediction;
  }
  if (expert.guidance != 1.0) {
    const float scale = static_cast<float>(expert.guidance);
    float* mixed = mixed_.data();
    const float *with = said[0], *without = said[1];
    workers_.run(count, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const float difference = with[i] - without[i], scaled = difference * scale;
        mixed[i] = without[i] + scaled;
      }
    });
    said[0] = mixed;
  }
  clip.trajectory->step(workers_, index, said[0], latents, nullptr, latents);
}

void Session::sample(const Clips& clips, const OnStep& on_step, const std::function<void(const std::vector<float>&)>& finished) {
  const AtWork at_work(*this);
  clips.check(specs_);
  if (clips.latent_shape[0] < 1) throw Error(VDITC_ERROR_INPUT, "conditioning", "no channels", "some", "correct the latents' shape");
  check_profile(clips);
  const std::shared_ptr<const Walk> way = walk(clips);
  const size_t count = clips.latents(), all = clips.count();
  workers_.prepare(count);
  load_known(clips);
  latents_.resize(all * count);
  mixed_.resize(count);
  asked_ = skipped_ = 0;
  // A solver remembers the clip that it walks: of several experts each has all clips in turn, for one is open at a time.
  std::vector<Clip> walkers(experts_.size() > 1 ? all : 1);
  for (Clip& walker : walkers) {
    walker.trajectory = std::make_unique<Trajectory>(way);
    walker.trajectory->resize(count);
    if (cache_) walker.skips = std::make_unique<Skips>(*cache_, threshold_, steps_, count);
  }
  uint64_t done = 0;
  for (size_t number = 0; number < experts_.size(); ++number) {
    const Expert& expert = experts_[number];
    stop_if_cancelled();
    open(number);
    Feeder feeder(specs_, clips, branches(expert.guidance), options_.embedded_guidance);
    denoiser_->resize(feeder.call());
    predictions_.assign(feeder.branches().size(), std::vector<float>(cache_ ? static_cast<size_t>(elements(feeder.call().prediction)) : 0));
    for (size_t i = 0; i < all; ++i) {
      float* latents = latents_.data() + i * count;
      if (number == 0) {
        Random({clips.seeds[i]}).normal(latents, count);
        const float start = static_cast<float>(way->start);
        for (size_t k = 0; k < count; ++k) latents[k] *= start;
        put_known(clips, i, latents);
      }
      feeder.still(*denoiser_, i);
      Clip& clip = walkers[experts_.size() > 1 ? i : 0];
      for (size_t index = expert.begin; index < expert.end; ++index) {
        stop_if_cancelled();
        one_step(feeder, clip, expert, index, latents);
        put_known(clips, i, latents);
        ++done;
        if (on_step && !on_step({done, all * steps_, i, index, latents, count})) {
          throw Error(VDITC_CANCELLED, "session", "a callback that asks to stop", "0", "sample again");
        }
      }
    }
  }
  finished(latents_);
}

vditc_session_info Session::info() const {
  vditc_session_info made{};
  made.passes = batched_ ? VDITC_PASSES_BATCHED : VDITC_PASSES_TWO;
  made.steps = static_cast<int32_t>(steps_);
  made.runs_asked = asked_;
  made.runs_skipped = skipped_;
  return made;
}

}  // namespace vditc::internal
