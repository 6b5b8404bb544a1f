#include "handles.h"

#include <mutex>
#include <shared_mutex>
#include <vector>

namespace vditc::internal::handles {
namespace {

constexpr int PLACE_BITS = 24;
static_assert(sizeof(uintptr_t) == 8, "a handle is a generation of 40 bits and a place of 24");

struct Slot {
  std::shared_ptr<Object> object;
  uint64_t generation = 1;  // of what is there now, or comes next
};

struct Table {
  std::shared_mutex lock;
  std::vector<Slot> slots;
  std::vector<size_t> free;
};
Table& table() {
  static Table* made = new Table;  // never destroyed: hosts may use handles while the process ends
  return *made;
}

Slot* slot_of(Table& table, uintptr_t handle) {
  const size_t place = handle & ((uintptr_t{1} << PLACE_BITS) - 1);
  if (place >= table.slots.size()) return nullptr;
  Slot& slot = table.slots[place];
  return slot.object && slot.generation == handle >> PLACE_BITS ? &slot : nullptr;
}

}  // namespace

uintptr_t add(std::shared_ptr<Object> object) {
  Table& all = table();
  std::unique_lock<std::shared_mutex> hold(all.lock);
  if (all.free.empty()) {
    if (all.slots.size() >> PLACE_BITS) throw Error(VDITC_ERROR_OUT_OF_MEMORY, "handles", "16777216 handles", "fewer", "destroy some");
    all.slots.emplace_back();
    all.free.reserve(all.slots.size());  // so that remove never needs memory
    all.free.push_back(all.slots.size() - 1);
  }
  const size_t place = all.free.back();
  all.free.pop_back();
  all.slots[place].object = std::move(object);
  return all.slots[place].generation << PLACE_BITS | place;
}

std::shared_ptr<Object> find(uintptr_t handle) noexcept {
  Table& all = table();
  std::shared_lock<std::shared_mutex> hold(all.lock);
  const Slot* slot = slot_of(all, handle);
  return slot ? slot->object : nullptr;
}

bool remove(uintptr_t handle) {
  std::shared_ptr<Object> last;  // destroyed without the lock
  Table& all = table();
  std::unique_lock<std::shared_mutex> hold(all.lock);
  Slot* slot = slot_of(all, handle);
  if (slot == nullptr) return false;
  last = std::move(slot->object);
  slot->object.reset();
  ++slot->generation;
  all.free.push_back(static_cast<size_t>(slot - all.slots.data()));
  hold.unlock();
  return true;
}

}  // namespace vditc::internal::handles
