// vditc.QAttention for TensorRT: op.py has the operator, native/vditc_plugins.h what computes it.
#include "tensorrt/base.h"
#include "tensorrt/creators.h"

namespace vditc::tensorrt {
namespace {

using nvinfer1::DataType;

// Field for field op.QAttention.
struct QAttentionAttributes {
  float scale = 1;
  int32_t smooth_k = 0, mask = 0, q_by_token = 0, k_by_token = 0, v_by_token = 0, y_by_token = 0;

  template <class Visitor>
  void visit(Visitor& visitor) {
    visitor.real("scale", scale);
    visitor.flag("smooth_k", smooth_k);
    visitor.flag("mask", mask);
    visitor.flag("q_by_token", q_by_token);
    visitor.flag("k_by_token", k_by_token);
    visitor.flag("v_by_token", v_by_token);
    visitor.flag("y_by_token", y_by_token);
  }

  void check() const {
    if (!(scale >= 1e-20f && scale <= 1e20f)) throw BadPlugin(text("scale %g; wanted a number from 1e-20 to 1e20", static_cast<double>(scale)));
  }
};

// [batch, heads, tokens, channels], or by token [batch, tokens, heads, channels].
struct Heads {
  int64_t batch, heads, tokens, channels;
  Heads(const char* name, const Shape& shape, bool by_token) {
    if (shape.size() != 4) throw BadPlugin(text("%s %s; wanted 4 axes", name, said(shape).c_str()));
    batch = shape[0];
    heads = shape[by_token ? 2 : 1];
    tokens = shape[by_token ? 1 : 2];
    channels = shape[3];
  }
};

// Elements from one batch, token, head to the next.
void strides(int64_t (&out)[3], const Heads& of, bool by_token) {
  out[0] = of.heads * of.tokens * of.channels;
  out[1] = by_token ? of.heads * of.channels : of.channels;
  out[2] = by_token ? of.channels : of.tokens * of.channels;
}

class QAttention : public OperatorPlugin<QAttention, QAttentionAttributes, vditc_qattention_problem> {
 public:
  static constexpr const char* NAME = "QAttention";

  QAttention(const Attributes& attributes, std::string layer, int64_t workspace_bytes)
      : OperatorPlugin(attributes, std::move(layer), workspace_bytes) {
    for (const char* name : {"q", "k", "v"}) inputs_.push_back({name, inputs_.empty() ? Port::FLOATING : Port::AS_FIRST});
    if (a_.mask) inputs_.push_back({"mask", Port::AS_FIRST});
    outputs_.push_back({"y", Port::AS_FIRST});
    problem_.smooth_k = a_.smooth_k;
    problem_.mask = a_.mask;
    problem_.scale = a_.scale;
  }

 protected:
  void express(const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out, nvinfer1::IExprBuilder&) const override {
    if (in[0].nbDims != 4) throw BadPlugin(text("q of %d axes; wanted 4", in[0].nbDims));
    out[0] = in[0];
    if (a_.q_by_token != a_.y_by_token) {
      out[0].d[1] = in[0].d[2];
      out[0].d[2] = in[0].d[1];
    }
  }

  int64_t resolve(const std::vector<Shape>& in, DataType first) override {
    if (first == DataType::kFLOAT) throw BadPlugin("q is float32; wanted float16 or bfloat16");
    const Heads q("q", in[0], a_.q_by_token), k("k", in[1], a_.k_by_token), v("v", in[2], a_.v_by_token);
    const auto shaped = [&](int64_t tokens, bool by_token) {
      return by_token ? Shape{q.batch, tokens, q.heads, q.channels} : Shape{q.batch, q.heads, tokens, q.channels};
    };
    want("k", in[1], shaped(k.tokens, a_.k_by_token));
    want("v", in[2], shaped(k.tokens, a_.v_by_token));
    if (k.tokens < 1) throw BadPlugin(text("k %s; wanted one key at least", said(in[1]).c_str()));
    if (q.channels < 8 || q.channels > 128 || q.channels % 8)
      throw BadPlugin(text("heads of %lld channels; wanted a multiple of 8 up to 128", static_cast<long long>(q.channels)));
    if (a_.mask && in[3] != Shape{1, 1, 1, k.tokens}) want("mask", in[3], {q.batch, 1, 1, k.tokens});
    problem_.batch = count("batch", q.batch);
    problem_.heads = count("heads", q.heads);
    problem_.head_dim = static_cast<int32_t>(q.channels);
    problem_.queries = q.tokens;
    problem_.keys = k.tokens;
    problem_.type = float_number(first);
    strides(problem_.q_strides, q, a_.q_by_token);
    strides(problem_.k_strides, k, a_.k_by_token);
    strides(problem_.v_strides, v, a_.v_by_token);
    strides(problem_.y_strides, q, a_.y_by_token);
    problem_.mask_stride = a_.mask && in[3][0] > 1 ? k.tokens : 0;
    return elements({q.batch, q.heads, q.tokens});
  }

  size_t workspace(int32_t, int32_t) const override {
    size_t bytes = 0;
    check(vditc_qattention_workspace(&problem_, &bytes));
    return bytes;
  }

  vditc_status launch(const void* const* in, void* const* out, int32_t, void* workspace, size_t bytes, void* stream) const override {
    vditc_qattention_tensors t{};
    t.q = in[0];
    t.k = in[1];
    t.v = in[2];
    if (a_.mask) t.mask = in[3];
    t.y = out[0];
    return vditc_qattention_launch(&problem_, &t, workspace, bytes, stream);
  }

 private:
  static int32_t count(const char* name, int64_t found) {
    if (found < 0 || found > INT32_MAX) throw BadPlugin(text("%s %lld; wanted a number of 32 bits", name, static_cast<long long>(found)));
    return static_cast<int32_t>(found);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* qattention_creator() { return creator_of<QAttention>(); }

}  // namespace vditc::tensorrt
