#ifdef VDITC_NVRTC
#include "native/driver.h"

#include <dlfcn.h>

#include <cstring>
#include <map>
#include <mutex>

namespace vditc::driver {
namespace {

// Of CUDA's driver API, as of CUDA 12.0. Handles are pointers; results are 0 or an error.
using Context = void*;
using Module = void*;
using Function = void*;
constexpr int MAJOR = 75, MINOR = 76;                  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
constexpr int MAX_DYNAMIC_SHARED = 8;                  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int NO_BINARY_FOR_GPU = 209, NOT_FOUND = 500;  // CUDA_ERROR_...
constexpr int RELAXED = 2;                             // CU_STREAM_CAPTURE_MODE_RELAXED

struct Api {
  int (*init)(unsigned);
  int (*current)(Context*);
  int (*set_current)(Context);
  int (*retain)(Context*, int);
  int (*context_id)(Context, unsigned long long*);
  int (*context_device)(int*);
  int (*attribute)(int*, int, int);
  int (*load)(Module*, const void*);
  int (*function)(Function*, Module, const char*);
  int (*set_attribute)(Function, int, int);
  int (*start)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
  int (*capture_mode)(int*);
  int (*error_text)(int, const char**);
  const char* missing = nullptr;  // what could not be had
};

const Api& api() {
  static const Api found = [] {
    Api made{};
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
      made.missing = "libcuda.so.1";
      return made;
    }
    const auto get = [&](auto& function, const char* name) {
      void* symbol = dlsym(library, name);
      if (!symbol && !made.missing) made.missing = name;
      std::memcpy(&function, &symbol, sizeof symbol);
    };
    get(made.init, "cuInit");
    get(made.current, "cuCtxGetCurrent");
    get(made.set_current, "cuCtxSetCurrent");
    get(made.retain, "cuDevicePrimaryCtxRetain");
    get(made.context_id, "cuCtxGetId");
    get(made.context_device, "cuCtxGetDevice");
    get(made.attribute, "cuDeviceGetAttribute");
    get(made.load, "cuModuleLoadData");
    get(made.function, "cuModuleGetFunction");
    get(made.set_attribute, "cuFuncSetAttribute");
    get(made.start, "cuLaunchKernel");
    get(made.capture_mode, "cuThreadExchangeStreamCaptureMode");
    get(made.error_text, "cuGetErrorString");
    if (!made.missing && made.init(0)) made.missing = "a GPU (cuInit failed)";
    return made;
  }();
  return found;
}

Status fail_driver(int error, const char* where) {
  const char* text = nullptr;
  api().error_text(error, &text);
  return fail(VDITC_CUDA_ERROR, "%s: %s (%d)", where, text ? text : "an unknown error", error);
}

// The thread's context, or the first device's primary one, as the runtime API has it.
Status context(Context* found) {
  if (api().missing) return fail(VDITC_CUDA_ERROR, "CUDA's driver: found no %s; wanted that of CUDA 12.0 or newer", api().missing);
  if (const int error = api().current(found)) return fail_driver(error, "the current context");
  if (*found) return VDITC_OK;
  if (const int error = api().retain(found, 0)) return fail_driver(error, "the context of device 0");
  if (const int error = api().set_current(*found)) return fail_driver(error, "the context of device 0");
  return VDITC_OK;
}

Status capability(int* sm) {
  int device = 0, major = 0, minor = 0;
  int error = api().context_device(&device);
  if (!error) error = api().attribute(&major, MAJOR, device);
  if (!error) error = api().attribute(&minor, MINOR, device);
  if (error) return fail_driver(error, "the current device");
  *sm = 10 * major + minor;
  return VDITC_OK;
}

// Code of the same generation that is not newer than the GPU.
const Image* image_of(int unit, int sm) {
  const Image* best = nullptr;
  for (int i = 0; i < IMAGE_COUNT; ++i) {
    const Image& image = IMAGES[i];
    if (image.unit == unit && image.sm / 10 == sm / 10 && image.sm <= sm && (!best || image.sm > best->sm)) best = &image;
  }
  return best;
}

// As native/capture.h, whose CUDA runtime there is not: modules are loaded at the first launch, functions of them by whatever first needs them.
class Relaxed {
 public:
  Relaxed() { api().capture_mode(&mode_); }
  ~Relaxed() { api().capture_mode(&mode_); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  int mode_ = RELAXED;
};

struct Loaded {
  std::map<int, Module> modules;      // by unit
  std::map<int, Function> functions;  // by entry
};
std::mutex loading;
std::map<unsigned long long, Loaded> loaded;  // by the context's number, which no later one has

Status load(Context where, int entry, Function* out) {
  unsigned long long id = 0;
  if (const int error = api().context_id(where, &id)) return fail_driver(error, "the current context");
  const std::lock_guard<std::mutex> held(loading);
  Loaded& here = loaded[id];
  if (const auto known = here.functions.find(entry); known != here.functions.end()) {
    *out = known->second;
    return VDITC_OK;
  }
  const int unit = ENTRIES[entry].unit;
  if (!here.modules.count(unit)) {
    int sm = 0;
    VDITC_TRY(capability(&sm));
    const Image* image = image_of(unit, sm);
    if (!image) return fail(VDITC_NO_KERNEL, "launch of a kernel: the library has no code for this GPU (sm_%d)", sm);
    Module module = nullptr;
    const int error = api().load(&module, image->data);
    if (error == NO_BINARY_FOR_GPU) return fail(VDITC_NO_KERNEL, "the library's code is not for this GPU or driver (sm_%d)", sm);
    if (error) return fail_driver(error, "the library's code");
    here.modules[unit] = module;
  }
  Function function = nullptr;
  const int error = api().function(&function, here.modules[unit], ENTRIES[entry].symbol);
  if (error == NOT_FOUND) return fail(VDITC_NO_KERNEL, "the library has no kernel %s", ENTRIES[entry].symbol);
  if (error) return fail_driver(error, ENTRIES[entry].symbol);
  *out = here.functions[entry] = function;
  return VDITC_OK;
}

}  // namespace

int find(const char* kernel) {
  for (int i = 0; i < ENTRY_COUNT; ++i)
    if (!std::strcmp(ENTRIES[i].kernel, kernel)) return i;
  return -1;
}

Status launch(int entry, unsigned grid_x, unsigned grid_y, unsigned grid_z, int threads, size_t shared, void* stream, const void* arguments) {
  if (entry < 0) return fail(VDITC_NO_KERNEL, "the library was built without this kernel");
  Context where = nullptr;
  VDITC_TRY(context(&where));
  const Relaxed relaxed;
  Function function = nullptr;
  VDITC_TRY(load(where, entry, &function));
  if (shared > 48u << 10)
    if (const int error = api().set_attribute(function, MAX_DYNAMIC_SHARED, static_cast<int>(shared)))
      return fail_driver(error, "shared memory of a kernel");
  void* parameters[] = {const_cast<void*>(arguments)};
  const auto block = static_cast<unsigned>(threads);
  const int error = api().start(function, grid_x, grid_y, grid_z, block, 1, 1, static_cast<unsigned>(shared), stream, parameters, nullptr);
  return error ? fail_driver(error, "launch of a kernel") : VDITC_OK;
}

int device_sm() {
  Context where = nullptr;
  int sm = 0;
  return context(&where) == VDITC_OK && capability(&sm) == VDITC_OK ? sm : -1;
}

}  // namespace vditc::driver
#endif
