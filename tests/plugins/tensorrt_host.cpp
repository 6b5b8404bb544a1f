// Plays TensorRT to a plugin library: what IPluginRegistry, the parser, the builder and an execution context call, in their order, without a
// GPU. test_plugin_library.py calls it. Memory is the host's, so the library is the emulated one.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "tensorrt/abi.h"

// The two generations of loggers, under TensorRT's names: the library tells them apart by those.
namespace nvinfer1 {
class ILogger {  // 10
 public:
  virtual void log(int32_t severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};
class ILoggerFinder {
 public:
  virtual ILogger* findLogger() = 0;

 protected:
  virtual ~ILoggerFinder() = default;
};
namespace v_1_0 {
class ILogger : public IVersionedInterface {  // 11
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
  virtual void log(int32_t severity, const char* message) noexcept = 0;
};
class ILoggerFinder : public IVersionedInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
  virtual ILogger* findLogger() = 0;
};
}  // namespace v_1_0
}  // namespace nvinfer1

using namespace nvinfer1;

namespace {

std::string lines;
void keep(int32_t severity, const char* message) { lines += std::string("[") + "FEWIV"[severity] + "] " + message + "\n"; }

struct : nvinfer1::ILogger {
  void log(int32_t severity, const char* message) noexcept override { keep(severity, message); }
} logger_ten;
struct : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return &logger_ten; }
} ten;
struct : v_1_0::ILogger {
  void log(int32_t severity, const char* message) noexcept override { keep(severity, message); }
} logger_eleven;
struct : v_1_0::ILoggerFinder {
  v_1_0::ILogger* findLogger() override { return &logger_eleven; }
} eleven;

// Sizes that are known, and those that an input's axis stands for: TensorRT calls only the first constant.
struct Size : apiv::VDimensionExpr {
  Size(int64_t value, bool known) : value(value), known(known) {}
  bool isConstant() const override { return known; }
  int64_t getConstantValue() const override { return known ? value : -1; }
  bool isSizeTensor() const override { return false; }
  int64_t value;
  bool known;
};
struct Expr : IDimensionExpr {
  explicit Expr(Size* size) { mImpl = size; }
  const Size& size() const { return *static_cast<const Size*>(mImpl); }
};
struct Builder : apiv::VExprBuilder {
  const IDimensionExpr* make(int64_t value, bool known) {
    sizes.emplace_back(value, known);
    expressions.push_back(std::make_unique<Expr>(&sizes.back()));
    return expressions.back().get();
  }
  const IDimensionExpr* constant(int64_t value) override { return make(value, true); }
  const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& first, const IDimensionExpr& second) override {
    const Size &a = static_cast<const Expr&>(first).size(), &b = static_cast<const Expr&>(second).size();
    if (op != DimensionOperation::kFLOOR_DIV) std::abort();
    return make(a.value / b.value, a.known && b.known);
  }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override { std::abort(); }
  std::deque<Size> sizes;
  std::vector<std::unique_ptr<Expr>> expressions;
};
struct PublicBuilder : IExprBuilder {
  explicit PublicBuilder(Builder* builder) { mImpl = builder; }
};

std::vector<IPluginCreatorV3One*> creators;

struct Field {
  std::string name, data;
  PluginFieldType type;
  int32_t length;
};

size_t width(PluginFieldType type) {
  return type == PluginFieldType::kINT32 || type == PluginFieldType::kFLOAT32 ? 4 : type == PluginFieldType::kINT64 ? 8 : 1;
}

template <class Capability>
Capability* capability(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneBuild* build(void* plugin) { return capability<IPluginV3OneBuild>(static_cast<IPluginV3*>(plugin), PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* runtime(void* plugin) { return capability<IPluginV3OneRuntime>(static_cast<IPluginV3*>(plugin), PluginCapabilityType::kRUNTIME); }

}  // namespace

extern "C" {

struct HostTensor {  // least, best and greatest sizes of a profile, or `best` alone
  int32_t type, rank;
  int64_t least[8], best[8], greatest[8];
};
struct HostField {
  const char* name;
  const void* data;
  int32_t type, length;
};

// The number of creators, -1 with a message in host_log. `generation`: 10, 11, or 0 for no logger.
int host_load(const char* path, int generation) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return keep(1, dlerror()), -1;
  const auto find = reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"));
  const auto get = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  if (!find || !get) return keep(1, "no setLoggerFinder or no getCreators"), -1;
  find(generation == 10 ? static_cast<void*>(&ten) : generation == 11 ? &eleven : nullptr);
  int32_t count = 0;
  IPluginCreatorInterface* const* list = get(count);
  creators.clear();
  for (int32_t i = 0; i < count; ++i) {
    if (std::strcmp(list[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE")) return keep(1, "a creator of another kind"), -1;
    creators.push_back(static_cast<IPluginCreatorV3One*>(list[i]));
  }
  return count;
}

const char* host_log() {
  static std::string said;
  said = std::move(lines);
  lines.clear();
  return said.c_str();
}

// "namespace.name/version field:type ..." of creator i.
const char* host_creator(int i) {
  static std::string said;
  IPluginCreatorV3One& one = *creators[static_cast<size_t>(i)];
  said = std::string(one.getPluginNamespace()) + "." + one.getPluginName() + "/" + one.getPluginVersion();
  const PluginFieldCollection* fields = one.getFieldNames();
  for (int32_t f = 0; f < fields->nbFields; ++f)
    said += std::string(" ") + fields->fields[f].name + ":" + std::to_string(static_cast<int>(fields->fields[f].type));
  return said.c_str();
}

void* host_create(int creator, const char* layer, int count, const HostField* given, int phase) {
  std::vector<PluginField> fields;
  for (int i = 0; i < count; ++i) fields.emplace_back(given[i].name, given[i].data, static_cast<PluginFieldType>(given[i].type), given[i].length);
  PluginFieldCollection collection;
  collection.nbFields = count;
  collection.fields = fields.data();
  return creators[static_cast<size_t>(creator)]->createPlugin(layer, &collection, static_cast<TensorRTPhase>(phase));
}

// What an engine does with a plugin: its fields are stored, it is deleted, and another one is made of them.
void* host_reload(int creator, void* plugin, const char* layer) {
  const PluginFieldCollection* written = runtime(plugin)->getFieldsToSerialize();
  if (!written) return nullptr;
  std::deque<Field> kept;
  for (int32_t i = 0; i < written->nbFields; ++i) {
    const PluginField& f = written->fields[i];
    kept.push_back({f.name, std::string(static_cast<const char*>(f.data), static_cast<size_t>(f.length) * width(f.type)), f.type, f.length});
  }
  delete static_cast<IPluginV3*>(plugin);
  std::vector<HostField> fields;
  for (const Field& f : kept) fields.push_back({f.name.c_str(), f.data.data(), static_cast<int32_t>(f.type), f.length});
  return host_create(creator, layer, static_cast<int>(fields.size()), fields.data(), 1);
}

void* host_clone(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }
void host_delete(void* plugin) { delete static_cast<IPluginV3*>(plugin); }
const char* host_cache_id(void* plugin) { return build(plugin)->getTimingCacheID(); }
int host_outputs(void* plugin) { return build(plugin)->getNbOutputs(); }

// Types and best sizes of the outputs, as the parser asks for them; axes whose least and greatest sizes differ are no constants.
int host_infer(void* plugin, int count, const HostTensor* in, int outputs, HostTensor* out) {
  std::vector<DataType> from, to(static_cast<size_t>(outputs));
  for (int i = 0; i < count; ++i) from.push_back(static_cast<DataType>(in[i].type));
  if (build(plugin)->getOutputDataTypes(to.data(), outputs, from.data(), count)) return 1;
  Builder builder;
  PublicBuilder handed(&builder);
  std::vector<DimsExprs> shapes(static_cast<size_t>(count)), made(static_cast<size_t>(outputs));
  for (int i = 0; i < count; ++i) {
    shapes[static_cast<size_t>(i)].nbDims = in[i].rank;
    for (int d = 0; d < in[i].rank; ++d) shapes[static_cast<size_t>(i)].d[d] = builder.make(in[i].best[d], in[i].least[d] == in[i].greatest[d]);
  }
  if (build(plugin)->getOutputShapes(shapes.data(), count, nullptr, 0, made.data(), outputs, handed)) return 2;
  for (int i = 0; i < outputs; ++i) {
    out[i].type = static_cast<int32_t>(to[static_cast<size_t>(i)]);
    out[i].rank = made[static_cast<size_t>(i)].nbDims;
    for (int d = 0; d < out[i].rank; ++d)
      out[i].best[d] = static_cast<const Expr*>(static_cast<const IDimensionExpr*>(made[static_cast<size_t>(i)].d[d]))->size().value;
  }
  return 0;
}

// The builder: formats, then the profile. 0, or which step failed: 1 formats, 2 configurePlugin.
int host_configure(void* plugin, int inputs, int outputs, const HostTensor* tensors) {
  std::vector<DynamicPluginTensorDesc> descs;
  for (int i = 0; i < inputs + outputs; ++i) {
    const HostTensor& t = tensors[i];
    DynamicPluginTensorDesc d{};
    d.desc.type = static_cast<DataType>(t.type);
    d.desc.format = TensorFormat::kLINEAR;
    d.desc.dims.nbDims = d.min.nbDims = d.opt.nbDims = d.max.nbDims = t.rank;
    for (int a = 0; a < t.rank; ++a) {
      d.desc.dims.d[a] = t.least[a] == t.greatest[a] ? t.best[a] : -1;
      d.min.d[a] = t.least[a];
      d.opt.d[a] = t.best[a];
      d.max.d[a] = t.greatest[a];
    }
    descs.push_back(d);
  }
  for (int i = 0; i < inputs + outputs; ++i) {
    if (!build(plugin)->supportsFormatCombination(i, descs.data(), inputs, outputs)) return 1;
    descs[static_cast<size_t>(i)].desc.format = TensorFormat::kCHW32;
    if (build(plugin)->supportsFormatCombination(i, descs.data(), inputs, outputs)) return 1;
    descs[static_cast<size_t>(i)].desc.format = TensorFormat::kLINEAR;
  }
  return build(plugin)->configurePlugin(descs.data(), inputs, descs.data() + inputs, outputs) ? 2 : 0;
}

int64_t host_workspace(void* plugin) { return static_cast<int64_t>(build(plugin)->getWorkspaceSize(nullptr, 0, nullptr, 0)); }
int host_tactics(void* plugin, int32_t* ids, int capacity) {
  const int32_t count = build(plugin)->getNbTactics();
  if (count > capacity || build(plugin)->getValidTactics(ids, count)) return -1;
  return count;
}

// An execution context: attach, tactic, shapes, enqueue with as much workspace as the builder was told, and a guard behind it.
// 0, or which step failed: 1 attach, 2 setTactic, 3 onShapeChange, 4 enqueue, 5 the workspace was overrun.
int host_run(void* plugin, int tactic, int64_t workspace_bytes, int inputs, const HostTensor* tensors, const void* const* in, int outputs,
             void* const* out) {
  std::unique_ptr<IPluginV3> attached(runtime(plugin)->attachToContext(nullptr));
  if (!attached) return 1;
  IPluginV3OneRuntime* one = runtime(attached.get());
  if (one->setTactic(tactic)) return 2;
  std::vector<PluginTensorDesc> descs;
  for (int i = 0; i < inputs + outputs; ++i) {
    PluginTensorDesc d{};
    d.type = static_cast<DataType>(tensors[i].type);
    d.format = TensorFormat::kLINEAR;
    d.dims.nbDims = tensors[i].rank;
    std::memcpy(d.dims.d, tensors[i].best, sizeof d.dims.d);
    descs.push_back(d);
  }
  if (one->onShapeChange(descs.data(), inputs, descs.data() + inputs, outputs)) return 3;
  constexpr size_t GUARD = 4096, ALIGNED = 256;
  const size_t bytes = static_cast<size_t>(workspace_bytes), room = (bytes + GUARD + ALIGNED - 1) / ALIGNED * ALIGNED;
  auto* workspace = static_cast<unsigned char*>(std::aligned_alloc(ALIGNED, room));
  std::memset(workspace, 0xA5, room);
  int failed = one->enqueue(descs.data(), descs.data() + inputs, in, out, workspace, nullptr) ? 4 : 0;
  for (size_t i = bytes; i < room && !failed; ++i)
    if (workspace[i] != 0xA5) failed = 5;
  std::free(workspace);
  return failed;
}

}  // extern "C"
