#include "native/emulator.h"

#include <ucontext.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace vditc {
namespace {

constexpr size_t STACK = 128 << 10;
constexpr int LANES = 32;

struct Meeting {
  int arrived = 0;
  unsigned number = 0;
};

struct Warp {
  Meeting meeting;
  alignas(16) unsigned char exchange[2][LANES * 32];
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
  const char* waits = nullptr;
  bool done = false;
};

struct Block {
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  Meeting meeting;
  ucontext_t scheduler;
  int current = 0;
  bool moved = false;  // whether any fibre got on since the scheduler last looked
  unsigned char* shared = nullptr;
  const std::function<void(unsigned char*)>* thread = nullptr;
};

thread_local Block* block = nullptr;

void start() {
  (*block->thread)(block->shared);
  block->fibres[block->current].done = true;
  block->moved = true;
}

void meet(Meeting& meeting, int all, const char* what) {
  const unsigned number = meeting.number;
  block->moved = true;
  if (++meeting.arrived == all) {
    meeting.arrived = 0;
    ++meeting.number;
    return;
  }
  const int self = block->current;
  Fibre& fibre = block->fibres[self];
  fibre.waits = what;
  while (meeting.number == number) swapcontext(&fibre.context, &block->scheduler);
  fibre.waits = nullptr;
  block->moved = true;
}

Warp& warp() { return block->warps[block->current / LANES]; }

void resume(int thread) {
  block->current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  swapcontext(&block->scheduler, &block->fibres[thread].context);
}

void run_block(int threads) {
  for (int i = 0; i < threads; ++i) {
    Fibre& fibre = block->fibres[i];
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = &block->scheduler;
    fibre.done = false;
    makecontext(&fibre.context, start, 0);
  }
  for (bool left = true; left;) {
    left = block->moved = false;
    for (int i = 0; i < threads; ++i) {
      if (block->fibres[i].done) continue;
      resume(i);
      left = left || !block->fibres[i].done;
    }
    if (left && !block->moved) {
      for (const Fibre& fibre : block->fibres)
        if (fibre.waits) throw std::runtime_error(std::string("threads wait forever at ") + fibre.waits);
    }
  }
}

}  // namespace

namespace emulator {

void run(dim3 grid, int threads, size_t shared, const std::function<void(unsigned char*)>& thread) {
  Block work;
  work.fibres.resize(threads);
  work.warps.resize((threads + LANES - 1) / LANES);
  std::vector<unsigned char> bytes(shared + 128);
  const auto address = reinterpret_cast<uintptr_t>(bytes.data());
  work.shared = bytes.data() + ((128 - address % 128) % 128);
  work.thread = &thread;
  block = &work;
  gridDim = grid;
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        std::memset(work.shared, 0xa5, shared);  // nobody may count on zeros
        run_block(threads);
      }
  block = nullptr;
}

void meet_block(const char* what) { meet(block->meeting, static_cast<int>(blockDim.x), what); }
void meet_warp(const char* what) { meet(warp().meeting, LANES, what); }
unsigned char* exchange() { return warp().exchange[warp().meeting.number & 1]; }
int lane() { return block->current % LANES; }

}  // namespace emulator
}  // namespace vditc
