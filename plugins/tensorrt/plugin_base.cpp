#include <algorithm>

#include "tensorrt/base.h"

namespace vditc::tensorrt {
namespace {

using nvinfer1::DataType;

const char* type_name(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return "float32";
    case DataType::kHALF: return "float16";
    case DataType::kBF16: return "bfloat16";
    case DataType::kINT8: return "int8";
    case DataType::kINT32: return "int32";
    case DataType::kUINT8: return "uint8";
    case DataType::kINT4: return "int4";
    default: return "another type";
  }
}

bool floating(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16; }

bool holds(const Port& port, DataType type, DataType first) {
  return port.kind == Port::FLOATING ? floating(type) : type == (port.kind == Port::AS_FIRST ? first : port.type);
}

std::string names(const std::vector<Port>& ports) {
  std::string out;
  for (const Port& port : ports) out += (out.empty() ? "" : ", ") + std::string(port.name);
  return out;
}

// Compute capabilities that a library may have code for: an engine that is built without a GPU has to fit on all of them.
constexpr int32_t KNOWN_SM[] = {75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121};

}  // namespace

DataType float_type(int32_t type) { return type == VDITC_FP32 ? DataType::kFLOAT : type == VDITC_FP16 ? DataType::kHALF : DataType::kBF16; }

int32_t float_number(DataType type) {
  if (!floating(type)) throw BadPlugin(text("%s; wanted float32, float16 or bfloat16", type_name(type)));
  return type == DataType::kFLOAT ? VDITC_FP32 : type == DataType::kHALF ? VDITC_FP16 : VDITC_BF16;
}

Plugin::Plugin(const char* op, std::string layer, std::string attributes, int64_t workspace_bytes)
    : op_(op), layer_(std::move(layer)), attributes_(std::move(attributes)), workspace_bytes_(workspace_bytes) {}

// A copy has said nothing and asked for no device yet. Its fields to serialize are its own.
Plugin::Plugin(const Plugin& other)
    : IPluginV3(other),
      IPluginV3OneCore(other),
      IPluginV3OneBuild(other),
      IPluginV3OneRuntime(other),
      op_(other.op_),
      layer_(other.layer_),
      attributes_(other.attributes_),
      workspace_bytes_(other.workspace_bytes_),
      offered_(other.offered_),
      tactic_(other.tactic_),
      rows_(other.rows_) {}

void Plugin::complain(const std::string& what) const { log(Severity::FAULT, text("%s.%s, layer %s: %s", NAMESPACE, op_, layer_.c_str(), what.c_str())); }

void Plugin::check(vditc_status status) {
  if (status != VDITC_OK) throw BadPlugin(vditc_last_error());
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  try {
    return copy();
  } catch (const std::exception& error) {
    complain(error.what());
    return nullptr;
  }
}

void Plugin::check_types(const Dynamic* in, int32_t ins) const {
  if (static_cast<size_t>(ins) != inputs().size())
    throw BadPlugin(text("%d inputs; wanted %zu: %s", ins, inputs().size(), names(inputs()).c_str()));
  for (size_t i = 0; i < inputs().size(); ++i) {
    const Port& port = inputs()[i];
    const DataType first = in[0].desc.type;
    if (holds(port, in[i].desc.type, first)) continue;
    const char* wanted = port.kind == Port::FLOATING ? "float32, float16 or bfloat16" : type_name(port.kind == Port::AS_FIRST ? first : port.type);
    throw BadPlugin(text("%s is %s; wanted %s", port.name, type_name(in[i].desc.type), wanted));
  }
}

bool Plugin::supportsFormatCombination(int32_t at, const Dynamic* in_out, int32_t ins, int32_t outs) noexcept {
  if (static_cast<size_t>(ins) != inputs().size() || static_cast<size_t>(outs) != outputs().size() || at < 0 || at >= ins + outs) return false;
  const Port& port = at < ins ? inputs()[static_cast<size_t>(at)] : outputs()[static_cast<size_t>(at - ins)];
  return in_out[at].desc.format == nvinfer1::TensorFormat::kLINEAR && holds(port, in_out[at].desc.type, in_out[0].desc.type);
}

int32_t Plugin::getOutputDataTypes(DataType* out, int32_t outs, const DataType* in, int32_t ins) const noexcept {
  if (static_cast<size_t>(outs) != outputs().size() || static_cast<size_t>(ins) != inputs().size()) {
    complain(text("%d inputs and %d outputs; wanted %s and %s", ins, outs, names(inputs()).c_str(), names(outputs()).c_str()));
    return 1;
  }
  for (size_t i = 0; i < outputs().size(); ++i) out[i] = outputs()[i].kind == Port::AS_FIRST ? in[0] : outputs()[i].type;
  return 0;
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* in, int32_t ins, const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* out, int32_t outs,
                                nvinfer1::IExprBuilder& builder) noexcept {
  try {
    if (static_cast<size_t>(ins) != inputs().size() || static_cast<size_t>(outs) != outputs().size())
      throw BadPlugin(text("%d inputs and %d outputs; wanted %s and %s", ins, outs, names(inputs()).c_str(), names(outputs()).c_str()));
    if (in[0].nbDims < 1) throw BadPlugin("x is a scalar; wanted [..., K]");
    express(in, out, builder);
    return 0;
  } catch (const std::exception& error) {
    complain(error.what());
    return 1;
  }
}

int32_t Plugin::configurePlugin(const Dynamic* in, int32_t ins, const Dynamic*, int32_t) noexcept {
  try {
    check_types(in, ins);
    configure(in);
    return 0;
  } catch (const std::exception& error) {
    complain(error.what());
    return 1;
  }
}

void Plugin::configure(const Dynamic* in) {
  std::vector<Shape> best, greatest;
  for (size_t i = 0; i < inputs().size(); ++i) {
    best.push_back(shape_of(in[i].opt));
    greatest.push_back(shape_of(in[i].max));
  }
  const int64_t most = resolve(greatest, in[0].desc.type);
  workspace_bytes_ = static_cast<int64_t>(needed());
  // Without a device nothing is timed, and an engine of TensorRT-RTX runs on other devices than this one: the tactic is then chosen when
  // the engine runs.
  const int32_t sm = is_rtx() ? -1 : vditc_device_sm();
  rows_ = resolve(best, in[0].desc.type);
  offered_ = sm < 0 ? std::vector<int32_t>{} : tactics(sm);
  std::string listed;
  for (const int32_t one : offered_) listed += (listed.empty() ? "" : ", ") + std::string(tactic_name(one));
  log(Severity::INFO, text("%s.%s, layer %s: %lld rows, at most %lld; tactics: %s", NAMESPACE, op_, layer_.c_str(), static_cast<long long>(rows_),
                           static_cast<long long>(most), sm < 0 ? "chosen when it runs" : listed.empty() ? tactic_name(0) : listed.c_str()));
}

// Bytes that the resolved problem may take: on this device, or on any where the engine is for others.
size_t Plugin::needed() const {
  const int32_t sm = is_rtx() ? -1 : vditc_device_sm();
  if (sm >= 0) return workspace(0, sm);
  size_t most = 0;
  bool any = false;
  for (const int32_t known : KNOWN_SM) {
    try {
      most = std::max(most, workspace(0, known));
      any = true;
    } catch (const BadPlugin&) {  // the library has no code for that one
    }
  }
  if (!any) throw BadPlugin(vditc_last_error());
  return most;
}

size_t Plugin::getWorkspaceSize(const Dynamic*, int32_t, const Dynamic*, int32_t) const noexcept {
  return workspace_bytes_ > 0 ? static_cast<size_t>(workspace_bytes_) : 0;
}

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
  std::copy_n(offered_.begin(), std::min(static_cast<size_t>(std::max(count, 0)), offered_.size()), tactics);
  return 0;
}

int32_t Plugin::setTactic(int32_t tactic) noexcept {
  tactic_ = tactic;
  chosen_ = -1;
  return 0;
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t ins, const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
  try {
    if (static_cast<size_t>(ins) != inputs().size())
      throw BadPlugin(text("%d inputs; wanted %zu: %s", ins, inputs().size(), names(inputs()).c_str()));
    std::vector<Shape> shapes;
    for (int32_t i = 0; i < ins; ++i) shapes.push_back(shape_of(in[i].dims));
    rows_ = resolve(shapes, in[0].type);
    chosen_ = -1;
    return 0;
  } catch (const std::exception& error) {
    complain(error.what());
    return 1;
  }
}

// The tactic of this run: TensorRT's where it runs here, else the library's best.
int32_t Plugin::choose() {
  if (sm_ < 0) sm_ = vditc_device_sm();
  if (sm_ < 0) throw BadPlugin(vditc_last_error());
  const std::vector<int32_t> all = tactics(sm_);
  if (all.empty()) return 0;
  if (std::find(all.begin(), all.end(), tactic_) != all.end()) return tactic_;
  if (tactic_ != 0)
    log(Severity::WARNING, text("%s.%s, layer %s: the engine's tactic %d does not run on sm_%d; taken: %s", NAMESPACE, op_, layer_.c_str(), tactic_,
                                sm_, tactic_name(all[0])));
  return all[0];
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc*, const nvinfer1::PluginTensorDesc*, const void* const* in, void* const* out, void* workspace,
                        cudaStream_t stream) noexcept {
  try {
    if (rows_ == 0) return 0;
    if (chosen_ < 0) chosen_ = choose();
    if (!ran_)
      log(Severity::INFO, text("%s.%s, layer %s: %lld rows by %s on sm_%d", NAMESPACE, op_, layer_.c_str(), static_cast<long long>(rows_),
                               tactic_name(chosen_), sm_));
    ran_ = true;
    const size_t bytes = workspace_bytes_ >= 0 ? static_cast<size_t>(workspace_bytes_) : this->workspace(chosen_, sm_);
    check(launch(in, out, chosen_, workspace, bytes, stream));
    return 0;
  } catch (const std::exception& error) {
    complain(error.what());
    return 1;
  }
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  try {
    written_ = Writer();
    write(written_);
    if (workspace_bytes_ >= 0) written_.stored("workspace_bytes", workspace_bytes_);
    return written_.collection();
  } catch (const std::exception& error) {
    complain(error.what());
    return nullptr;
  }
}

}  // namespace vditc::tensorrt
