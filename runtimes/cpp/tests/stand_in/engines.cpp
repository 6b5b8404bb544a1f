// Sessions on engines, for sanitizers: several at once, cancelled, destroyed at work, out of memory. Arguments: a bundle, a conditioning.
// VDITC_CUDA_DRIVER and VDITC_TENSORRT_LIBRARY name the stand-ins.
#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "check.h"
#include "status_of.h"
#include "vditc/vditc.hpp"

int main(int count, char** arguments) {
  CHECK(count == 3);
  void* driver = dlopen(std::getenv("VDITC_CUDA_DRIVER"), RTLD_NOW | RTLD_GLOBAL);
  CHECK(driver != nullptr);
  const auto get = reinterpret_cast<int64_t (*)(const char*)>(dlsym(driver, "stand_in_get"));
  const auto set = reinterpret_cast<void (*)(const char*, int64_t)>(dlsym(driver, "stand_in_set"));
  const vditc::Conditioning clips(arguments[2]);
  std::vector<float> latents;
  {
    const vditc::Bundle bundle(arguments[1]);
    const auto options = [](int passes) { return vditc::SessionOptions().backend("hopper").passes(passes); };
    vditc::Session session(bundle, options(VDITC_PASSES_TWO));
    latents = session.sample(clips);
    CHECK(session.sample(clips) == latents && get("replays") > 0);

    // Side by side, each on a thread of its own.
    std::atomic<int> same{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        vditc::Session mine(bundle, options(VDITC_PASSES_TWO));
        for (int again = 0; again < 5; ++again) same += mine.sample(clips) == latents;
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(same == 15);

    // Stopped by its callback; cancelled and destroyed by other threads.
    CHECK(status_of([&] { session.sample(clips, [](const vditc_progress& now) { return now.done < 3; }); }) == VDITC_CANCELLED);
    CHECK(session.sample(clips) == latents);
    auto gone = std::make_unique<vditc::Session>(bundle, options(VDITC_PASSES_BATCHED));
    vditc_session* handle = gone->get();
    std::atomic<bool> at_work{false};
    std::thread sampling([&] {
      std::vector<float> room(latents.size());
      vditc_status status = VDITC_OK;
      while (status == VDITC_OK) {
        status = vditc_session_sample(handle, clips.get(), [](void* user, const vditc_progress*) { return *static_cast<std::atomic<bool>*>(user) = true, 0; },
                                      &at_work, room.data(), room.size() * sizeof(float), nullptr);
      }
      CHECK(status == VDITC_CANCELLED || status == VDITC_ERROR_HANDLE);
    });
    while (!at_work) std::this_thread::yield();
    gone.reset();
    sampling.join();

    // Whatever allocation fails, nothing is lost.
    const int64_t memory = get("memory");
    for (int64_t room = 0;; room += 3000) {
      set("memory", room);
      vditc::Session poor(bundle, options(VDITC_PASSES_TWO));
      const vditc_status status = status_of([&] { CHECK(poor.sample(clips) == latents); });
      if (status == VDITC_OK) break;
      CHECK(status == VDITC_ERROR_DEVICE_MEMORY);
    }
    set("memory", memory);
    set("arch", 80);
    CHECK(status_of([&] { vditc::Session other(bundle, options(VDITC_PASSES_TWO)); }) == VDITC_ERROR_ENGINE);
  }
  CHECK(get("live") == 0 && get("contexts") == 0 && get("faults") == 0);
  return 0;
}
