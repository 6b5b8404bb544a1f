// Large float32 arrays in blocks, on several cores where that is of use. Nothing is allocated by `run`.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

namespace vditc::internal {

class Workers {
 public:
  static constexpr size_t BLOCK = 1 << 15;  // numbers: a few blocks stay in a core's cache

  // 0: as many as are of use. Threads start when there is enough to do for them.
  explicit Workers(int threads);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  // Starts the threads that arrays of `size` numbers want.
  void prepare(size_t size);

  // task(begin, end) for all of [0, size), in blocks; returns when all are done. Tasks throw nothing.
  template <class Task>
  void run(size_t size, Task&& task) {
    if (others_.empty() || size < 4 * BLOCK) {
      for (size_t begin = 0; begin < size; begin += BLOCK) task(begin, std::min(size, begin + BLOCK));
      return;
    }
    struct Job {
      size_t size;
      Task& task;
    } job{size, task};
    start((size + BLOCK - 1) / BLOCK, &job, [](void* context, size_t block) {
      const Job& job = *static_cast<Job*>(context);
      job.task(block * BLOCK, std::min(job.size, (block + 1) * BLOCK));
    });
  }

 private:
  using Call = void (*)(void*, size_t);
  size_t wanted_;
  std::vector<std::thread> others_;
  std::mutex lock_;
  std::condition_variable wake_, finished_;
  Call call_ = nullptr;
  void* context_ = nullptr;
  size_t blocks_ = 0, busy_ = 0;
  uint64_t job_ = 0;
  bool stop_ = false;
  std::atomic<size_t> next_{0};

  void start(size_t blocks, void* context, Call call);
  void loop(uint64_t seen);  // jobs up to `seen` are others'
};

}  // namespace vditc::internal
