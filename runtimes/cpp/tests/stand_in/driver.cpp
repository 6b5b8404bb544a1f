// libcuda.so.1 for tests without a GPU: memory of the device is memory of the host, and work is done as late as the driver allows, when somebody
// waits for it, so that whoever does not wait sees what was there before.
//
// What is given to a stream is done in order; a stream that waits for an event has the event's stream go on up to it. Tests count and disturb it
// through stand_in_get and stand_in_set.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

struct CUgraph_opaque {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};
struct CUstream_st {
  std::deque<std::function<void()>> waiting;
  uint64_t given = 0, done = 0;
  CUgraph_opaque* recording = nullptr;
};
struct CUevent_st {
  CUstream_st* stream = nullptr;
  uint64_t at = 0;
};
struct CUctx_st {
  int device;
};

namespace {

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201, CAPTURE = 900 };

std::recursive_mutex lock;
std::map<std::string, int64_t> counts{{"devices", 1}, {"arch", 90}, {"pools", 1}, {"memory", int64_t{1} << 40}, {"pinned", int64_t{1} << 40}, {"recordable", 1}};
std::map<void*, size_t> device_memory, host_memory;
std::set<void*> objects;
CUctx_st context{0};
thread_local std::vector<CUctx_st*> current;

void go_to(CUstream_st* stream, uint64_t to) {
  while (stream->done < to) {
    auto work = std::move(stream->waiting.front());
    stream->waiting.pop_front();
    ++stream->done;
    work();
  }
}

int give(CUstream_st* stream, std::function<void()> work) {
  if (current.empty()) return INVALID_CONTEXT;
  if (stream->recording != nullptr) {
    stream->recording->work.push_back(std::move(work));
    return OK;
  }
  stream->waiting.push_back(std::move(work));
  ++stream->given;
  return OK;
}

int take(std::map<void*, size_t>& memory, size_t bytes, void** made) {
  if (current.empty()) return INVALID_CONTEXT;
  int64_t& left = counts[&memory == &device_memory ? "memory" : "pinned"];
  if (static_cast<int64_t>(bytes) > left) return OUT_OF_MEMORY;
  *made = std::malloc(bytes + 1);
  std::memset(*made, 0xFF, bytes);  // NaN
  memory[*made] = bytes;
  ++counts["allocations"];
  left -= static_cast<int64_t>(bytes);
  return OK;
}

int drop(std::map<void*, size_t>& memory, void* address) {
  const auto found = memory.find(address);
  if (found == memory.end()) return ++counts["faults"], INVALID;
  counts[&memory == &device_memory ? "memory" : "pinned"] += static_cast<int64_t>(found->second);
  std::memset(address, 0xFF, found->second);
  std::free(address);
  memory.erase(found);
  return OK;
}

// Whether memory of the device holds all of it.
bool holds(void* address, size_t bytes) {
  auto after = device_memory.upper_bound(address);
  if (after == device_memory.begin()) return false;
  --after;
  return static_cast<char*>(address) + bytes <= static_cast<char*>(after->first) + after->second;
}

template <class T>
int made(T** object) {
  if (current.empty()) return INVALID_CONTEXT;
  objects.insert(*object = new T);
  return OK;
}
template <class T>
int gone(T* object) {
  if (objects.erase(object) == 0) return ++counts["faults"], INVALID;
  delete object;
  return OK;
}

using Hold = std::lock_guard<std::recursive_mutex>;

}  // namespace

EXPORT int64_t stand_in_get(const char* name) {
  const Hold hold(lock);
  if (!std::strcmp(name, "live")) return static_cast<int64_t>(device_memory.size() + host_memory.size() + objects.size());
  return counts[name];
}
EXPORT void stand_in_set(const char* name, int64_t value) {
  const Hold hold(lock);
  counts[name] = value;
}
// What TensorRT does wrong without a GPU of its own on the thread, or in the wrong order.
EXPORT void stand_in_fault() {
  const Hold hold(lock);
  ++counts["faults"];
}
EXPORT int stand_in_current() { return !current.empty(); }
EXPORT void stand_in_add(const char* name, int64_t value) {
  const Hold hold(lock);
  counts[name] += value;
}
// What a kernel is: work of a stream.
EXPORT int stand_in_launch(CUstream_st* stream, const std::function<void()>& work) {
  const Hold hold(lock);
  ++counts["launches"];
  if (stream->recording != nullptr && !counts["recordable"]) return CAPTURE;
  return give(stream, work);
}

EXPORT int cuInit(unsigned) { return counts["devices"] ? OK : NO_DEVICE; }
EXPORT int cuDeviceGetCount(int* count) { return *count = static_cast<int>(counts["devices"]), OK; }
EXPORT int cuDeviceGet(int* device, int number) { return *device = number, OK; }
EXPORT int cuDeviceGetName(char* name, int size, int) { return std::strncpy(name, "stand-in", static_cast<size_t>(size)), OK; }
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int64_t arch = counts["arch"];
  *value = static_cast<int>(attribute == 75 ? arch / 10 : attribute == 76 ? arch % 10 : attribute == 115 ? counts["pools"] : 0);
  return OK;
}
EXPORT int cuGetErrorString(int status, const char** said) {
  *said = status == OUT_OF_MEMORY ? "out of memory" : status == NO_DEVICE ? "no CUDA-capable device is detected" : "of the stand-in";
  return OK;
}
EXPORT int cuDevicePrimaryCtxRetain(CUctx_st** made, int) { return *made = &context, ++counts["contexts"], OK; }
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return --counts["contexts"], OK; }
EXPORT int cuCtxPushCurrent_v2(CUctx_st* one) { return current.push_back(one), OK; }
EXPORT int cuCtxPopCurrent_v2(CUctx_st** one) {
  if (current.empty()) return INVALID_CONTEXT;
  *one = current.back();
  return current.pop_back(), OK;
}
EXPORT int cuStreamCreate(CUstream_st** stream, unsigned) { const Hold hold(lock); return made(stream); }
EXPORT int cuStreamDestroy_v2(CUstream_st* stream) { const Hold hold(lock); return go_to(stream, stream->given), gone(stream); }
EXPORT int cuStreamSynchronize(CUstream_st* stream) {
  const Hold hold(lock);
  if (stream->recording != nullptr) return CAPTURE;
  return go_to(stream, stream->given), OK;
}
EXPORT int cuStreamWaitEvent(CUstream_st* stream, CUevent_st* event, unsigned) {
  const Hold hold(lock);
  CUstream_st* other = event->stream;
  const uint64_t at = event->at;
  if (other == nullptr) return OK;
  return give(stream, [=] { go_to(other, at); });
}
EXPORT int cuEventCreate(CUevent_st** event, unsigned) { const Hold hold(lock); return made(event); }
EXPORT int cuEventDestroy_v2(CUevent_st* event) { const Hold hold(lock); return gone(event); }
EXPORT int cuEventRecord(CUevent_st* event, CUstream_st* stream) {
  const Hold hold(lock);
  event->stream = stream, event->at = stream->given;
  return OK;
}
EXPORT int cuEventSynchronize(CUevent_st* event) {
  const Hold hold(lock);
  if (event->stream != nullptr) go_to(event->stream, event->at);
  return static_cast<int>(counts["broken"]);
}
EXPORT int cuMemAlloc_v2(uint64_t* address, size_t bytes) { const Hold hold(lock); return take(device_memory, bytes, reinterpret_cast<void**>(address)); }
EXPORT int cuMemFree_v2(uint64_t address) { const Hold hold(lock); return drop(device_memory, reinterpret_cast<void*>(address)); }
EXPORT int cuMemAllocAsync(uint64_t* address, size_t bytes, CUstream_st*) { return counts["pools"] ? cuMemAlloc_v2(address, bytes) : INVALID; }
EXPORT int cuMemFreeAsync(uint64_t address, CUstream_st* stream) {
  const Hold hold(lock);
  return give(stream, [address] { drop(device_memory, reinterpret_cast<void*>(address)); });
}
EXPORT int cuMemAllocHost_v2(void** made, size_t bytes) { const Hold hold(lock); return take(host_memory, bytes, made); }
EXPORT int cuMemFreeHost(void* memory) { const Hold hold(lock); return drop(host_memory, memory); }
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* of, size_t bytes, CUstream_st* stream) {
  const Hold hold(lock);
  if (!holds(reinterpret_cast<void*>(to), bytes)) return ++counts["faults"], INVALID;
  counts["uploads"] += 1, counts["uploaded"] += static_cast<int64_t>(bytes);
  return give(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), of, bytes); });
}
EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t of, size_t bytes, CUstream_st* stream) {
  const Hold hold(lock);
  if (!holds(reinterpret_cast<void*>(of), bytes)) return ++counts["faults"], INVALID;
  return give(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(of), bytes); });
}
EXPORT int cuStreamBeginCapture_v2(CUstream_st* stream, unsigned) { const Hold hold(lock); return stream->recording = new CUgraph_opaque, OK; }
EXPORT int cuStreamEndCapture(CUstream_st* stream, CUgraph_opaque** graph) {
  const Hold hold(lock);
  *graph = stream->recording;
  stream->recording = nullptr;
  return OK;
}
EXPORT int cuGraphInstantiateWithFlags(CUgraphExec_st** recorded, CUgraph_opaque* graph, unsigned long long) {
  const Hold hold(lock);
  if (const int status = made(recorded)) return status;
  (*recorded)->work = graph->work;
  return OK;
}
EXPORT int cuGraphDestroy(CUgraph_opaque* graph) { return delete graph, OK; }
EXPORT int cuGraphExecDestroy(CUgraphExec_st* recorded) { const Hold hold(lock); return gone(recorded); }
EXPORT int cuGraphLaunch(CUgraphExec_st* recorded, CUstream_st* stream) {
  const Hold hold(lock);
  ++counts["replays"];
  for (const auto& work : recorded->work) give(stream, work);
  return OK;
}
