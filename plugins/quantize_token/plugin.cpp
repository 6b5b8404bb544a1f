// vditc.QuantizeToken for TensorRT: op.py has the operator, native/vditc_plugins.h what computes it.
#include "tensorrt/base.h"
#include "tensorrt/creators.h"

namespace vditc::tensorrt {
namespace {

using nvinfer1::DataType;

constexpr int32_t BLOCK = 32;  // of packed codes: vditc.plugins.packing

// Field for field op.QuantizeToken.
struct QuantizeTokenAttributes {
  int32_t bits = 0, given = 0, clip = 0, packed = 0, gated = 0;
  int32_t activation = 0, norm = 0;  // vditc_activation, vditc_norm
  float epsilon = 0;
  int32_t weight = 0, bias = 0, gain = 0, shift = 0, center = 0, balance = 0, rotation = 0, total = 0, shares = 0;

  template <class Visitor>
  void visit(Visitor& visitor) {
    visitor.choice("bits", bits, {8, 6, 4, 3});
    visitor.word("scaled", given, {"token", "given"});
    visitor.flag("clip", clip);
    visitor.flag("packed", packed);
    visitor.flag("gated", gated);
    visitor.word("activation", activation, {"none", "gelu", "gelu_tanh"});
    visitor.word("norm", norm, {"none", "layer", "rms"});
    visitor.real("epsilon", epsilon);
    visitor.flag("weight", weight);
    visitor.flag("bias", bias);
    visitor.flag("gain", gain);
    visitor.flag("shift", shift);
    visitor.flag("center", center);
    visitor.flag("balance", balance);
    visitor.choice("rotation", rotation, {0, 256});
    visitor.flag("total", total);
    visitor.number("shares", shares, 0, 4);
  }

  // What attributes have to do with each other, as op.QuantizeToken says.
  void check() const {
    if ((norm != VDITC_NO_NORM) != (epsilon > 0))
      throw BadPlugin(text("%s with epsilon %g; wanted a positive epsilon of a norm", norm ? "a norm" : "no norm", static_cast<double>(epsilon)));
    if (!norm && (weight || bias)) throw BadPlugin("weight or bias without a norm");
    if (norm && activation) throw BadPlugin("activation in front of a norm; wanted one of them");
    if (given && clip) throw BadPlugin("a clip of a given scale; wanted scaled token");
    if (packed && bits > 4) throw BadPlugin(text("packed codes of %d bits; wanted 4 or 3", bits));
  }
};

class QuantizeToken : public OperatorPlugin<QuantizeToken, QuantizeTokenAttributes, vditc_quantize_token_problem> {
 public:
  static constexpr const char* NAME = "QuantizeToken";

  QuantizeToken(const Attributes& attributes, std::string layer, int64_t workspace_bytes)
      : OperatorPlugin(attributes, std::move(layer), workspace_bytes) {
    static const char* const SHARES[] = {"share0", "share1", "share2", "share3"};
    const auto add = [](std::vector<Port>& ports, bool there, const char* name, Port::Kind kind = Port::OF_TYPE, DataType type = DataType::kFLOAT) {
      if (there) ports.push_back({name, kind, type});
    };
    add(inputs_, true, "x", Port::FLOATING);
    add(inputs_, a_.gated, "gate", Port::AS_FIRST);
    add(inputs_, a_.gated, "residual", Port::AS_FIRST);
    add(inputs_, a_.weight, "weight");
    add(inputs_, a_.bias, "bias");
    add(inputs_, a_.gain, "gain");
    add(inputs_, a_.shift, "shift");
    add(inputs_, a_.center, "center");
    add(inputs_, a_.balance, "balance");
    add(inputs_, a_.clip, "clip");
    add(inputs_, a_.given, "given");
    add(inputs_, a_.shares, "alpha");
    add(outputs_, true, "codes", Port::OF_TYPE, DataType::kINT8);
    add(outputs_, !a_.given, "scale");
    add(outputs_, a_.total, "total");
    for (int32_t r = 0; r < a_.shares; ++r) add(outputs_, true, SHARES[r]);
    add(outputs_, a_.gated, "sum", Port::AS_FIRST);
    problem_.bits = a_.bits;
    problem_.packed = a_.packed;
    problem_.given = a_.given;
    problem_.clip = a_.clip;
    problem_.gated = a_.gated;
    problem_.activation = a_.activation;
    problem_.norm = a_.norm;
    problem_.epsilon = a_.epsilon;
    problem_.weight = a_.weight;
    problem_.bias = a_.bias;
    problem_.gain = a_.gain;
    problem_.shift = a_.shift;
    problem_.center = a_.center;
    problem_.balance = a_.balance;
    problem_.rotation = a_.rotation;
    problem_.total = a_.total;
    problem_.shares = a_.shares;
  }

 protected:
  void express(const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out, nvinfer1::IExprBuilder& builder) const override {
    const int32_t last = in[0].nbDims - 1;
    if (in[0].d[last]->isConstant()) check_channels(in[0].d[last]->getConstantValue());
    for (size_t i = 0; i < outputs_.size(); ++i) {
      out[i] = in[0];
      const bool codes = i == 0, sum = a_.gated && i + 1 == outputs_.size();
      if (!codes && !sum) out[i].d[last] = builder.constant(1);
    }
    if (a_.packed) out[0].d[last] = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *in[0].d[last], *builder.constant(2));
  }

  int64_t resolve(const std::vector<Shape>& in, DataType first) override {
    size_t at = 0;
    const Shape& x = in[at++];
    const Shape rows = leading(x);
    const int64_t k = x.back();
    check_channels(k);
    problem_.input = float_number(first);
    problem_.k = static_cast<int32_t>(k);
    problem_.m = elements(rows);
    if (a_.gated) {
      problem_.gate_rows = broadcast("gate", in[at++], rows, k);
      problem_.residual_rows = broadcast("residual", in[at++], rows, k);
    }
    if (a_.weight) want("weight", in[at++], {k});
    if (a_.bias) want("bias", in[at++], {k});
    if (a_.gain) problem_.gain_rows = broadcast("gain", in[at++], rows, k);
    if (a_.shift) problem_.shift_rows = broadcast("shift", in[at++], rows, k);
    if (a_.center) want("center", in[at++], {k});
    if (a_.balance) want("balance", in[at++], {k});
    if (a_.clip) want_one("clip", in[at++]);
    if (a_.given) want_one("given", in[at++]);
    if (a_.shares) want("alpha", in[at++], {a_.shares, k});
    return problem_.m;
  }

  vditc_status launch(const void* const* in, void* const* out, int32_t, void*, size_t, void* stream) const override {
    const void* const* next = in;
    const auto floats = [&](bool there) { return there ? static_cast<const float*>(*next++) : nullptr; };
    vditc_quantize_token_tensors t{};
    t.x = *next++;
    if (a_.gated) {
      t.gate = *next++;
      t.residual = *next++;
    }
    t.weight = floats(a_.weight);
    t.bias = floats(a_.bias);
    t.gain = floats(a_.gain);
    t.shift = floats(a_.shift);
    t.center = floats(a_.center);
    t.balance = floats(a_.balance);
    t.clip = floats(a_.clip);
    t.given = floats(a_.given);
    t.alpha = floats(a_.shares);
    void* const* result = out;
    t.codes = static_cast<int8_t*>(*result++);
    if (!a_.given) t.scale = static_cast<float*>(*result++);
    if (a_.total) t.total = static_cast<float*>(*result++);
    for (int32_t r = 0; r < a_.shares; ++r) t.share[r] = static_cast<float*>(*result++);
    if (a_.gated) t.sum = *result++;
    return vditc_quantize_token_launch(&problem_, &t, stream);
  }

 private:
  void check_channels(int64_t k) const {
    if (k < 1 || k > INT32_MAX) throw BadPlugin(text("x [..., %lld]; wanted a positive number of channels of 32 bits", static_cast<long long>(k)));
    if (a_.rotation && k % a_.rotation)
      throw BadPlugin(text("x [..., %lld] with rotation %d; wanted a multiple of it", static_cast<long long>(k), a_.rotation));
    if (a_.packed && k % BLOCK) throw BadPlugin(text("x [..., %lld], packed; wanted a multiple of %d", static_cast<long long>(k), BLOCK));
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* quantize_token_creator() { return creator_of<QuantizeToken>(); }

}  // namespace vditc::tensorrt
