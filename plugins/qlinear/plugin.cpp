// vditc.QLinear for TensorRT: op.py has the operator, native/vditc_plugins.h what computes it.
#include "tensorrt/base.h"
#include "tensorrt/creators.h"

namespace vditc::tensorrt {
namespace {

using nvinfer1::DataType;

constexpr int32_t BLOCK = 32;  // of packed weights and of packed activations: vditc.plugins.packing

// Field for field op.QLinear.
struct QLinearAttributes {
  int32_t n = 0, k = 0, bits = 0, unsigned_weights = 0, activation_bits = 0, packed = 0, layout = 0, group = 0, rank = 0, low_rank = 0, bias = 0;
  int32_t activation = 0;  // vditc_activation
  int32_t gated = 0;
  int32_t output = 0;  // vditc_float_type

  template <class Visitor>
  void visit(Visitor& visitor) {
    visitor.number("n", n, 1, INT32_MAX);
    visitor.number("k", k, 1, INT32_MAX);
    visitor.choice("bits", bits, {8, 4, 3});
    visitor.flag("unsigned", unsigned_weights);
    visitor.choice("activation_bits", activation_bits, {8, 6, 4, 3});
    visitor.flag("packed", packed);
    visitor.choice("layout", layout, {VDITC_LAYOUT});
    visitor.choice("group", group, {0, 128});
    visitor.number("rank", rank, 0, 4);
    visitor.choice("low_rank", low_rank, {0, 16, 32, 48, 64});
    visitor.flag("bias", bias);
    visitor.word("activation", activation, {"none", "gelu", "gelu_tanh"});
    visitor.flag("gated", gated);
    visitor.word("output", output, {"fp32", "fp16", "bf16"});
  }

  // What attributes have to do with each other, as op.QLinear says.
  void check() const {
    if (unsigned_weights && bits != 4) throw BadPlugin(text("unsigned weights of %d bits; wanted bits 4", bits));
    if (packed && (activation_bits > 4 || k % BLOCK))
      throw BadPlugin(text("packed, activation_bits %d, k %d; wanted 4 or 3 bits and a multiple of %d", activation_bits, k, BLOCK));
    if (group && k % group) throw BadPlugin(text("group %d, k %d; wanted a multiple of %d", group, k, group));
  }
};

class QLinear : public OperatorPlugin<QLinear, QLinearAttributes, vditc_qlinear_problem> {
 public:
  static constexpr const char* NAME = "QLinear";

  QLinear(const Attributes& attributes, std::string layer, int64_t workspace_bytes)
      : OperatorPlugin(attributes, std::move(layer), workspace_bytes) {
    const DataType float32 = DataType::kFLOAT, output = float_type(a_.output);
    const DataType branch = a_.output == VDITC_BF16 ? DataType::kBF16 : DataType::kHALF;
    const auto add = [this](bool there, const char* name, DataType type) {
      if (there) inputs_.push_back({name, Port::OF_TYPE, type});
    };
    add(true, "x", DataType::kINT8);
    add(true, "scale", float32);
    add(true, "weight", DataType::kINT8);
    add(true, "weight_scale", float32);
    add(a_.rank, "left", float32);
    add(a_.rank, "right", float32);
    add(a_.low_rank, "down", branch);
    add(a_.low_rank, "up", branch);
    add(a_.bias, "b", float32);
    add(a_.gated, "gate", output);
    add(a_.gated, "residual", output);
    outputs_.push_back({"y", Port::OF_TYPE, output});
    problem_.n = a_.n;
    problem_.k = a_.k;
    problem_.bits = a_.bits;
    problem_.unsigned_weights = a_.unsigned_weights;
    problem_.activation_bits = a_.activation_bits;
    problem_.packed = a_.packed;
    problem_.layout = a_.layout;
    problem_.group = a_.group;
    problem_.rank = a_.rank;
    problem_.low_rank = a_.low_rank;
    problem_.bias = a_.bias;
    problem_.activation = a_.activation;
    problem_.gated = a_.gated;
    problem_.output = a_.output;
  }

 protected:
  void express(const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out, nvinfer1::IExprBuilder& builder) const override {
    const nvinfer1::IDimensionExpr* last = in[0].d[in[0].nbDims - 1];
    if (last->isConstant() && last->getConstantValue() != stored_k())
      throw BadPlugin(text("x [..., %lld]; wanted [..., %lld]", static_cast<long long>(last->getConstantValue()), static_cast<long long>(stored_k())));
    out[0] = in[0];
    out[0].d[in[0].nbDims - 1] = builder.constant(a_.n);
  }

  int64_t resolve(const std::vector<Shape>& in, DataType) override {
    size_t at = 0;
    const Shape& x = in[at++];
    want("x", x, per_token(x, stored_k()));
    const Shape rows = leading(x);
    problem_.m = elements(rows);
    const Shape& scale = in[at++];
    problem_.scale_per_row = elements(scale) != 1;
    if (problem_.scale_per_row) want("scale", scale, per_token(x, 1));
    const int64_t n = a_.n, blocks = ((n + BLOCK - 1) / BLOCK) * ((static_cast<int64_t>(a_.k) + BLOCK - 1) / BLOCK);
    want("weight", in[at++], {blocks * BLOCK * BLOCK * a_.bits / 8});
    want("weight_scale", in[at++], a_.group ? Shape{a_.k / a_.group, n} : Shape{n});
    if (a_.rank) {
      want("left", in[at++], per_token(x, a_.rank));
      want("right", in[at++], {a_.rank, n});
    }
    if (a_.low_rank) {
      want("down", in[at++], per_token(x, a_.low_rank));
      want("up", in[at++], {a_.low_rank, n});
    }
    if (a_.bias) want("b", in[at++], {n});
    if (a_.gated) {
      problem_.gate_rows = broadcast("gate", in[at++], rows, n);
      problem_.residual_rows = broadcast("residual", in[at++], rows, n);
    }
    return problem_.m;
  }

  std::vector<int32_t> tactics(int32_t sm) const override {
    int32_t count = 0;
    check(vditc_qlinear_tactics(&problem_, sm, nullptr, 0, &count));
    std::vector<int32_t> ids(static_cast<size_t>(count));
    check(vditc_qlinear_tactics(&problem_, sm, ids.data(), count, &count));
    if (ids.empty()) throw BadPlugin(text("no tactic for %s on sm_%d", described(a_).c_str(), sm));
    return ids;
  }
  const char* tactic_name(int32_t tactic) const override {
    const char* name = vditc_qlinear_tactic_name(tactic);
    return name ? name : "an unknown tactic";
  }
  size_t workspace(int32_t tactic, int32_t sm) const override {
    size_t bytes = 0;
    check(vditc_qlinear_workspace(&problem_, tactic, sm, &bytes));
    return bytes;
  }

  vditc_status launch(const void* const* in, void* const* out, int32_t tactic, void* workspace, size_t bytes, void* stream) const override {
    const void* const* next = in;
    vditc_qlinear_tensors t{};
    t.x = static_cast<const int8_t*>(*next++);
    t.scale = static_cast<const float*>(*next++);
    t.weight = static_cast<const int8_t*>(*next++);
    t.weight_scale = static_cast<const float*>(*next++);
    if (a_.rank) {
      t.left = static_cast<const float*>(*next++);
      t.right = static_cast<const float*>(*next++);
    }
    if (a_.low_rank) {
      t.down = *next++;
      t.up = *next++;
    }
    if (a_.bias) t.bias = static_cast<const float*>(*next++);
    if (a_.gated) {
      t.gate = *next++;
      t.residual = *next++;
    }
    t.y = out[0];
    return vditc_qlinear_launch(&problem_, &t, tactic, workspace, bytes, stream);
  }

 private:
  int64_t stored_k() const { return a_.packed ? a_.k / 2 : a_.k; }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* qlinear_creator() { return creator_of<QLinear>(); }

}  // namespace vditc::tensorrt
