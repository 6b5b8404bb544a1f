// Clips into a GStreamer pipeline: a bundle and a saved conditioning in, RGB frames out of an appsrc, as the decoder makes them.
//
//   gstreamer_appsrc BUNDLE CONDITIONING [--backend null|TARGET] [--seed N] [--steps N] [PIPELINE]
//
// PIPELINE is what gst-launch-1.0 takes, in one word or several, with an appsrc named `source`. Clips follow each other in one stream. The
// decoder waits where the pipeline takes no more. Ctrl-C stops both. Exits with 0, 1 (the library's or the pipeline's message), 2 (usage) or
// 130 (Ctrl-C).
#include <gst/app/gstappsrc.h>
#include <gst/gst.h>
#include <gst/video/video.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "command_line.hpp"
#include "vditc/vditc.hpp"

namespace {

constexpr const char* SOURCE = "source";
constexpr const char* PIPELINE = "appsrc name=source ! videoconvert ! autovideosink";
constexpr uint64_t WAITING = 4;  // frames that may wait for the pipeline
constexpr const char* USAGE =
    "usage: gstreamer_appsrc BUNDLE CONDITIONING [options] [PIPELINE]\n"
    "  --backend NAME    null, or a target of the bundle [default: the engine for this GPU]\n"
    "  --seed N          of the first clip's noise, one more for each further clip [default: those of the conditioning]\n"
    "  --steps N         sampling steps [default: the bundle's]\n"
    "  PIPELINE          as gst-launch-1.0 takes it, behind an appsrc named source [default: appsrc name=source ! videoconvert ! autovideosink]\n";

struct PipelineError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Stopped {};  // by Ctrl-C

struct Asked {
  std::string bundle, conditioning, backend, pipeline;
  uint64_t seed = 0;
  int32_t steps = 0;
  bool has_seed = false;
};

Asked parse(const std::vector<std::string>& words) {
  Asked asked;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == words.size()) throw Usage(word, "a value behind it");
      return words[++i];
    };
    if (!asked.pipeline.empty()) asked.pipeline += " " + word;  // all that follows its first word
    else if (word == "--backend") asked.backend = value();
    else if (word == "--seed") asked.seed = whole_number("--seed", value(), 0, INT64_MAX), asked.has_seed = true;
    else if (word == "--steps") asked.steps = static_cast<int32_t>(whole_number("--steps", value(), 1, 100000));
    else if (!word.empty() && word[0] == '-') throw Usage("option " + word, "one of these");
    else if (asked.bundle.empty()) asked.bundle = word;
    else if (asked.conditioning.empty()) asked.conditioning = word;
    else asked.pipeline = word;
  }
  if (asked.bundle.empty()) throw Usage("no bundle", "the folder that `vditc compile` wrote");
  if (asked.conditioning.empty()) throw Usage("no conditioning", "a file that vditc.conditioning saved");
  if (asked.pipeline.empty()) asked.pipeline = PIPELINE;
  return asked;
}

struct Unref {
  void operator()(void* object) const { gst_object_unref(object); }
};
template <class T>
using Held = std::unique_ptr<T, Unref>;

std::string taken(GError* error) {
  const std::string text = error == nullptr ? "no reason given" : error->message;
  if (error != nullptr) g_error_free(error);
  return text;
}

// A pipeline that plays frames of one size.
class Player {
 public:
  explicit Player(const std::string& text) {
    GError* error = nullptr;
    pipeline_.reset(gst_parse_launch_full(text.c_str(), nullptr, GST_PARSE_FLAG_FATAL_ERRORS, &error));
    if (!pipeline_) throw Usage("pipeline `" + text + "`: " + taken(error), "what gst-launch-1.0 takes");
    if (!GST_IS_BIN(pipeline_.get())) throw Usage("pipeline `" + text + "`, one element", "an appsrc and a sink behind it");
    source_.reset(gst_bin_get_by_name(GST_BIN(pipeline_.get()), SOURCE));
    if (!source_ || !GST_IS_APP_SRC(source_.get())) throw Usage("pipeline `" + text + "`", "an element `appsrc name=source` in it");
    bus_.reset(gst_element_get_bus(pipeline_.get()));
  }
  ~Player() { stop(); }

  // PipelineError where the pipeline does not begin, as with a sink that cannot open its file.
  void play(uint64_t width, uint64_t height, int32_t fps) {
    if (width > INT32_MAX || height > INT32_MAX || !gst_video_info_set_format(&video_, GST_VIDEO_FORMAT_RGB, static_cast<guint>(width), static_cast<guint>(height))) {
      throw PipelineError("frames of " + std::to_string(width) + " x " + std::to_string(height) + " are too large for GStreamer");
    }
    video_.fps_n = fps, video_.fps_d = 1;
    GstCaps* caps = gst_video_info_to_caps(&video_);
    const guint64 bytes = WAITING * video_.size;
    g_object_set(source_.get(), "caps", caps, "format", GST_FORMAT_TIME, "block", TRUE, "max-bytes", bytes, nullptr);
    gst_caps_unref(caps);
    if (gst_element_set_state(pipeline_.get(), GST_STATE_PLAYING) == GST_STATE_CHANGE_FAILURE) {
      GstMessage* message = gst_bus_timed_pop_filtered(bus_.get(), GST_SECOND, GST_MESSAGE_ERROR);
      throw PipelineError(message == nullptr ? "the pipeline does not start" : told(message));
    }
  }

  // Waits while the pipeline has no room. False when it was stopped.
  bool push(const uint8_t* pixels) {
    GstBuffer* buffer = gst_buffer_new_allocate(nullptr, video_.size, nullptr);
    GstMapInfo map;
    if (buffer == nullptr || !gst_buffer_map(buffer, &map, GST_MAP_WRITE)) throw std::bad_alloc();
    const size_t row = 3 * static_cast<size_t>(video_.width), stride = static_cast<size_t>(GST_VIDEO_INFO_PLANE_STRIDE(&video_, 0));
    std::memset(map.data, 0, map.size);  // rows are padded to four bytes
    for (int y = 0; y < video_.height; ++y) std::memcpy(map.data + static_cast<size_t>(y) * stride, pixels + static_cast<size_t>(y) * row, row);
    gst_buffer_unmap(buffer, &map);
    const auto time = [this](uint64_t frame) { return gst_util_uint64_scale(frame, GST_SECOND, static_cast<guint64>(video_.fps_n)); };
    GST_BUFFER_PTS(buffer) = time(pushed_);
    GST_BUFFER_DURATION(buffer) = time(pushed_ + 1) - time(pushed_);
    ++pushed_;
    return gst_app_src_push_buffer(GST_APP_SRC(source_.get()), buffer) == GST_FLOW_OK;
  }
  void finish() { gst_app_src_end_of_stream(GST_APP_SRC(source_.get())); }

  // Whoever pushes goes on, and is told so. From any thread.
  void stop() { gst_element_set_state(pipeline_.get(), GST_STATE_NULL); }

  // Within `pause`; nullptr when nothing was said. `ended`: all frames were played.
  std::unique_ptr<std::string> error_within(GstClockTime pause, bool& ended) {
    GstMessage* message = gst_bus_timed_pop_filtered(bus_.get(), pause, static_cast<GstMessageType>(GST_MESSAGE_ERROR | GST_MESSAGE_EOS));
    if (message == nullptr) return nullptr;
    if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_EOS) {
      gst_message_unref(message);
      ended = true;
      return nullptr;
    }
    return std::make_unique<std::string>(told(message));
  }

 private:
  static std::string told(GstMessage* message) {
    GError* error = nullptr;
    gst_message_parse_error(message, &error, nullptr);
    const std::string from = GST_MESSAGE_SRC_NAME(message);
    gst_message_unref(message);
    return from + ": " + taken(error);
  }

  Held<GstElement> pipeline_, source_;
  Held<GstBus> bus_;
  GstVideoInfo video_{};
  uint64_t pushed_ = 0;
};

// Waits for Ctrl-C and for what the pipeline says, and stops session and pipeline.
class Watcher {
 public:
  Watcher(vditc::Session& session, Player& player, const sigset_t& signals) {
    thread_ = std::thread([this, &session, &player, signals] { watch(session, player, signals); });
  }
  ~Watcher() { join(); }

  // Until all frames were played, or something has stopped them.
  void wait() {
    while (!over_) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    join();
    check();
  }
  // PipelineError or Stopped for what came so far.
  void check() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_) throw PipelineError(*error_);
    if (interrupted_) throw Stopped();
  }

 private:
  void watch(vditc::Session& session, Player& player, const sigset_t& signals) {
    const timespec none{0, 0};
    bool ended = false;
    while (!done_) {
      const bool interrupted = sigtimedwait(&signals, nullptr, &none) == SIGINT;
      std::unique_ptr<std::string> error = interrupted ? nullptr : player.error_within(20 * GST_MSECOND, ended);
      if (!interrupted && !error && !ended) continue;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        interrupted_ = interrupted, error_ = std::move(error);
      }
      if (ended) {
        player.stop();  // a sink that wants no more leaves whoever pushes waiting
        break;
      }
      pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);  // a second Ctrl-C ends the process
      vditc_session_cancel(session.get());
      player.stop();
      break;
    }
    over_ = true;
    const timespec pause{0, 20'000'000};
    while (!done_) nanosleep(&pause, nullptr);  // this thread has to live to be the one that a second Ctrl-C ends
  }
  void join() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
  }

  std::mutex mutex_;
  std::unique_ptr<std::string> error_;
  bool interrupted_ = false;
  std::atomic<bool> done_{false}, over_{false};
  std::thread thread_;
};

void count(const char* what, uint64_t clip, uint64_t clips, uint64_t done, uint64_t total) {
  static const bool terminal = isatty(2);
  std::fprintf(stderr, "%sclip %llu/%llu, %s %llu/%llu%s", terminal ? "\r" : "", static_cast<unsigned long long>(clip + 1),
               static_cast<unsigned long long>(clips), what, static_cast<unsigned long long>(done), static_cast<unsigned long long>(total),
               terminal && done < total ? "" : "\n");
}

void play(const Asked& asked) {
  const sigset_t signals = block_interrupts();  // before session and pipeline make threads
  Player player(asked.pipeline);
  const vditc::Bundle bundle(asked.bundle);
  vditc::Conditioning conditioning(asked.conditioning);
  const uint64_t clips = conditioning.clips();
  if (asked.has_seed) set_seeds(conditioning, asked.seed);
  vditc::SessionOptions options;
  options.backend(asked.backend).steps(asked.steps);
  vditc::Session session(bundle, options);
  const auto shape = conditioning.latent_shape();
  const auto [frames, height, width] = session.frames(shape);  // Error where they cannot be decoded
  player.play(width, height, bundle.info().fps);
  Watcher watcher(session, player, signals);
  try {
    const uint64_t steps = static_cast<uint64_t>(session.info().steps);
    const std::vector<float> latents = session.sample(conditioning, [&](const vditc_progress& now) {
      count("step", now.clip, clips, now.step + 1, steps);
      return true;
    });
    for (uint64_t i = 0; i < clips; ++i) {
      session.decode(latents.data() + i * (latents.size() / clips), shape, [&](const vditc_frames& now) {
        const size_t size = static_cast<size_t>(now.bytes / now.count);
        for (uint64_t frame = 0; frame < now.count; ++frame) {
          if (!player.push(now.pixels + frame * size)) return false;
        }
        count("frame", i, clips, now.first + now.count, now.total);
        return true;
      });
    }
  } catch (const vditc::Error& error) {
    if (!error.cancelled()) throw;
    watcher.wait();  // who stopped it says why
    throw PipelineError("it ended before the last frame");
  }
  player.finish();
  watcher.wait();
  std::printf("%llu frames of %llu x %llu, %d a second\n", static_cast<unsigned long long>(frames * clips), static_cast<unsigned long long>(width),
              static_cast<unsigned long long>(height), bundle.info().fps);
}

}  // namespace

int main(int argc, char** argv) {
  gst_init(nullptr, nullptr);
  try {
    play(parse({argv + std::min(argc, 1), argv + argc}));
    return 0;
  } catch (const Usage& wrong) {
    std::fprintf(stderr, "gstreamer_appsrc: %s\n%s", wrong.what(), USAGE);
    return 2;
  } catch (const Stopped&) {
    std::fprintf(stderr, "\ngstreamer_appsrc: stopped\n");
    return 130;
  } catch (const PipelineError& error) {
    std::fprintf(stderr, "gstreamer_appsrc: pipeline: %s\n", error.what());
  } catch (const vditc::Error& error) {
    std::fprintf(stderr, "gstreamer_appsrc: %s\n", error.what());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "gstreamer_appsrc: no memory for the clips\n");
  }
  return 1;
}
