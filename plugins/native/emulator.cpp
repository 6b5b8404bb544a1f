#include "native/emulator.h"

#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace vditc {
namespace {

constexpr size_t STACK = 128 << 10;
constexpr int LANES = 32;

// A change of stacks. swapcontext enters the kernel at every call, to save a mask of signals that nobody changes here; of what a call of a
// function preserves by the System V ABI, only registers differ between fibres.
#if defined(__x86_64__)
struct Context {
  void* top = nullptr;
};

extern "C" void vditc_emulator_switch(void** from, void* to);
asm(R"(
.text
.hidden vditc_emulator_switch
.globl vditc_emulator_switch
.type vditc_emulator_switch, @function
vditc_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size vditc_emulator_switch, .-vditc_emulator_switch
)");

void change(Context& from, Context& to) { vditc_emulator_switch(&from.top, to.top); }

// `entry` never returns: it changes to another context at its end.
void prepare(Context& context, unsigned char* stack, void (*entry)()) {
  const uintptr_t end = reinterpret_cast<uintptr_t>(stack + STACK) & ~uintptr_t{15};
  auto* top = reinterpret_cast<void**>(end) - 2;  // at its first instruction a function finds its stack 8 off a multiple of 16
  *top = reinterpret_cast<void*>(entry);
  top -= 6;
  std::memset(top, 0, 6 * sizeof(void*));
  context.top = top;
}
#else
struct Context {
  ucontext_t state;
};

void change(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

void prepare(Context& context, unsigned char* stack, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = STACK;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}
#endif

struct Meeting {
  int arrived = 0;
  unsigned number = 0;
};

struct Warp {
  Meeting meeting;
  alignas(16) unsigned char exchange[2][LANES * emulator::SLOT];
};

struct Fibre {
  Context context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
  const char* waits = nullptr;
  bool done = false;
};

struct Block {
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  Meeting meeting;
  Context scheduler;
  int current = 0;
  bool moved = false;  // whether any fibre got on since the scheduler last looked
  unsigned char* shared = nullptr;
  const std::function<void(unsigned char*)>* thread = nullptr;
};

Block* block = nullptr;
std::mutex running;  // threadIdx and its like are one for the process

Warp& warp() { return block->warps[block->current / LANES]; }

void start() {
  (*block->thread)(block->shared);
  Fibre& fibre = block->fibres[block->current];
  fibre.done = block->moved = true;
  change(fibre.context, block->scheduler);
}

void meet(Meeting& meeting, int all, const char* what, void (*compute)(unsigned char*), unsigned char* buffer) {
  const unsigned number = meeting.number;
  block->moved = true;
  if (++meeting.arrived == all) {
    if (compute) compute(buffer);
    meeting.arrived = 0;
    ++meeting.number;
    return;
  }
  Fibre& fibre = block->fibres[block->current];
  fibre.waits = what;
  while (meeting.number == number) change(fibre.context, block->scheduler);
  fibre.waits = nullptr;
  block->moved = true;
}

void resume(int thread) {
  block->current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  change(block->scheduler, block->fibres[thread].context);
}

void run_block(int threads) {
  for (int i = 0; i < threads; ++i) {
    Fibre& fibre = block->fibres[i];
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(fibre.stack.get(), STACK);  // the last block's threads never returned from their frames
#endif
    prepare(fibre.context, fibre.stack.get(), start);
    fibre.done = false;
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
  const std::lock_guard<std::mutex> alone(running);
  Block work;
  work.fibres.resize(threads);
  work.warps.resize((threads + LANES - 1) / LANES);
  struct Aligned {
    void operator()(unsigned char* bytes) const { ::operator delete(bytes, std::align_val_t{128}); }
  };
  // Not a byte more than said, so that -fsanitize=address sees what goes over its end.
  const std::unique_ptr<unsigned char, Aligned> bytes(static_cast<unsigned char*>(::operator new(shared, std::align_val_t{128})));
  work.shared = bytes.get();
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

void meet_block(const char* what) { meet(block->meeting, static_cast<int>(blockDim.x), what, nullptr, nullptr); }
void meet_warp(const char* what) { meet(warp().meeting, LANES, what, nullptr, nullptr); }
void meet_warp(const char* what, void (*compute)(unsigned char*)) { meet(warp().meeting, LANES, what, compute, exchange()); }
unsigned char* exchange() { return warp().exchange[warp().meeting.number & 1]; }
int lane() { return block->current % LANES; }

}  // namespace emulator
}  // namespace vditc
