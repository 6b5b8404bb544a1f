#include <mutex>

#include "api.h"
#include "session.h"

using namespace vditc::internal;

namespace {

constexpr const char *SCHEDULE = "schedule", *SESSION = "session";

class Schedule : public Object {
 public:
  explicit Schedule(std::shared_ptr<const Walk> walk) : walk(walk), trajectory(std::move(walk)) {}
  const std::shared_ptr<const Walk> walk;
  std::mutex lock;
  Trajectory trajectory;
  Workers workers{1};
  std::vector<float> shown;
};

std::shared_ptr<Schedule> schedule_of(vditc_schedule* handle) { return of_handle<Schedule>(handle, SCHEDULE); }
std::shared_ptr<Session> session_of(vditc_session* handle) { return of_handle<Session>(handle, SESSION); }

void check_index(const Schedule& schedule, uint64_t index) {
  if (index < schedule.walk->steps()) return;
  throw Error(VDITC_ERROR_ARGUMENT, SCHEDULE, text("step %llu", static_cast<unsigned long long>(index)),
              text("0 to %zu", schedule.walk->steps() - 1), "ask vditc_schedule_steps how many there are");
}

std::string or_empty(const char* text) { return text == nullptr ? "" : text; }

vditc_schedule_options schedule_defaults() {
  vditc_schedule_options made{};
  made.patch = 1;
  made.shift = NAN;
  return made;
}

vditc_session_options session_defaults() {
  vditc_session_options made{};
  made.shift = made.guidance = made.guidance_2 = made.embedded_guidance = NAN;
  made.weight_budget = -1;
  return made;
}

}  // namespace

extern "C" {

vditc_status vditc_schedule_options_init(vditc_schedule_options* options, size_t struct_size) {
  return guarded([&] { initialised(options, struct_size, schedule_defaults(), sizeof *options, "vditc_schedule_options"); });
}

vditc_status vditc_schedule_create(const char* config, const vditc_schedule_options* given, vditc_schedule** schedule) {
  return guarded([&] {
    required(schedule, SCHEDULE) = nullptr;
    required(given, "vditc_schedule_options");
    const vditc_schedule_options options = taken(given, schedule_defaults(), sizeof(vditc_schedule_options), "vditc_schedule_options");
    const std::string where = "scheduler_config.json";
    Json own = solver_config(Json::parse(&required(config, "config"), where), or_empty(options.solver), where);
    if (!std::isnan(options.shift)) own = shifted_config(own, options.shift, where);
    Given told;
    told.pipeline = or_empty(options.pipeline);
    told.patch = options.patch < 1 ? 1 : options.patch;
    std::copy(options.size, options.size + 3, told.size);
    *schedule = new_handle<vditc_schedule>(std::make_shared<Schedule>(walk_of(own, options.steps, told, where)));
  });
}

vditc_status vditc_schedule_destroy(vditc_schedule* schedule) {
  return guarded([&] { destroy_handle<Schedule>(schedule, SCHEDULE); });
}

vditc_status vditc_schedule_steps(vditc_schedule* schedule, uint64_t* steps) {
  return guarded([&] { required(steps, "steps") = schedule_of(schedule)->walk->steps(); });
}

vditc_status vditc_schedule_levels(vditc_schedule* schedule, double* start, float* timesteps, float* sigmas) {
  return guarded([&] {
    const auto walk = schedule_of(schedule)->walk;
    if (start != nullptr) *start = walk->start;
    if (timesteps != nullptr) std::copy(walk->timesteps.begin(), walk->timesteps.end(), timesteps);
    if (sigmas != nullptr) std::copy(walk->sigmas.begin(), walk->sigmas.end(), sigmas);
  });
}

vditc_status vditc_schedule_rows(vditc_schedule* schedule, double* rows, uint64_t capacity, uint64_t* needed) {
  return guarded([&] {
    const auto walk = schedule_of(schedule)->walk;
    const uint64_t bytes = walk->steps() * ROW_NUMBERS * sizeof(double);
    if (needed != nullptr) *needed = bytes;
    if (rows == nullptr || capacity < bytes) {
      throw Error(VDITC_ERROR_SHORT_BUFFER, "rows", text("%llu bytes", static_cast<unsigned long long>(rows ? capacity : 0)),
                  text("%llu bytes", static_cast<unsigned long long>(bytes)), "call again with a larger buffer");
    }
    std::fill(rows, rows + walk->steps() * ROW_NUMBERS, 0.0);
    for (const Row& row : walk->rows) {
      rows[0] = row.seen, rows[1] = row.converted.latents, rows[2] = row.converted.prediction, rows[3] = row.noise, rows[4] = row.corrects;
      std::copy(row.corrected.begin(), row.corrected.end(), rows + 5);
      std::copy(row.following.begin(), row.following.end(), rows + 5 + ROW_TERMS);
      rows += ROW_NUMBERS;
    }
  });
}

vditc_status vditc_schedule_shown(vditc_schedule* handle, uint64_t index, const float* latents, float* shown, uint64_t count) {
  return guarded([&] {
    const auto schedule = schedule_of(handle);
    check_index(*schedule, index);
    if (count == 0) return;
    std::lock_guard<std::mutex> hold(schedule->lock);
    schedule->trajectory.resize(count);
    schedule->trajectory.shown(schedule->workers, index, &required(latents, "latents"), &required(shown, "shown"));
  });
}

vditc_status vditc_schedule_step(vditc_schedule* handle, uint64_t index, const float* prediction, const float* latents, const float* noise,
                                 float* after, uint64_t count) {
  return guarded([&] {
    const auto schedule = schedule_of(handle);
    check_index(*schedule, index);
    if (count == 0) return;
    std::lock_guard<std::mutex> hold(schedule->lock);
    schedule->trajectory.resize(count);
    schedule->trajectory.step(schedule->workers, index, &required(prediction, "prediction"), &required(latents, "latents"), noise,
                              &required(after, "after"));
  });
}

vditc_status vditc_session_options_init(vditc_session_options* options, size_t struct_size) {
  return guarded([&] { initialised(options, struct_size, session_defaults(), sizeof *options, "vditc_session_options"); });
}

vditc_status vditc_session_create(vditc_bundle* bundle, const vditc_session_options* given, vditc_session** session) {
  return guarded([&] {
    required(session, SESSION) = nullptr;
    const auto opened = of_handle<Bundle>(bundle, "bundle");
    const vditc_session_options options = taken(given, session_defaults(), sizeof(vditc_session_options), "vditc_session_options");
    SessionOptions own;
    own.backend = or_empty(options.backend), own.solver = or_empty(options.solver), own.step_cache = or_empty(options.step_cache);
    own.denoiser = taken(options.denoiser, vditc_denoiser{}, sizeof(vditc_denoiser), "vditc_denoiser");
    own.steps = options.steps, own.passes = options.passes, own.threads = options.threads, own.device = options.device;
    own.shift = options.shift, own.guidance = options.guidance, own.guidance_2 = options.guidance_2;
    own.embedded_guidance = options.embedded_guidance, own.weight_budget = options.weight_budget;
    *session = new_handle<vditc_session>(std::make_shared<Session>(opened, own));
  });
}

vditc_status vditc_session_destroy(vditc_session* session) {
  return guarded([&] {
    if (session == nullptr) return;
    session_of(session)->close();
    destroy_handle<Session>(session, SESSION);
  });
}

vditc_status vditc_session_sample(vditc_session* handle, vditc_conditioning* conditioning, vditc_progress_fn progress, void* user, float* latents,
                                  uint64_t capacity, uint64_t* needed) {
  return guarded([&] {
    const auto session = session_of(handle);
    const Clips clips = of_handle<Conditioning>(conditioning, "conditioning")->snapshot();
    const uint64_t bytes = Session::latents(clips) * sizeof(float);
    if (needed != nullptr) *needed = bytes;
    if (latents == nullptr || capacity < bytes) {
      throw Error(VDITC_ERROR_SHORT_BUFFER, "latents", text("%llu bytes", static_cast<unsigned long long>(latents ? capacity : 0)),
                  text("%llu bytes", static_cast<unsigned long long>(bytes)), "call again with a larger buffer");
    }
    const auto told = [&](const Done& done) {
      vditc_progress said{};
      said.abi_version = VDITC_ABI_VERSION, said.struct_size = sizeof said;
      said.done = done.steps, said.total = done.total, said.clip = done.clip, said.step = done.step;
      said.latents = done.latents, said.latents_bytes = done.count * sizeof(float);
      return progress(user, &said) == 0;
    };
    session->sample(clips, progress ? OnStep(told) : OnStep(), [&](const std::vector<float>& made) { std::memcpy(latents, made.data(), bytes); });
  });
}

vditc_status vditc_session_cancel(vditc_session* session) {
  return guarded([&] { session_of(session)->cancel(); });
}

vditc_status vditc_session_info_get(vditc_session* session, vditc_session_info* info) {
  return guarded([&] { filled(info, session_of(session)->info(), sizeof(vditc_session_info), "vditc_session_info"); });
}
}
