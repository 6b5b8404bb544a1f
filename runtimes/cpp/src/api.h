// What the functions of the C interface share: exceptions become statuses, structures of other versions are read and written in part.
#pragma once
#include <cstring>
#include <new>
#include <string>

#include "handles.h"
#include "status.h"

namespace vditc::internal {

template <class Work>
vditc_status guarded(Work work) noexcept {
  try {
    work();
    return VDITC_OK;
  } catch (const Error& error) {
    set_last_error(error.what());
    return error.status;
  } catch (const std::bad_alloc&) {
    set_last_error("memory: found none left; wanted some of the host's memory; free some, or sample smaller clips");
    return VDITC_ERROR_OUT_OF_MEMORY;
  } catch (const std::length_error&) {
    set_last_error("memory: found a size beyond all memory; wanted a smaller one; sample smaller clips");
    return VDITC_ERROR_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    set_last_error(error.what());
    return VDITC_ERROR_INTERNAL;
  } catch (...) {
    set_last_error("libvditc: found an exception of no known type; wanted none; report it");
    return VDITC_ERROR_INTERNAL;
  }
}

template <class T>
T& required(T* pointer, const char* what) {
  if (pointer == nullptr) throw Error(VDITC_ERROR_ARGUMENT, what, "NULL", "a pointer", "correct the call");
  return *pointer;
}

void check_version(uint32_t abi_version, size_t struct_size, size_t least, const char* what);

// A caller's structure of any version as this one's; `least`: its size when it was published. What the caller's header has not keeps `made`'s values.
template <class T>
T taken(const T* given, T made, size_t least, const char* what) {
  if (given == nullptr) return made;
  check_version(given->abi_version, given->struct_size, least, what);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(T); i < given->struct_size; ++i) {
    if (bytes[i] != 0) {
      throw Error(VDITC_ERROR_VERSION, what, "fields that this library does not know", text("at most %zu bytes", sizeof(T)), "use a newer libvditc");
    }
  }
  std::memcpy(&made, given, std::min<size_t>(given->struct_size, sizeof(T)));
  return made;
}

// Into a caller's structure of any version, whose head stays.
template <class T>
void filled(T* to, const T& made, size_t least, const char* what) {
  required(to, what);
  check_version(to->abi_version, to->struct_size, least, what);
  constexpr size_t HEAD = 2 * sizeof(uint32_t);
  const size_t size = std::min<size_t>(to->struct_size, sizeof(T));
  std::memcpy(reinterpret_cast<char*>(to) + HEAD, reinterpret_cast<const char*>(&made) + HEAD, size - HEAD);
}

// Of NAME_init: `defaults` for a caller whose header has `size` bytes of it.
template <class T>
void initialised(T* to, size_t size, T defaults, size_t least, const char* what) {
  required(to, what);
  defaults.abi_version = VDITC_ABI_VERSION;
  defaults.struct_size = static_cast<uint32_t>(size);
  check_version(VDITC_ABI_VERSION, size, least, what);
  std::memset(static_cast<void*>(to), 0, size);
  std::memcpy(static_cast<void*>(to), &defaults, std::min(size, sizeof(T)));
}

// Text with its zero byte into a caller's buffer.
void copy_text(const std::string& from, char* to, size_t capacity, size_t* needed);

}  // namespace vditc::internal
