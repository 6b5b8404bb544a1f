// Handles of the C interface: numbers in a table, not addresses, so that one that was destroyed or never made is told from one that lives.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "status.h"

namespace vditc::internal {

class Object {
 public:
  virtual ~Object() = default;
};

namespace handles {
uintptr_t add(std::shared_ptr<Object> object);
// nullptr: not alive.
std::shared_ptr<Object> find(uintptr_t handle) noexcept;
// Whoever works with the object keeps it alive until it is done. False: not alive.
bool remove(uintptr_t handle);
}  // namespace handles

template <class Opaque>
Opaque* new_handle(std::shared_ptr<Object> object) {
  return reinterpret_cast<Opaque*>(handles::add(std::move(object)));
}

// The object of a handle; Error VDITC_ERROR_HANDLE when there is none of this kind.
template <class T, class Opaque>
std::shared_ptr<T> of_handle(const Opaque* handle, const char* kind) {
  auto found = std::dynamic_pointer_cast<T>(handles::find(reinterpret_cast<uintptr_t>(handle)));
  if (!found) {
    throw Error(VDITC_ERROR_HANDLE, kind, handle == nullptr ? "NULL" : "a handle that was destroyed, or of another kind", std::string("a ") + kind,
                "use a handle between its creation and its destruction");
  }
  return found;
}

template <class T, class Opaque>
void destroy_handle(const Opaque* handle, const char* kind) {
  if (handle == nullptr) return;
  of_handle<T>(handle, kind);
  if (!handles::remove(reinterpret_cast<uintptr_t>(handle))) of_handle<T>(handle, kind);  // another thread was first
}

}  // namespace vditc::internal
