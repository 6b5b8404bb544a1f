// Whether plugins/tensorrt/abi.h and generations.h say what TensorRT's headers say. Compiled with those headers; what differs is an error of
// the compiler, or a line that the program prints.
#include <NvInfer.h>

#include <cstddef>
#include <cstdio>
#include <cstring>

#undef VDITC_TENSORRT_HEADERS
#define nvinfer1 own
#include "tensorrt/abi.h"
#include "tensorrt/generations.h"
#undef nvinfer1

namespace real = nvinfer1;

static int wrong = 0;

// A pointer to a virtual function is its place in the table (Itanium C++ ABI, 2.3).
template <class Pointer>
long place(Pointer pointer) {
  long out;
  std::memcpy(&out, &pointer, sizeof out);
  return out;
}

static void same(const char* what, long found, long wanted) {
  if (found == wanted) return;
  std::printf("%s: ours %ld, TensorRT's %ld\n", what, found, wanted);
  ++wrong;
}

#define VALUE(name) same(#name, static_cast<long>(own::name), static_cast<long>(real::name))
#define SIZE(name) same("sizeof " #name, sizeof(own::name), sizeof(real::name))
#define MEMBER(type, name) same(#type "." #name, offsetof(own::type, name), offsetof(real::type, name))
#define SLOT(type, name) same(#type "::" #name, place(&own::type::name), place(&real::type::name))
#define KIND(type) same("kind of " #type, 0, std::strcmp(kind<own::type>(), kind<real::type>()))

// IPluginV3::getInterfaceInfo and so on, without an object of the abstract class.
template <class Type>
const char* kind() {
  alignas(Type) static unsigned char room[sizeof(Type)] = {};
  return reinterpret_cast<Type*>(room)->Type::getInterfaceInfo().kind;
}

template <class Own, class Real, class OwnFinder, class RealFinder>
void logger() {
  same("ILogger::log", place(&Own::log), place(&Real::log));
  same("ILoggerFinder::findLogger", place(&OwnFinder::findLogger), place(&RealFinder::findLogger));
}

template <class Own>
void registry() {
  using Real = real::IPluginRegistry;
  same("IPluginRegistry::registerCreator", place(&Own::registerCreator),
       place(static_cast<bool (Real::*)(real::IPluginCreatorInterface&, const char*) noexcept>(&Real::registerCreator)));
  same("IPluginRegistry::getAllCreators", place(&Own::getAllCreators), place(&Real::getAllCreators));
  same("IPluginRegistry::getCreator", place(&Own::getCreator), place(&Real::getCreator));
}

int main() {
  VALUE(DataType::kFLOAT), VALUE(DataType::kHALF), VALUE(DataType::kINT8), VALUE(DataType::kINT32), VALUE(DataType::kBOOL);
  VALUE(DataType::kUINT8), VALUE(DataType::kFP8), VALUE(DataType::kBF16), VALUE(DataType::kINT64), VALUE(DataType::kINT4);
  VALUE(TensorFormat::kLINEAR), VALUE(TensorFormat::kCHW32);
  VALUE(PluginCapabilityType::kCORE), VALUE(PluginCapabilityType::kBUILD), VALUE(PluginCapabilityType::kRUNTIME);
  VALUE(TensorRTPhase::kBUILD), VALUE(TensorRTPhase::kRUNTIME), VALUE(APILanguage::kCPP);
  VALUE(PluginFieldType::kFLOAT32), VALUE(PluginFieldType::kINT32), VALUE(PluginFieldType::kCHAR), VALUE(PluginFieldType::kUNKNOWN);
  VALUE(PluginFieldType::kINT64), VALUE(PluginFieldType::kBF16);
  VALUE(DimensionOperation::kPROD), VALUE(DimensionOperation::kFLOOR_DIV), VALUE(DimensionOperation::kCEIL_DIV);

  SIZE(Dims), SIZE(PluginTensorDesc), SIZE(DynamicPluginTensorDesc), SIZE(PluginField), SIZE(PluginFieldCollection), SIZE(DimsExprs);
  SIZE(InterfaceInfo), SIZE(IExprBuilder), SIZE(IDimensionExpr), SIZE(IVersionedInterface), SIZE(DataType);
  MEMBER(Dims, nbDims), MEMBER(Dims, d), MEMBER(PluginTensorDesc, dims), MEMBER(PluginTensorDesc, type), MEMBER(PluginTensorDesc, format);
  MEMBER(PluginTensorDesc, scale), MEMBER(DynamicPluginTensorDesc, desc), MEMBER(DynamicPluginTensorDesc, min);
  MEMBER(DynamicPluginTensorDesc, max), MEMBER(DynamicPluginTensorDesc, opt), MEMBER(PluginField, name), MEMBER(PluginField, data);
  MEMBER(PluginField, type), MEMBER(PluginField, length), MEMBER(PluginFieldCollection, nbFields), MEMBER(PluginFieldCollection, fields);
  MEMBER(InterfaceInfo, kind), MEMBER(InterfaceInfo, major);
  same("DimsExprs.d", offsetof(own::DimsExprs, d), offsetof(real::DimsExprs, d));

  SLOT(IVersionedInterface, getAPILanguage), SLOT(IVersionedInterface, getInterfaceInfo);
  SLOT(IPluginV3, getCapabilityInterface), SLOT(IPluginV3, clone);
  SLOT(IPluginV3OneCore, getPluginName), SLOT(IPluginV3OneCore, getPluginVersion), SLOT(IPluginV3OneCore, getPluginNamespace);
  SLOT(IPluginV3OneBuild, configurePlugin), SLOT(IPluginV3OneBuild, getOutputDataTypes), SLOT(IPluginV3OneBuild, getOutputShapes);
  SLOT(IPluginV3OneBuild, supportsFormatCombination), SLOT(IPluginV3OneBuild, getNbOutputs), SLOT(IPluginV3OneBuild, getWorkspaceSize);
  SLOT(IPluginV3OneBuild, getValidTactics), SLOT(IPluginV3OneBuild, getNbTactics), SLOT(IPluginV3OneBuild, getTimingCacheID);
  SLOT(IPluginV3OneBuild, getFormatCombinationLimit), SLOT(IPluginV3OneBuild, getMetadataString);
  SLOT(IPluginV3OneRuntime, setTactic), SLOT(IPluginV3OneRuntime, onShapeChange), SLOT(IPluginV3OneRuntime, enqueue);
  SLOT(IPluginV3OneRuntime, attachToContext), SLOT(IPluginV3OneRuntime, getFieldsToSerialize);
  SLOT(IPluginCreatorV3One, createPlugin), SLOT(IPluginCreatorV3One, getFieldNames), SLOT(IPluginCreatorV3One, getPluginName);
  SLOT(IPluginCreatorV3One, getPluginVersion), SLOT(IPluginCreatorV3One, getPluginNamespace);
  SLOT(apiv::VExprBuilder, constant), SLOT(apiv::VExprBuilder, operation);
  SLOT(apiv::VDimensionExpr, isConstant), SLOT(apiv::VDimensionExpr, getConstantValue);
  KIND(IPluginV3), KIND(IPluginV3OneCore), KIND(IPluginV3OneBuild), KIND(IPluginV3OneRuntime), KIND(IPluginCreatorV3One);

#if NV_TENSORRT_MAJOR >= 11
  logger<vditc::tensorrt::eleven::Logger, real::ILogger, vditc::tensorrt::eleven::Finder, real::ILoggerFinder>();
  registry<vditc::tensorrt::eleven::Registry>();
#else
  logger<vditc::tensorrt::ten::Logger, real::ILogger, vditc::tensorrt::ten::Finder, real::ILoggerFinder>();
  registry<vditc::tensorrt::ten::Registry>();
#endif
  return wrong != 0;
}
