// What all plugins of the library have in common: one object is the plugin and its three capabilities, as IPluginV3 wants them.
//
// Weights are inputs, so that engines can be refitted. A plugin gets its problem three times: at the greatest shapes of a profile (the
// workspace), at the best ones (tactics), and at the shapes of a run (onShapeChange). Nothing is allocated when an engine runs.
#pragma once
#include <exception>
#include <string>
#include <vector>

#include "tensorrt/fields.h"
#include "tensorrt/shapes.h"

namespace vditc::tensorrt {

// A tensor of an operator: of one type, of any floating-point type, or of the type of the first input.
struct Port {
  enum Kind { OF_TYPE, FLOATING, AS_FIRST };
  const char* name;
  Kind kind;
  nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;  // of OF_TYPE
};

nvinfer1::DataType float_type(int32_t type);            // of a vditc_float_type
int32_t float_number(nvinfer1::DataType type);          // the inverse; BadPlugin for another type

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  // `workspace_bytes`: what the engine was built with, -1 when it is not known. `attributes`: as Describer writes them.
  Plugin(const char* op, std::string layer, std::string attributes, int64_t workspace_bytes);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return op_; }
  const char* getPluginVersion() const noexcept override { return VERSION; }
  const char* getPluginNamespace() const noexcept override { return NAMESPACE; }

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t ins, const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t outs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t outs, const nvinfer1::DataType* in, int32_t ins) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t ins, const nvinfer1::DimsExprs* shape_inputs, int32_t shapes,
                          nvinfer1::DimsExprs* out, int32_t outs, nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t at, const nvinfer1::DynamicPluginTensorDesc* in_out, int32_t ins, int32_t outs) noexcept override;
  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(outputs().size()); }
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t ins, const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t outs) const noexcept override;
  int32_t getNbTactics() noexcept override { return static_cast<int32_t>(offered_.size()); }
  int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override;
  const char* getTimingCacheID() noexcept override { return attributes_.c_str(); }
  const char* getMetadataString() noexcept override { return attributes_.c_str(); }

  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t ins, const nvinfer1::PluginTensorDesc* out, int32_t outs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out, const void* const* inputs, void* const* outputs,
                  void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 protected:
  Plugin(const Plugin& other);

  // What an operator says of itself.
  virtual Plugin* copy() const = 0;
  virtual const std::vector<Port>& inputs() const = 0;
  virtual const std::vector<Port>& outputs() const = 0;
  virtual void write(Writer& writer) const = 0;
  // Shapes of the outputs. `in` has the right number of tensors, the first of one axis at least.
  virtual void express(const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out, nvinfer1::IExprBuilder& builder) const = 0;
  // Keeps the problem of these shapes; BadPlugin when they do not fit. Returns its rows.
  virtual int64_t resolve(const std::vector<Shape>& in, nvinfer1::DataType first) = 0;
  // Of the problem that was resolved last. An operator without tactics has one, 0, that it does not list.
  virtual std::vector<int32_t> tactics(int32_t) const { return {}; }
  virtual const char* tactic_name(int32_t) const { return "its kernel"; }
  virtual size_t workspace(int32_t, int32_t) const { return 0; }
  virtual vditc_status launch(const void* const* in, void* const* out, int32_t tactic, void* workspace, size_t bytes, void* stream) const = 0;

  // BadPlugin with the library's message unless `status` is VDITC_OK.
  static void check(vditc_status status);

 private:
  using Dynamic = nvinfer1::DynamicPluginTensorDesc;
  void complain(const std::string& what) const;
  void check_types(const Dynamic* in, int32_t ins) const;
  void configure(const Dynamic* in);
  size_t needed() const;
  int32_t choose();

  const char* op_;
  std::string layer_;
  std::string attributes_;
  int64_t workspace_bytes_;
  std::vector<int32_t> offered_;  // tactics that TensorRT may time
  int32_t tactic_ = 0;            // TensorRT's choice, 0: ours
  int32_t chosen_ = -1;           // for the shapes of the run, -1: not yet
  int32_t sm_ = -1;               // of the device that it runs on, -1: not asked yet
  int64_t rows_ = 0;
  bool ran_ = false;
  Writer written_;
};

// What the operators' plugins, `Made`, keep: attributes, tensors and the problem of the C interface.
template <class Made, class Attributes_, class Problem>
class OperatorPlugin : public Plugin {
 public:
  using Attributes = Attributes_;

 protected:
  OperatorPlugin(const Attributes& attributes, std::string layer, int64_t workspace_bytes)
      : Plugin(Made::NAME, std::move(layer), described(attributes), workspace_bytes), a_(attributes) {
    problem_.struct_bytes = sizeof problem_;
  }

  Plugin* copy() const override { return new Made(static_cast<const Made&>(*this)); }
  const std::vector<Port>& inputs() const override { return inputs_; }
  const std::vector<Port>& outputs() const override { return outputs_; }
  void write(Writer& writer) const override { Attributes(a_).visit(writer); }

  static std::string described(Attributes attributes) {
    Describer describer;
    describer.said = text("%s.%s/%s abi %d: ", NAMESPACE, Made::NAME, VERSION, VDITC_ABI_VERSION);
    attributes.visit(describer);
    return describer.said;
  }

  Attributes a_;
  Problem problem_{};
  std::vector<Port> inputs_, outputs_;
};

// The creator of the plugin `Made`, which has a name, `Attributes` with `visit` and `check`, and a constructor of (attributes, layer, bytes).
template <class Made>
class Creator : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator() {
    typename Made::Attributes any;
    any.visit(names_);
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return names_.collection(); }
  const char* getPluginName() const noexcept override { return Made::NAME; }
  const char* getPluginVersion() const noexcept override { return VERSION; }
  const char* getPluginNamespace() const noexcept override { return NAMESPACE; }

  nvinfer1::IPluginV3* createPlugin(const char* layer, const nvinfer1::PluginFieldCollection* fields, nvinfer1::TensorRTPhase) noexcept override {
    try {
      Reader reader(fields);
      typename Made::Attributes attributes;
      attributes.visit(reader);
      int64_t workspace_bytes;
      reader.stored("workspace_bytes", workspace_bytes);
      reader.finish();
      attributes.check();
      return new Made(attributes, layer ? layer : "", workspace_bytes);
    } catch (const std::exception& error) {
      log(Severity::FAULT, text("%s.%s, layer %s: %s", NAMESPACE, Made::NAME, layer ? layer : "?", error.what()));
      return nullptr;
    }
  }

 private:
  Names names_;
};

template <class Made>
nvinfer1::IPluginCreatorInterface* creator_of() {
  static auto* const one = new Creator<Made>;  // a registry may outlive this library's static objects
  return one;
}

}  // namespace vditc::tensorrt
