// A host in C++17: a bundle and a saved conditioning, or a prompt, in; videos or latents out. The same as c_host, with the wrapper, and with a
// thread that cancels.
//
//   cpp_host BUNDLE CONDITIONING -o OUT.y4m|FOLDER/|OUT.safetensors [--backend null|TARGET] [--seed N] [--steps N] [--force]
//   cpp_host BUNDLE --prompt TEXT -o OUT [--negative TEXT] [--size FxHxW] [...]
//   cpp_host BUNDLE --list
//
// Ctrl-C ends it after the step or chunk at work, with nothing written. Exits with 0, 1 (the library's message), 2 (usage) or 130 (Ctrl-C).
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "command_line.hpp"
#include "prompts.hpp"
#include "video_file.h"
#include "vditc/vditc.hpp"

namespace {

const std::string USAGE = std::string(
    "usage: cpp_host BUNDLE CONDITIONING -o OUT [options]\n"
    "       cpp_host BUNDLE --prompt TEXT -o OUT [options]\n"
    "       cpp_host BUNDLE --list\n"
    "  -o, --out OUT     CLIP.y4m, or a new FOLDER/ for pictures 0001.png, ...; of several clips, -1, -2, ... stands behind the name;\n"
    "                    or LATENTS.safetensors, float32 [clips, channels, frames, height, width]\n"
    "  --backend NAME    null, or a target of the bundle [default: the engine for this GPU]\n"
    "  --seed N          of the first clip's noise, one more for each further clip [default: those of the conditioning]\n"
    "  --steps N         sampling steps [default: the bundle's]\n"
    "  --force           replace what is there\n"
    "  --list            what is in the bundle\n") + PROMPT_USAGE;

struct Asked {
  std::string bundle, conditioning, out, backend;
  Prompt prompt;
  uint64_t seed = 0;
  int32_t steps = 0;
  bool has_seed = false, force = false, list = false;
  bool latents() const {
    const std::string ending = ".safetensors";
    return out.size() > ending.size() && out.compare(out.size() - ending.size(), ending.size(), ending) == 0;
  }
};

Asked parse(const std::vector<std::string>& words) {
  Asked asked;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == words.size()) throw Usage(word, "a value behind it");
      return words[++i];
    };
    if (word == "--list") asked.list = true;
    else if (word == "--force") asked.force = true;
    else if (std::string* told = asked.prompt.option(word)) *told = value();
    else if (word == "-o" || word == "--out") asked.out = value();
    else if (word == "--backend") asked.backend = value();
    else if (word == "--seed") asked.seed = whole_number("--seed", value(), 0, INT64_MAX), asked.has_seed = true;
    else if (word == "--steps") asked.steps = static_cast<int32_t>(whole_number("--steps", value(), 1, 100000));
    else if (!word.empty() && word[0] == '-') throw Usage("option " + word, "one of these");
    else if (asked.bundle.empty()) asked.bundle = word;
    else if (asked.conditioning.empty()) asked.conditioning = word;
    else throw Usage("argument " + word, "a bundle and a conditioning");
  }
  if (asked.bundle.empty()) throw Usage("no bundle", "the folder that `vditc compile` wrote");
  if (asked.list) {
    if (!asked.conditioning.empty() || !asked.out.empty() || asked.prompt.given) throw Usage("--list with something to sample", "a bundle alone");
    return asked;
  }
  const Prompt& prompt = asked.prompt;
  if (asked.conditioning.empty() && !prompt.given) throw Usage("no conditioning", "a file that vditc.conditioning saved, or --prompt");
  if (!asked.conditioning.empty() && (prompt.given || !prompt.negative.empty() || !prompt.size.empty())) throw Usage("a conditioning with a prompt", "one of them");
  if (!prompt.size_fits()) throw Usage("--size " + prompt.size, "frames, height and width of the latents, as 21x60x104");
  if (asked.out.empty()) throw Usage("no --out", "a file or folder for the clips");
  if (!asked.latents() && !video_file_knows(asked.out.c_str())) {
    throw Usage("--out " + asked.out, "a name that ends in .safetensors, " VIDEO_FILE_ENDINGS);
  }
  if (asked.latents() && !asked.force && access(asked.out.c_str(), F_OK) == 0) throw Usage("--out " + asked.out, "a new file, or --force");
  return asked;
}

void list(const vditc::Bundle& bundle) {
  const vditc_bundle_info about = bundle.info();
  std::printf("model    %s, recipe %s, %.2f bits a weight, by vditc %s\n", about.model_class, about.recipe, about.mean_bits, about.made_by);
  std::printf("sampling %d steps, guidance %g, latents", about.steps, about.guidance_scale);
  for (int i = 0; i < 4; ++i) std::printf("%s%lld", i ? " x " : " ", static_cast<long long>(about.latent_shape[i]));
  std::printf(", experts %llu\n", static_cast<unsigned long long>(about.experts + 1));
  std::printf("video    %d frames a second, %s\n", about.fps, about.decodes ? "with a decoder" : "without a decoder");
  for (uint64_t i = 0; i < about.inputs; ++i) {
    const vditc_input_info input = bundle.input(i);
    std::string dims;
    for (uint32_t axis = 0; axis < input.rank; ++axis) {
      dims += (axis ? ", " : "") + (input.axes[axis] ? std::string(input.axes[axis]) : std::to_string(input.dims[axis]));
    }
    std::printf("input    %s [%s]\n", input.name, dims.c_str());
  }
  for (uint64_t i = 0; i < about.targets; ++i) {
    const vditc_target_info target = bundle.target(i);
    std::printf("target   %s: %s %s, %s, %s\n", target.name, target.backend, target.version, target.arch, target.status);
  }
  for (uint64_t i = 0; i < about.files; ++i) {
    const vditc_file_info file = bundle.file(i);
    std::printf("file     %s, %llu bytes\n", file.name, static_cast<unsigned long long>(file.bytes));
  }
}

// Waits for Ctrl-C and cancels the session, as long as it lives.
class Interrupts {
 public:
  Interrupts(vditc::Session& session, const sigset_t& signals) {
    thread_ = std::thread([this, &session, signals] {
      const timespec pause{0, 50'000'000};
      while (!done_) {
        if (sigtimedwait(&signals, nullptr, &pause) != SIGINT) continue;
        pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);  // a second Ctrl-C ends the process
        vditc_session_cancel(session.get());
        while (!done_) nanosleep(&pause, nullptr);  // this thread has to live to be the one that the second ends
      }
    });
  }
  ~Interrupts() {
    done_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

// What was not published is gone with it.
struct VideoFile {
  video_file file{};
  VideoFile() = default;
  VideoFile(const VideoFile&) = delete;
  ~VideoFile() { video_file_discard(&file); }
};

void written(int error, const std::string& out) {
  if (error == ENOMEM) throw std::bad_alloc();
  if (error != 0) throw std::system_error(error, std::generic_category(), out);
}

// Whether all clips can be written where they are to go: asked before they are sampled.
void check_video(const Asked& asked, uint64_t clips) {
  for (uint64_t i = 0; i < clips; ++i) {
    const int error = video_file_blocked(asked.out.c_str(), i, clips, asked.force);
    if (error == EEXIST) throw Usage("--out " + asked.out, "new files, or --force; a folder that is not there yet");
    written(error, asked.out);
  }
}

// All clips are decoded before the first file gets its name, and each is whole.
void write_video(vditc::Session& session, const Asked& asked, const std::vector<float>& latents, const std::array<int64_t, 4>& shape,
                 uint64_t clips, int32_t fps) {
  const auto [frames, height, width] = session.frames(shape);
  const bool terminal = isatty(2);
  std::vector<VideoFile> videos(clips);
  for (uint64_t i = 0; i < clips; ++i) {
    video_file& video = videos[i].file;
    written(video_file_open(&video, asked.out.c_str(), i, clips, width, height, fps), asked.out);
    session.decode(latents.data() + i * (latents.size() / clips), shape, [&](const vditc_frames& now) {
      const uint64_t done = now.first + now.count;
      std::fprintf(stderr, "%sclip %llu/%llu, frame %llu/%llu%s", terminal ? "\r" : "", static_cast<unsigned long long>(i + 1),
                   static_cast<unsigned long long>(clips), static_cast<unsigned long long>(done), static_cast<unsigned long long>(now.total),
                   terminal && done < now.total ? "" : "\n");
      written(video_file_add(&video, now.pixels, now.count), asked.out);
      return true;
    });
    written(video_file_finish(&video), asked.out);
  }
  for (VideoFile& video : videos) {
    written(video_file_publish(&video.file), asked.out);
    std::printf("%s: %llu frames of %llu x %llu, %d a second\n", video.file.path, static_cast<unsigned long long>(frames),
                static_cast<unsigned long long>(width), static_cast<unsigned long long>(height), fps);
  }
}

void sample(const vditc::Bundle& bundle, const Asked& asked) {
  const sigset_t signals = block_interrupts();  // before the session makes threads
  vditc::Conditioning conditioning = asked.prompt.given ? asked.prompt.clip(bundle) : vditc::Conditioning(asked.conditioning);
  const uint64_t clips = conditioning.clips();
  if (asked.has_seed) set_seeds(conditioning, asked.seed);
  vditc::SessionOptions options;
  options.backend(asked.backend).steps(asked.steps);
  vditc::Session session(bundle, options);
  const int32_t steps = session.info().steps;
  const Interrupts interrupts(session, signals);
  if (asked.prompt.given) session.encode({asked.prompt.text}, conditioning, {asked.prompt.negative});
  const bool terminal = isatty(2);
  const auto shape = conditioning.latent_shape();
  if (!asked.latents()) {
    session.frames(shape);  // Error where they cannot be decoded
    check_video(asked, clips);
  }
  const std::vector<float> latents = session.sample(conditioning, [&](const vditc_progress& now) {
    std::fprintf(stderr, "%sclip %llu/%llu, step %llu/%d%s", terminal ? "\r" : "", static_cast<unsigned long long>(now.clip + 1),
                 static_cast<unsigned long long>(clips), static_cast<unsigned long long>(now.step + 1), steps,
                 terminal && now.done < now.total ? "" : "\n");
    return true;
  });
  if (!asked.latents()) return write_video(session, asked, latents, shape, clips, bundle.info().fps);
  vditc_tensor made = vditc::tensor(latents.data(), {static_cast<int64_t>(clips), shape[0], shape[1], shape[2], shape[3]});
  made.name = "latents";
  vditc::Tensors::write(asked.out, {made});
  std::printf("%s: latents", asked.out.c_str());
  for (uint32_t i = 0; i < made.rank; ++i) std::printf("%s%lld", i ? " x " : " ", static_cast<long long>(made.shape[i]));
  std::printf("\n");
}

}  // namespace

int main(int count, char** words) {
  try {
    const Asked asked = parse({words + std::min(count, 1), words + count});
    const vditc::Bundle bundle(asked.bundle);
    if (asked.list) {
      list(bundle);
      return 0;
    }
    sample(bundle, asked);
    return 0;
  } catch (const Usage& wrong) {
    std::fprintf(stderr, "cpp_host: %s\n%s", wrong.what(), USAGE.c_str());
    return 2;
  } catch (const vditc::Error& error) {
    if (error.cancelled()) {
      std::fprintf(stderr, "\ncpp_host: stopped, nothing was written\n");
      return 130;
    }
    std::fprintf(stderr, "cpp_host: %s\n", error.what());
  } catch (const std::system_error& error) {
    std::fprintf(stderr, "cpp_host: %s\n", error.what());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "cpp_host: no memory for the clips\n");
  }
  return 1;
}
