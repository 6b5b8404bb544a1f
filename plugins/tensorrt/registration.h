/* Registration of the plugins by a host that loads libvditc_plugins.so itself (links it, or dlopen); IPluginRegistry::loadLibrary needs no
 * call. */
#ifndef VDITC_REGISTRATION_H
#define VDITC_REGISTRATION_H

#include "native/vditc_plugins.h"

#if defined(__cplusplus)
extern "C" {
#endif

/* Registers what the registry of the TensorRT in this process does not have. May be called again, from any thread. Returns how many plugins
 * it registered, 0 when all were there; -1 when no TensorRT 10 or 11 and no TensorRT-RTX 1.7 or later is loaded. */
VDITC_API int32_t vditc_register_plugins(void);

#if defined(__cplusplus)
}
#endif
#endif
