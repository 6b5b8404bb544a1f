// TensorRT or TensorRT-RTX, as the headers in TENSORRT_ROOT say: names of the product, of its libraries and of its version.
//
// Only files of this folder include NvInfer's headers. From 10.3 to 11.x, and in TensorRT-RTX, they name what is used here alike.
#pragma once
#include <NvInferRuntime.h>
#include <NvInferVersion.h>

#if __has_include(<NvOnnxParser.h>)
#include <NvOnnxParser.h>
#define VDITC_REFITS 1  // weights of a graph can be put back into an engine
#endif

#define VDITC_WORD_(x) #x
#define VDITC_WORD(x) VDITC_WORD_(x)

namespace vditc::internal::product {

#if defined(TRT_MAJOR_RTX)
constexpr const char* MODULE = "tensorrt_rtx";
constexpr int32_t MAJOR = TRT_MAJOR_RTX;
constexpr const char* HEADERS = "TensorRT-RTX " VDITC_WORD(TRT_MAJOR_RTX) "." VDITC_WORD(TRT_MINOR_RTX) "." VDITC_WORD(TRT_PATCH_RTX);
constexpr const char* RUNTIME = "libtensorrt_rtx.so." VDITC_WORD(TRT_MAJOR_RTX);
constexpr const char* PARSER = "libtensorrt_onnxparser_rtx.so." VDITC_WORD(TRT_MAJOR_RTX);
#else
constexpr const char* MODULE = "tensorrt";
constexpr int32_t MAJOR = NV_TENSORRT_MAJOR;
constexpr const char* HEADERS = "TensorRT " VDITC_WORD(NV_TENSORRT_MAJOR) "." VDITC_WORD(NV_TENSORRT_MINOR) "." VDITC_WORD(NV_TENSORRT_PATCH);
constexpr const char* RUNTIME = "libnvinfer.so." VDITC_WORD(NV_TENSORRT_MAJOR);
constexpr const char* PARSER = "libnvonnxparser.so." VDITC_WORD(NV_TENSORRT_MAJOR);
#endif

}  // namespace vditc::internal::product
