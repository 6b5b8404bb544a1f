#include "engines/cuda.h"

#include <dlfcn.h>

#include <cstdlib>

#include "status.h"

namespace vditc::internal {
namespace {

constexpr int OUT_OF_MEMORY = 2;                                           // CUDA_ERROR_OUT_OF_MEMORY
constexpr int MAJOR = 75, MINOR = 76, MEMORY_POOLS = 115;                  // CUdevice_attribute
constexpr unsigned NON_BLOCKING = 1, THREAD_LOCAL = 1;      // of streams, and modes of capture: other threads do not break one
constexpr unsigned BLOCKING_NO_TIMING = 1 | 2;              // of events: whoever waits for a step of seconds sleeps
constexpr const char* LIBRARY = "libcuda.so.1";

// Illegal address, timeout, assertion, and what else work on a GPU dies of: cuda.h says that the process must be restarted.
bool is_lost(int status) { return status == 700 || status == 702 || status == 710 || (714 <= status && status <= 719); }

}  // namespace

struct CUgraph_opaque;

struct DriverFunctions {
  std::string name;
  int (*init)(unsigned);
  int (*device_count)(int*);
  int (*device_get)(int*, int);
  int (*device_name)(char*, int, int);
  int (*attribute)(int*, int, int);
  int (*error_string)(int, const char**);
  int (*retain)(CUctx_st**, int);
  int (*release_context)(int);
  int (*push)(CUctx_st*);
  int (*pop)(CUctx_st**);
  int (*stream_create)(CUstream_st**, unsigned);
  int (*stream_destroy)(CUstream_st*);
  int (*stream_synchronize)(CUstream_st*);
  int (*stream_wait)(CUstream_st*, CUevent_st*, unsigned);
  int (*event_create)(CUevent_st**, unsigned);
  int (*event_destroy)(CUevent_st*);
  int (*event_record)(CUevent_st*, CUstream_st*);
  int (*event_synchronize)(CUevent_st*);
  int (*allocate)(DeviceAddress*, size_t);
  int (*release)(DeviceAddress);
  int (*allocate_async)(DeviceAddress*, size_t, CUstream_st*);
  int (*release_async)(DeviceAddress, CUstream_st*);
  int (*allocate_host)(void**, size_t);
  int (*release_host)(void*);
  int (*upload)(DeviceAddress, const void*, size_t, CUstream_st*);
  int (*download)(void*, DeviceAddress, size_t, CUstream_st*);
  int (*capture)(CUstream_st*, unsigned);
  int (*end_capture)(CUstream_st*, CUgraph_opaque**);
  int (*instantiate)(CUgraphExec_st**, CUgraph_opaque*, unsigned long long);
  int (*destroy_graph)(CUgraph_opaque*);
  int (*destroy_recorded)(CUgraphExec_st*);
  int (*launch)(CUgraphExec_st*, CUstream_st*);
};

namespace {

[[noreturn]] void no_device(const std::string& found) {
  throw Error(VDITC_ERROR_NO_DEVICE, "engines", found, "an NVIDIA GPU and its driver",
              "run on a machine with a GPU, or use the backend host with a denoiser of your own");
}

DriverFunctions load() {
  DriverFunctions made{};
  const char* own = std::getenv("VDITC_CUDA_DRIVER");
  made.name = own != nullptr && *own != '\0' ? own : LIBRARY;
  void* library = dlopen(made.name.c_str(), RTLD_NOW | RTLD_GLOBAL);  // never closed: the driver lives as long as the process
  if (library == nullptr) no_device("no NVIDIA driver (" + made.name + " does not load)");
  const auto get = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) no_device("an NVIDIA driver without " + std::string(name) + " (" + made.name + ")");
  };
  get(made.init, "cuInit");
  get(made.device_count, "cuDeviceGetCount");
  get(made.device_get, "cuDeviceGet");
  get(made.device_name, "cuDeviceGetName");
  get(made.attribute, "cuDeviceGetAttribute");
  get(made.error_string, "cuGetErrorString");
  get(made.retain, "cuDevicePrimaryCtxRetain");
  get(made.release_context, "cuDevicePrimaryCtxRelease_v2");
  get(made.push, "cuCtxPushCurrent_v2");
  get(made.pop, "cuCtxPopCurrent_v2");
  get(made.stream_create, "cuStreamCreate");
  get(made.stream_destroy, "cuStreamDestroy_v2");
  get(made.stream_synchronize, "cuStreamSynchronize");
  get(made.stream_wait, "cuStreamWaitEvent");
  get(made.event_create, "cuEventCreate");
  get(made.event_destroy, "cuEventDestroy_v2");
  get(made.event_record, "cuEventRecord");
  get(made.event_synchronize, "cuEventSynchronize");
  get(made.allocate, "cuMemAlloc_v2");
  get(made.release, "cuMemFree_v2");
  get(made.allocate_async, "cuMemAllocAsync");
  get(made.release_async, "cuMemFreeAsync");
  get(made.allocate_host, "cuMemAllocHost_v2");
  get(made.release_host, "cuMemFreeHost");
  get(made.upload, "cuMemcpyHtoDAsync_v2");
  get(made.download, "cuMemcpyDtoHAsync_v2");
  get(made.capture, "cuStreamBeginCapture_v2");
  get(made.end_capture, "cuStreamEndCapture");
  get(made.instantiate, "cuGraphInstantiateWithFlags");
  get(made.destroy_graph, "cuGraphDestroy");
  get(made.destroy_recorded, "cuGraphExecDestroy");
  get(made.launch, "cuGraphLaunch");
  return made;
}

std::string words(const DriverFunctions& driver, int status) {
  const char* said = nullptr;
  driver.error_string(status, &said);
  return text("error %d, %s", status, said == nullptr ? "without a text" : said);
}

const DriverFunctions& driver() {
  static const DriverFunctions loaded = load();  // tried again where it raised
  return loaded;
}

}  // namespace

Cuda::Cuda(int number) : driver_(&driver()) {
  if (const int status = driver_->init(0)) no_device("no GPU that the driver can use (cuInit: " + words(*driver_, status) + ")");
  int count = 0, major = 0, minor = 0, pools = 0;
  check(driver_->device_count(&count), "cuDeviceGetCount");
  if (number < 0 || number >= count) no_device(text("GPU %d of %d", number, count));
  char name[256] = "";
  check(driver_->device_get(&device_, number), "cuDeviceGet");
  check(driver_->device_name(name, sizeof name, device_), "cuDeviceGetName");
  check(driver_->attribute(&major, MAJOR, device_), "cuDeviceGetAttribute");
  check(driver_->attribute(&minor, MINOR, device_), "cuDeviceGetAttribute");
  check(driver_->attribute(&pools, MEMORY_POOLS, device_), "cuDeviceGetAttribute");
  arch_ = text("sm_%d%d", major, minor), name_ = name, pools_ = pools != 0;
  check(driver_->retain(&context_, device_), "cuDevicePrimaryCtxRetain");
}

Cuda::~Cuda() { driver_->release_context(device_); }

Cuda::Current::Current(const Cuda& cuda) : cuda_(cuda) { cuda.check(cuda.driver_->push(cuda.context_), "cuCtxPushCurrent"); }

Cuda::Current::~Current() {
  CUctx_st* ours;
  cuda_.driver_->pop(&ours);
}

void Cuda::check(int status, const char* function) const {
  if (status == 0) return;
  const bool memory = status == OUT_OF_MEMORY, lost = is_lost(status);
  throw Error(memory ? VDITC_ERROR_DEVICE_MEMORY : VDITC_ERROR_ENGINE, name_.empty() ? "CUDA" : name_,
              std::string(function) + ": " + words(*driver_, status), memory ? "free memory on the GPU" : "a CUDA call that works",
              memory ? "free some of it, sample smaller clips, or build with --engine weight-streaming"
              : lost ? "restart the process: CUDA does not recover from this error"
                     : "see that the GPU is free, then run again");
}

Stream Cuda::stream() const {
  Stream made = nullptr;
  check(driver_->stream_create(&made, NON_BLOCKING), "cuStreamCreate");
  return made;
}

Event Cuda::event() const {
  Event made = nullptr;
  check(driver_->event_create(&made, BLOCKING_NO_TIMING), "cuEventCreate");
  return made;
}

DeviceAddress Cuda::allocate(size_t bytes, Stream stream) const {
  DeviceAddress made = 0;
  if (pools_) check(driver_->allocate_async(&made, bytes, stream), "cuMemAllocAsync");
  else check(driver_->allocate(&made, bytes), "cuMemAlloc");
  return made;
}

void Cuda::release(DeviceAddress address, Stream stream) const noexcept {
  if (address == 0) return;
  if (pools_) {
    driver_->release_async(address, stream);
  } else {
    driver_->stream_synchronize(stream);
    driver_->release(address);
  }
}

void* Cuda::pinned(size_t bytes) const {
  void* made = nullptr;
  if (driver_->allocate_host(&made, bytes) == OUT_OF_MEMORY) {
    throw Error(VDITC_ERROR_OUT_OF_MEMORY, name_, text("no %zu bytes of memory that copies reach (cuMemAllocHost)", bytes), "free memory of the host",
                "free some of it, or sample smaller clips");
  }
  if (made == nullptr) throw Error(VDITC_ERROR_ENGINE, name_, "cuMemAllocHost, which failed", "a CUDA call that works", "see that the GPU is free, then run again");
  return made;
}

void Cuda::release_pinned(void* memory) const noexcept {
  if (memory != nullptr) driver_->release_host(memory);
}

void Cuda::upload(DeviceAddress to, const void* of, size_t bytes, Stream stream) const {
  if (bytes) check(driver_->upload(to, of, bytes, stream), "cuMemcpyHtoDAsync");
}
void Cuda::download(void* to, DeviceAddress of, size_t bytes, Stream stream) const {
  if (bytes) check(driver_->download(to, of, bytes, stream), "cuMemcpyDtoHAsync");
}
void Cuda::record(Event event, Stream stream) const { check(driver_->event_record(event, stream), "cuEventRecord"); }
void Cuda::wait(Stream stream, Event event) const { check(driver_->stream_wait(stream, event, 0), "cuStreamWaitEvent"); }
void Cuda::finish(Event event) const { check(driver_->event_synchronize(event), "cuEventSynchronize"); }
void Cuda::synchronize(Stream stream) const noexcept { driver_->stream_synchronize(stream); }

void Cuda::begin_recording(Stream stream) const { check(driver_->capture(stream, THREAD_LOCAL), "cuStreamBeginCapture"); }

Recorded Cuda::end_recording(Stream stream) const {
  CUgraph_opaque* graph = nullptr;
  Recorded made = nullptr;
  check(driver_->end_capture(stream, &graph), "cuStreamEndCapture");
  const int status = driver_->instantiate(&made, graph, 0);
  driver_->destroy_graph(graph);
  check(status, "cuGraphInstantiate");
  return made;
}

void Cuda::abandon_recording(Stream stream) const noexcept {
  CUgraph_opaque* graph = nullptr;
  if (driver_->end_capture(stream, &graph) == 0 && graph != nullptr) driver_->destroy_graph(graph);
}

void Cuda::replay(Recorded recorded, Stream stream) const { check(driver_->launch(recorded, stream), "cuGraphLaunch"); }

void Cuda::destroy(Stream stream) const noexcept {
  if (stream != nullptr) driver_->stream_destroy(stream);
}
void Cuda::destroy(Event event) const noexcept {
  if (event != nullptr) driver_->event_destroy(event);
}
void Cuda::destroy(Recorded recorded) const noexcept {
  if (recorded != nullptr) driver_->destroy_recorded(recorded);
}

}  // namespace vditc::internal
