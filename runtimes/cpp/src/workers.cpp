#include "workers.h"

#include <system_error>

namespace vditc::internal {

Workers::Workers(int threads) {
  constexpr size_t USEFUL = 8;  // memory's bandwidth is the limit
  wanted_ = threads > 0 ? static_cast<size_t>(threads) : std::min<size_t>(USEFUL, std::max(1u, std::thread::hardware_concurrency()));
}

Workers::~Workers() {
  {
    std::lock_guard<std::mutex> hold(lock_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& other : others_) other.join();
}

void Workers::prepare(size_t size) {
  const size_t count = std::min(wanted_, size / (2 * BLOCK));
  try {
    while (others_.size() + 1 < count) others_.emplace_back([this, seen = job_] { loop(seen); });
  } catch (const std::system_error&) {
    // no more threads here: those that are there do it
  }
}

void Workers::start(size_t blocks, void* context, Call call) {
  {
    std::lock_guard<std::mutex> hold(lock_);
    call_ = call, context_ = context, blocks_ = blocks;
    busy_ = others_.size();
    next_ = 0;
    ++job_;
  }
  wake_.notify_all();
  for (size_t block; (block = next_++) < blocks;) call(context, block);
  std::unique_lock<std::mutex> hold(lock_);
  finished_.wait(hold, [this] { return busy_ == 0; });
}

void Workers::loop(uint64_t seen) {
  for (;;) {
    Call call;
    void* context;
    size_t blocks;
    {
      std::unique_lock<std::mutex> hold(lock_);
      wake_.wait(hold, [&] { return stop_ || job_ != seen; });
      if (stop_) return;
      seen = job_, call = call_, context = context_, blocks = blocks_;
    }
    for (size_t block; (block = next_++) < blocks;) call(context, block);
    std::lock_guard<std::mutex> hold(lock_);
    if (--busy_ == 0) finished_.notify_one();
  }
}

}  // namespace vditc::internal
