// The C functions of vditc.QAttention: three small kernels prepare k and the mask in the workspace, one computes attention.
#include <cstdint>
#include <utility>

#include "native/launch.h"
#include "qattention/prepare.h"

namespace vditc::qattention {
namespace {

constexpr int64_t MOST_TOKENS = 1 << 30, MOST_BLOCKS = 65535;  // of int, with room for a tile; of a grid's y and z

// Parts of the workspace, in bytes from its beginning, each aligned to 256.
struct Workspace {
  size_t codes, scale, parts, bias, bytes;
  int64_t width, row, masks;

  explicit Workspace(const vditc_qattention_problem& p) {
    const auto pairs = static_cast<size_t>(p.batch) * static_cast<size_t>(p.heads);
    width = p.head_dim <= 64 ? 64 : 128;
    row = (p.keys + 3) / 4 * 4;
    masks = p.mask ? (p.mask_stride ? p.batch : 1) : 0;
    size_t end = 0;
    const auto take = [&end](size_t size) {
      const size_t at = end;
      end += (size + 255) / 256 * 256;
      return at;
    };
    codes = take(pairs * static_cast<size_t>(p.keys * width));
    scale = take(pairs * static_cast<size_t>(row) * sizeof(float));
    parts = take(p.smooth_k ? pairs * PARTS * 128 * sizeof(float) : 0);
    bias = take(static_cast<size_t>(masks * row) * sizeof(float));
    bytes = end;
  }
};

Status check_strides(const int64_t (&strides)[3], const int64_t (&sizes)[3], const char* name) {
  const char* const axes[3] = {"batches", "tokens", "heads"};
  for (int i = 0; i < 3; ++i)
    if (sizes[i] > 1 && strides[i] % 8)
      return fail(VDITC_BAD_ARGUMENT, "qattention: %s has %lld elements between %s; wanted a multiple of 8", name,
                  static_cast<long long>(strides[i]), axes[i]);
  return VDITC_OK;
}

Status check(const vditc_qattention_problem* p) {
  if (p == nullptr) return fail(VDITC_BAD_ARGUMENT, "qattention: no problem");
  if (p->struct_bytes != sizeof *p)
    return fail(VDITC_BAD_ARGUMENT, "qattention: a problem of %u bytes; wanted %zu: another version of vditc_plugins.h", p->struct_bytes, sizeof *p);
  if (p->head_dim < 8 || p->head_dim > 128 || p->head_dim % 8)
    return fail(VDITC_BAD_ARGUMENT, "qattention: head_dim %d; wanted a multiple of 8 up to 128", p->head_dim);
  if (p->batch < 0 || p->batch > MOST_BLOCKS || p->heads < 1 || p->heads > MOST_BLOCKS)
    return fail(VDITC_BAD_ARGUMENT, "qattention: batch %d, heads %d; wanted at most %lld of each, and a head", p->batch, p->heads,
                static_cast<long long>(MOST_BLOCKS));
  if (p->queries < 0 || p->queries > MOST_TOKENS || p->keys < 1 || p->keys > MOST_TOKENS)
    return fail(VDITC_BAD_ARGUMENT, "qattention: %lld queries, %lld keys; wanted at most 2^30 of each, and a key", static_cast<long long>(p->queries),
                static_cast<long long>(p->keys));
  if (p->type != VDITC_FP16 && p->type != VDITC_BF16) return fail(VDITC_BAD_ARGUMENT, "qattention: type %d; wanted fp16 or bf16", p->type);
  if (!(p->scale >= 1e-20f && p->scale <= 1e20f))
    return fail(VDITC_BAD_ARGUMENT, "qattention: scale %g; wanted a number from 1e-20 to 1e20", static_cast<double>(p->scale));
  for (const auto& [name, value] : {std::pair<const char*, int32_t>{"smooth_k", p->smooth_k}, {"mask", p->mask}})
    if (value != 0 && value != 1) return fail(VDITC_BAD_ARGUMENT, "qattention: %s %d; wanted 0 or 1", name, value);
  const int64_t of_q[3] = {p->batch, p->queries, p->heads}, of_k[3] = {p->batch, p->keys, p->heads};
  VDITC_TRY(check_strides(p->q_strides, of_q, "q"));
  VDITC_TRY(check_strides(p->k_strides, of_k, "k"));
  VDITC_TRY(check_strides(p->v_strides, of_k, "v"));
  VDITC_TRY(check_strides(p->y_strides, of_q, "y"));
  return VDITC_OK;
}

Status check_pointer(const void* pointer, const char* name, uintptr_t alignment) {
  if (pointer == nullptr) return fail(VDITC_BAD_ARGUMENT, "qattention: %s is null", name);
  if (reinterpret_cast<uintptr_t>(pointer) % alignment)
    return fail(VDITC_BAD_ARGUMENT, "qattention: %s is not aligned to %d bytes", name, static_cast<int>(alignment));
  return VDITC_OK;
}

Strides strides_of(const int64_t (&s)[3]) { return {s[0], s[1], s[2]}; }

// One call whose arguments were checked.
struct Call {
  const vditc_qattention_problem& p;
  const vditc_qattention_tensors& t;
  const Workspace at;
  unsigned char* const memory;
  const cudaStream_t stream;

  template <class T>
  T* part(size_t offset) const {
    return reinterpret_cast<T*>(memory + offset);
  }
  dim3 grid(int64_t blocks) const { return {static_cast<unsigned>(blocks), static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch)}; }

  template <class Element>
  Status prepare() const {
    const KeyArguments keys{t.k,    part<float>(at.parts),    part<int8_t>(at.codes), part<float>(at.scale),      strides_of(p.k_strides),
                            at.row, static_cast<int>(p.keys), p.head_dim,             static_cast<int>(at.width), p.smooth_k != 0};
    if (p.smooth_k) VDITC_TRY(launch<SumKeys<Element>>(grid(PARTS), SumKeys<Element>::SHARED, stream, keys));
    const int64_t blocks = (p.keys + QuantizeKeys<Element>::KEYS - 1) / QuantizeKeys<Element>::KEYS;
    VDITC_TRY(launch<QuantizeKeys<Element>>(grid(blocks), QuantizeKeys<Element>::SHARED, stream, keys));
    if (!p.mask) return VDITC_OK;
    const MaskArguments mask{t.mask, part<float>(at.bias), p.mask_stride, at.row, static_cast<int>(p.keys)};
    constexpr int EACH = PrepareMask<Element>::THREADS;
    return launch<PrepareMask<Element>>({static_cast<unsigned>((at.row + EACH - 1) / EACH), static_cast<unsigned>(at.masks), 1}, 0, stream, mask);
  }

  template <class Kernel>
  Status attend(int32_t* scores) const {
    Arguments a{};
    a.q = t.q;
    a.v = t.v;
    a.y = t.y;
    a.codes = part<int8_t>(at.codes);
    a.scale = part<float>(at.scale);
    a.bias = part<float>(at.bias);
    a.scores = scores;
    a.q_strides = strides_of(p.q_strides);
    a.v_strides = strides_of(p.v_strides);
    a.y_strides = strides_of(p.y_strides);
    a.row = at.row;
    a.bias_stride = at.masks > 1 ? at.row : 0;
    a.queries = static_cast<int>(p.queries);
    a.keys = static_cast<int>(p.keys);
    a.head_dim = p.head_dim;
    a.factor = p.scale * LOG2_E;
    using Shape = typename Kernel::Shape;
    return launch<Kernel>(grid((p.queries + Shape::QUERIES - 1) / Shape::QUERIES), Shape::SHARED, stream, a);
  }

  template <int WIDTH, class Element>
  Status run(int32_t* scores) const {
    VDITC_TRY(prepare<Element>());
    if (scores) return attend<Scores<WIDTH, Element>>(scores);
    return p.mask ? attend<Attention<WIDTH, Element, true>>(nullptr) : attend<Attention<WIDTH, Element, false>>(nullptr);
  }
  template <class Element>
  Status run(int32_t* scores) const {
    return at.width == 64 ? run<64, Element>(scores) : run<128, Element>(scores);
  }
};

Status run(const vditc_qattention_problem* problem, const vditc_qattention_tensors* tensors, int32_t* scores, vditc_qattention_keys* keys,
           void* workspace, size_t workspace_bytes, void* stream) {
  VDITC_TRY(check(problem));
  if (tensors == nullptr) return fail(VDITC_BAD_ARGUMENT, "qattention: no tensors");
  const Workspace at(*problem);
  if (keys) *keys = {at.codes, at.scale, at.width, at.row};
  if (problem->batch == 0 || problem->queries == 0) return VDITC_OK;
  VDITC_TRY(check_pointer(tensors->q, "q", 16));
  VDITC_TRY(check_pointer(tensors->k, "k", 16));
  if (!scores) {
    VDITC_TRY(check_pointer(tensors->v, "v", 16));
    VDITC_TRY(check_pointer(tensors->y, "y", 16));
  }
  if (problem->mask) VDITC_TRY(check_pointer(tensors->mask, "mask", 2));
  if (workspace_bytes < at.bytes)
    return fail(VDITC_WORKSPACE_TOO_SMALL, "qattention: a workspace of %zu bytes; wanted %zu", workspace_bytes, at.bytes);
  VDITC_TRY(check_pointer(workspace, "workspace", 16));
  const Call call{*problem, *tensors, at, static_cast<unsigned char*>(workspace), static_cast<cudaStream_t>(stream)};
  return problem->type == VDITC_FP16 ? call.run<Fp16>(scores) : call.run<Bf16>(scores);
}

}  // namespace
}  // namespace vditc::qattention

extern "C" vditc_status vditc_qattention_workspace(const vditc_qattention_problem* problem, size_t* bytes) {
  VDITC_TRY(vditc::qattention::check(problem));
  if (bytes == nullptr) return vditc::fail(VDITC_BAD_ARGUMENT, "qattention: bytes is null");
  *bytes = vditc::qattention::Workspace(*problem).bytes;
  return VDITC_OK;
}

extern "C" vditc_status vditc_qattention_launch(const vditc_qattention_problem* problem, const vditc_qattention_tensors* tensors, void* workspace,
                                                size_t workspace_bytes, void* stream) {
  return vditc::qattention::run(problem, tensors, nullptr, nullptr, workspace, workspace_bytes, stream);
}

extern "C" vditc_status vditc_qattention_scores(const vditc_qattention_problem* problem, const vditc_qattention_tensors* tensors, int32_t* scores,
                                                vditc_qattention_keys* keys, void* workspace, size_t workspace_bytes, void* stream) {
  using vditc::qattention::check_pointer;
  VDITC_TRY(check_pointer(scores, "scores", 4));
  return vditc::qattention::run(problem, tensors, scores, keys, workspace, workspace_bytes, stream);
}
