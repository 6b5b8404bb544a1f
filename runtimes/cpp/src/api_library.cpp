#include "api.h"
#include "random.h"

#ifndef VDITC_VERSION
#error "the build says the version"
#endif

namespace vditc::internal {

void check_version(uint32_t abi_version, size_t struct_size, size_t least, const char* what) {
  if (abi_version == VDITC_ABI_VERSION && struct_size >= least && struct_size <= 1 << 16) return;
  throw Error(VDITC_ERROR_VERSION, what, text("abi_version %u, struct_size %zu", abi_version, struct_size),
              text("abi_version %u, struct_size %zu or more", VDITC_ABI_VERSION, least),
              "call its _init function, or set both, and use the header of this libvditc or an older one");
}

void copy_text(const std::string& from, char* to, size_t capacity, size_t* needed) {
  const size_t size = from.size() + 1;
  if (needed != nullptr) *needed = size;
  if (capacity < size || to == nullptr) {
    throw Error(VDITC_ERROR_SHORT_BUFFER, "buffer", text("%zu bytes", to ? capacity : 0), text("%zu bytes", size), "call again with a larger one");
  }
  std::memcpy(to, from.c_str(), size);
}

}  // namespace vditc::internal

using namespace vditc::internal;

extern "C" {

uint32_t vditc_abi_version(void) { return VDITC_ABI_VERSION; }

const char* vditc_version(void) { return VDITC_VERSION; }

const char* vditc_status_name(vditc_status status) {
  switch (status) {
#define NAMED(name) \
  case name: return #name;
    NAMED(VDITC_OK)
    NAMED(VDITC_ERROR_ARGUMENT)
    NAMED(VDITC_ERROR_HANDLE)
    NAMED(VDITC_ERROR_VERSION)
    NAMED(VDITC_ERROR_SHORT_BUFFER)
    NAMED(VDITC_ERROR_NOT_FOUND)
    NAMED(VDITC_ERROR_DAMAGED)
    NAMED(VDITC_ERROR_SCHEMA)
    NAMED(VDITC_ERROR_PATH)
    NAMED(VDITC_ERROR_INPUT)
    NAMED(VDITC_ERROR_UNSUPPORTED)
    NAMED(VDITC_ERROR_IO)
    NAMED(VDITC_ERROR_OUT_OF_MEMORY)
    NAMED(VDITC_ERROR_NO_DEVICE)
    NAMED(VDITC_ERROR_DEVICE_MEMORY)
    NAMED(VDITC_ERROR_ENGINE)
    NAMED(VDITC_ERROR_PLUGIN)
    NAMED(VDITC_ERROR_BUSY)
    NAMED(VDITC_ERROR_CALLBACK)
    NAMED(VDITC_CANCELLED)
    NAMED(VDITC_ERROR_INTERNAL)
#undef NAMED
    default: return "unknown status";
  }
}

const char* vditc_last_error(void) { return last_error(); }

vditc_status vditc_set_log(vditc_log_fn log, void* user, int32_t level) {
  return guarded([&] { set_log(log, user, level); });
}

vditc_status vditc_noise(uint64_t seed, float* noise, uint64_t count) {
  return guarded([&] { Random({seed}).normal(count ? &required(noise, "noise") : nullptr, count); });
}
}
