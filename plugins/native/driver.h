// Kernels through CUDA's driver (VDITC_NVRTC), for where nvcc's runtime library is none to link with: JetPack 6.
//
// NVRTC of that CUDA compiles each kernel to machine code when the library is built; a table that is generated then has it. The driver,
// libcuda.so.1, is opened when the first kernel starts, so that an engine can be built where there is none.
#pragma once
#include <typeinfo>

#include "native/status.h"

namespace vditc::driver {

// Names a kernel: typeid(Name<Kernel>).name() is what both halves of the library know it by.
template <class Kernel>
struct Name {};

struct Image {
  int unit;  // the source that its kernels are of
  int sm;    // 10 major + minor
  const unsigned char* data;
};
struct Entry {
  const char* kernel;  // typeid(Name<Kernel>).name()
  const char* symbol;  // vditc::entry<Kernel> in the images of the unit
  int unit;
};
// Generated (plugins/nvrtc_units.py).
extern const Image IMAGES[];
extern const int IMAGE_COUNT;
extern const Entry ENTRIES[];
extern const int ENTRY_COUNT;

// Place in ENTRIES; -1 without one.
int find(const char* kernel);
// `arguments`: the kernel's one parameter.
Status launch(int entry, unsigned grid_x, unsigned grid_y, unsigned grid_z, int threads, size_t shared, void* stream, const void* arguments);
// Compute capability of the current device; negative, with a message, where there is none.
int device_sm();

}  // namespace vditc::driver
