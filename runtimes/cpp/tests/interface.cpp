// The C++17 wrapper: handles that destroy themselves, exceptions, threads. Arguments: a bundle, a conditioning.
#include "vditc/vditc.hpp"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>

#include "check.h"
#include "status_of.h"

int main(int count, char** arguments) {
  CHECK(count == 3);
  vditc::Bundle bundle(arguments[1]);
  uint64_t hashed = 0;
  bundle.verify([&](const vditc_progress& now) { return hashed = now.done, true; });
  CHECK(hashed == bundle.info().bytes && bundle.manifest().size() > 100);
  CHECK(std::strcmp(bundle.input(0).axes[2], "frames") == 0 && std::strcmp(bundle.target(0).name, "rtx-ada") == 0 && bundle.file(0).bytes > 0);
  vditc::Bundle moved = std::move(bundle);
  CHECK(bundle.get() == nullptr && status_of([&] { bundle.info(); }) == VDITC_ERROR_HANDLE);

  const vditc::Conditioning saved(arguments[2]);
  vditc::Session session(moved, vditc::SessionOptions().backend("null").passes(VDITC_PASSES_TWO).step_cache("30%"));
  const std::vector<float> latents = session.sample(saved);
  CHECK(session.info().passes == VDITC_PASSES_TWO && session.info().runs_skipped > 0);
  CHECK(status_of([&] { session.sample(saved, [](const vditc_progress&) { return false; }); }) == VDITC_CANCELLED);
  bool own = false;
  try {
    session.sample(saved, [](const vditc_progress&) -> bool { throw std::logic_error("the host's own"); });
  } catch (const std::logic_error& error) {
    own = std::strcmp(error.what(), "the host's own") == 0;
  }
  CHECK(own);

  // Frames of the first clip: chunk by chunk, and at once.
  const std::array<uint64_t, 3> size = session.frames(saved.latent_shape());
  const std::vector<uint8_t> pixels = session.decode(latents.data(), saved.latent_shape());
  CHECK(moved.info().decodes == 1 && moved.info().fps == 16 && pixels.size() == size[0] * size[1] * size[2] * 3);
  size_t chunks = 0;
  session.decode(latents.data(), saved.latent_shape(), [&](const vditc_frames& now) {
    const size_t frame = pixels.size() / static_cast<size_t>(now.total);
    CHECK(now.bytes == now.count * frame && std::memcmp(now.pixels, pixels.data() + now.first * frame, now.bytes) == 0);
    return ++chunks, true;
  });
  CHECK(chunks == 3 && session.sample(saved) == latents);
  CHECK(status_of([&] { session.decode(latents.data(), saved.latent_shape(), [](const vditc_frames&) { return false; }); }) == VDITC_CANCELLED);
  CHECK(status_of([&] { session.decode(latents.data(), {3, 1, 2, 2}); }) == VDITC_ERROR_INPUT);
  own = false;
  try {
    session.decode(latents.data(), saved.latent_shape(), [](const vditc_frames&) -> bool { throw std::logic_error("the host's own"); });
  } catch (const std::logic_error&) {
    own = true;
  }
  CHECK(own);

  // The same clips by setters, of several sessions side by side, one of them stopped by another thread.
  const vditc::Tensors file(arguments[2]);
  const vditc_tensor text = file["inputs/encoder_hidden_states"], empty = file["empty/encoder_hidden_states"];
  vditc::Conditioning clips(saved.latent_shape(), {7, 8});
  clips.set_input("encoder_hidden_states", text);
  clips.set_empty("encoder_hidden_states", empty);
  std::atomic<int> same{0}, stopped{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      vditc::Session mine(moved, vditc::SessionOptions().backend("null").passes(VDITC_PASSES_TWO).step_cache("30%"));
      for (int again = 0; again < 20; ++again) same += mine.sample(clips) == latents;
    });
  }
  std::thread sampling([&] {
    try {
      for (;;) session.sample(clips);
    } catch (const vditc::Error& error) {
      stopped += error.cancelled();
    }
  });
  session.cancel();
  sampling.join();
  for (std::thread& thread : threads) thread.join();
  CHECK(same == 60 && stopped == 1);

  CHECK(moved.info().encodes == 0 && status_of([&] { moved.tokenize("a kite"); }) == VDITC_ERROR_NOT_FOUND);
  CHECK(status_of([&] { session.encode({"a", "b"}, clips); }) == VDITC_ERROR_NOT_FOUND);
  CHECK(status_of([&] { session.encode({"a", "b"}, clips, {"c"}); }) == VDITC_ERROR_ARGUMENT);

  vditc::Schedule schedule("{\"_class_name\": \"FlowMatchEulerDiscreteScheduler\", \"shift\": 3.0}", vditc::Schedule::options(4));
  CHECK(schedule.steps() == 4 && schedule.timesteps()[0] == 1000.0f && schedule.sigmas()[4] == 0.0f && schedule.start() == 1.0);
  std::vector<float> x = vditc::noise(3, 32), zero(32), before = x;
  schedule.shown(0, x.data(), before.data(), x.size());
  schedule.step(0, zero.data(), x.data(), x.data(), x.size());
  CHECK(x == before);
  CHECK(status_of([] { vditc::Bundle nothing("no-such-bundle"); }) == VDITC_ERROR_NOT_FOUND);
  CHECK(status_of([&] { file["nothing"]; }) == VDITC_ERROR_NOT_FOUND && file.size() == 2 && file.metadata("vditc").find("seeds") != std::string::npos);
  vditc::Tensors::write("x.safetensors", {[&] {
                          vditc_tensor made = vditc::tensor(x.data(), {4, 8});
                          made.name = "x";
                          return made;
                        }()});
  CHECK(std::memcmp(vditc::Tensors("x.safetensors")["x"].data, x.data(), 128) == 0 && std::remove("x.safetensors") == 0);
  return 0;
}
