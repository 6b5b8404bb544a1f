// The part of the CUDA driver that running engines takes. It is loaded when an engine is opened and nothing is linked, so that the library runs
// where there is no GPU.
//
// CUDA Driver API, modules 6.4 to 6.8 (devices, primary contexts), 6.13 (memory), 6.14 (stream-ordered memory), 6.18 (streams), 6.19 (events)
// and 6.24 (graphs), CUDA 12 and later.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

struct CUctx_st;
struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace vditc::internal {

using DeviceAddress = uint64_t;  // CUdeviceptr
using Stream = CUstream_st*;
using Event = CUevent_st*;
using Recorded = CUgraphExec_st*;  // launches that are replayed as one

struct DriverFunctions;

// One GPU. Functions raise Error: VDITC_ERROR_DEVICE_MEMORY where memory is short, VDITC_ERROR_ENGINE for other failures. They want a `Current`
// on the calling thread.
class Cuda {
 public:
  // Error VDITC_ERROR_NO_DEVICE without a driver or a GPU of this number.
  explicit Cuda(int number);
  ~Cuda();
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;

  const std::string& arch() const { return arch_; }  // "sm_90"
  const std::string& name() const { return name_; }

  // Makes the GPU the thread's own, and gives the host's back afterwards.
  class Current {
   public:
    explicit Current(const Cuda& cuda);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const Cuda& cuda_;
  };

  Stream stream() const;
  Event event() const;
  // Of the device, ordered by `stream` where the GPU does that.
  DeviceAddress allocate(size_t bytes, Stream stream) const;
  void release(DeviceAddress address, Stream stream) const noexcept;
  // Of the host, which copies reach without a detour.
  void* pinned(size_t bytes) const;
  void release_pinned(void* memory) const noexcept;

  void upload(DeviceAddress to, const void* of, size_t bytes, Stream stream) const;
  void download(void* to, DeviceAddress of, size_t bytes, Stream stream) const;
  void record(Event event, Stream stream) const;
  void wait(Stream stream, Event event) const;  // later work of `stream` comes behind `event`
  void finish(Event event) const;               // blocks until it has come
  void synchronize(Stream stream) const noexcept;

  // What is given to `stream` between the two is not done but recorded.
  void begin_recording(Stream stream) const;
  Recorded end_recording(Stream stream) const;
  void abandon_recording(Stream stream) const noexcept;  // a stream that stays in recording is of no use
  void replay(Recorded recorded, Stream stream) const;

  void destroy(Stream stream) const noexcept;
  void destroy(Event event) const noexcept;
  void destroy(Recorded recorded) const noexcept;

 private:
  const DriverFunctions* driver_;
  int device_ = 0;
  CUctx_st* context_ = nullptr;
  bool pools_ = false;  // memory that is ordered by streams
  std::string arch_, name_;

  void check(int status, const char* function) const;
};

}  // namespace vditc::internal
