/* The kernels of vditc without TensorRT: a C interface of libvditc_plugins.so and of its emulated twin.
 *
 * Pointers are device memory (of the emulated library: host memory), contiguous and aligned to 16 bytes; to their elements what is read or
 * written number by number: what has one or few for each row or one for all (scale, total, share, clip, given, left), a mask, and all
 * tensors of a QuantizeToken whose k is no multiple of 8. Others are refused. A problem describes what is computed
 * and is the same for every call of a layer but for its rows; tensors are the pointers of one call. A launch only enqueues work on
 * the stream: it allocates nothing and waits for nothing, so it can be captured in a CUDA graph, the first one too. Every function may be called from any
 * thread. What a function needs of a tensor that the problem leaves out, it does not read: pass NULL.
 *
 * Functions return VDITC_OK or say in vditc_last_error() what was found and what was wanted; nothing is launched then. */
#ifndef VDITC_PLUGINS_H
#define VDITC_PLUGINS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define VDITC_ABI_VERSION 1 /* of the structs and functions below */
#define VDITC_LAYOUT 1      /* of packed weights: vditc.plugins.packing.LAYOUT */
#if defined(_WIN32)
#define VDITC_API
#else
#define VDITC_API __attribute__((visibility("default")))
#endif

typedef enum {
  VDITC_OK = 0,
  VDITC_BAD_ARGUMENT = 1,        /* a problem that there is not, a null pointer, an unaligned one, an unknown layout */
  VDITC_NO_KERNEL = 2,           /* the tactic or the library has no code for this GPU */
  VDITC_WORKSPACE_TOO_SMALL = 3,
  VDITC_CUDA_ERROR = 4
} vditc_status;

typedef enum { VDITC_FP32 = 0, VDITC_FP16 = 1, VDITC_BF16 = 2 } vditc_float_type;
typedef enum { VDITC_NO_ACTIVATION = 0, VDITC_GELU = 1, VDITC_GELU_TANH = 2 } vditc_activation;
typedef enum { VDITC_NO_NORM = 0, VDITC_LAYER_NORM = 1, VDITC_RMS_NORM = 2 } vditc_norm;

/* What a row of a broadcast tensor [rows, width] belongs to: row r of the result reads its row (r / inner) % count.
 * One row for all: {1, 1}. A row for each: {1, m}. A vector of each of b samples of t tokens: {t, b}. */
typedef struct {
  int64_t inner;
  int64_t count;
} vditc_rows;

VDITC_API int32_t vditc_abi_version(void);
/* The message of this thread's last failure. */
VDITC_API const char* vditc_last_error(void);
/* Compute capability of the current device, 10 major + minor (87, 90, ...); of the emulated library, what the environment variable
 * VDITC_EMULATED_SM says, else 80. Negative where there is no device. */
VDITC_API int32_t vditc_device_sm(void);
/* Memory of the current device, aligned to 256 bytes, for callers that have no CUDA runtime of their own; of the emulated library, the host's.
 * `bytes` may be 0. What vditc_device_allocate gave, and nothing else, goes back by vditc_device_free; NULL is let be. */
VDITC_API vditc_status vditc_device_allocate(size_t bytes, void** memory);
VDITC_API vditc_status vditc_device_free(void* memory);
/* Bytes from anywhere to anywhere, host or device, behind all work of the default stream (NULL); it is done when the function returns, and
 * an error of that work is this function's. */
VDITC_API vditc_status vditc_device_copy(void* to, const void* from, size_t bytes);

/* ---- vditc.QLinear (docs/plugins/qlinear.md) ------------------------------------------------------------------------------------- */

typedef struct {
  uint32_t struct_bytes; /* sizeof(vditc_qlinear_problem), so that a library tells another version's callers */
  int32_t n, k;          /* outputs and inputs */
  int64_t m;             /* rows */
  int32_t bits;          /* of the weights: 8, 4, 3 */
  int32_t unsigned_weights; /* codes 0 ... 15 instead of -8 ... 7; bits = 4 alone */
  int32_t activation_bits;  /* 8, 6, 4, 3 */
  int32_t packed;        /* x holds two 4-bit codes a byte: channels i and i + 16 of a block of 32 in the low and high half of byte i */
  int32_t layout;        /* of the weights: VDITC_LAYOUT */
  int32_t group;         /* inputs that share a scale of an output: 0 (all) or 128 */
  int32_t rank;          /* outer products left right: 0 ... 4 */
  int32_t low_rank;      /* columns of down: 0, 16, 32, 48, 64 */
  int32_t bias;          /* 0, 1 */
  int32_t activation;    /* vditc_activation */
  int32_t gated;         /* 0, 1 */
  int32_t output;        /* vditc_float_type of y, gate and residual */
  int32_t scale_per_row; /* 1: scale has m elements; 0: one */
  vditc_rows gate_rows, residual_rows;
} vditc_qlinear_problem;

typedef struct {
  const int8_t* x;           /* [m, k], packed: [m, k / 2] */
  const float* scale;        /* [m] or [1] */
  const int8_t* weight;      /* packed_bytes(n, k, bits), vditc.plugins.packing */
  const float* weight_scale; /* [n]; with groups [k / 128, n] */
  const float* left;         /* [m, rank] */
  const float* right;        /* [rank, n] */
  const void* down;          /* [m, low_rank], fp16 or bf16 as `output` (fp16 where that is fp32) */
  const void* up;            /* [low_rank, n], the same type */
  const float* bias;         /* [n] */
  const void* gate;          /* [gate_rows.count, n] */
  const void* residual;      /* [residual_rows.count, n] */
  void* y;                   /* [m, n] */
} vditc_qlinear_tensors;

/* Ways to compute it, which give the same accumulators. 0 lets the library choose. */
typedef enum {
  VDITC_ANY_TACTIC = 0,
  VDITC_UNPACK_128 = 1,   /* weights unpacked in registers, mma.sync, tiles of 128 x 128 */
  VDITC_UNPACK_64 = 2,    /* of 64 x 64, for few rows */
  VDITC_INT4 = 3,         /* mma.sync on 4-bit codes, 4-bit weights and packed 4-bit activations: sm_80 ... sm_89 */
  VDITC_CARRIER = 4,      /* codes as bf16 and sums in float32, exact up to k = 16384 for weights of 4 bits: where int8 is slow (sm_103) */
  VDITC_EXPAND_SM80 = 16, /* weights expanded to int8 once, then CUTLASS 2.x mma.sync */
  VDITC_EXPAND_SM90 = 17, /* CUTLASS 3.x wgmma: sm_90 */
  VDITC_EXPAND_SM100 = 18 /* CUTLASS 3.x tcgen05: sm_100, sm_110 */
} vditc_qlinear_tactic;

VDITC_API const char* vditc_qlinear_tactic_name(int32_t tactic); /* "unpack-128", ...; NULL for one that there is not */
/* Tactics for the problem on a GPU of this compute capability, the best guess first, into ids[0 ... capacity - 1]; *count: how many there are. */
VDITC_API vditc_status vditc_qlinear_tactics(const vditc_qlinear_problem* problem, int32_t sm, int32_t* ids, int32_t capacity, int32_t* count);
/* Bytes that the tactic needs at most on this GPU; of VDITC_ANY_TACTIC: that any of them does. */
VDITC_API vditc_status vditc_qlinear_workspace(const vditc_qlinear_problem* problem, int32_t tactic, int32_t sm, size_t* bytes);
VDITC_API vditc_status vditc_qlinear_launch(const vditc_qlinear_problem* problem, const vditc_qlinear_tensors* tensors, int32_t tactic,
                                            void* workspace, size_t workspace_bytes, void* stream);
/* The accumulators alone, int32 [m, n] (problems without groups): what tests compare. */
VDITC_API vditc_status vditc_qlinear_accumulators(const vditc_qlinear_problem* problem, const vditc_qlinear_tensors* tensors, int32_t tactic,
                                                  int32_t* accumulators, void* workspace, size_t workspace_bytes, void* stream);
/* The problem's packed weights as int8 row-major [n, k]; unsigned codes are 0 ... 15, others two's complement. */
VDITC_API vditc_status vditc_qlinear_expand(const vditc_qlinear_problem* problem, const int8_t* weight, int8_t* out, void* stream);

/* ---- vditc.QuantizeToken (docs/plugins/quantize_token.md) ------------------------------------------------------------------------- */

typedef struct {
  uint32_t struct_bytes; /* sizeof(vditc_quantize_token_problem) */
  int32_t k;             /* channels */
  int64_t m;             /* tokens */
  int32_t input;         /* vditc_float_type of x, gate, residual and sum */
  int32_t bits;          /* 8, 6, 4, 3 */
  int32_t packed;        /* two 4-bit codes a byte, as vditc_qlinear_problem.packed; bits 4 or 3, k a multiple of 32 */
  int32_t given;         /* 1: the scale is an input */
  int32_t clip;          /* the flags: 0, 1 */
  int32_t gated;         /* x := residual + gate * x first, which is also an output */
  int32_t activation;    /* vditc_activation */
  int32_t norm;          /* vditc_norm */
  float epsilon;
  int32_t weight, bias, gain, shift, center, balance;
  int32_t rotation; /* 0, 256 */
  int32_t total;
  int32_t shares; /* 0 ... 4 */
  vditc_rows gain_rows, shift_rows, gate_rows, residual_rows;
} vditc_quantize_token_problem;

typedef struct {
  const void* x;        /* [m, k] */
  const void* gate;     /* [gate_rows.count, k] */
  const void* residual; /* [residual_rows.count, k] */
  const float *weight, *bias;    /* [k] */
  const float *gain, *shift;     /* [rows.count, k] */
  const float *center, *balance; /* [k] */
  const float* clip;             /* [1] */
  const float* given;            /* [1] */
  const float* alpha;            /* [shares, k] */
  int8_t* codes;                 /* [m, k], packed: [m, k / 2] */
  float* scale;                  /* [m] */
  float* total;                  /* [m] */
  float* share[4];               /* [m] each */
  void* sum;                     /* [m, k]: residual + gate * x */
} vditc_quantize_token_tensors;

/* No workspace, one kernel, k up to 131072. Tensors do not overlap. */
VDITC_API vditc_status vditc_quantize_token_launch(const vditc_quantize_token_problem* problem, const vditc_quantize_token_tensors* tensors,
                                                   void* stream);

/* ---- vditc.QAttention (docs/plugins/qattention.md) -------------------------------------------------------------------------------- */

typedef struct {
  uint32_t struct_bytes; /* sizeof(vditc_qattention_problem) */
  int32_t batch, heads, head_dim; /* head_dim: a multiple of 8 up to 128 */
  int64_t queries, keys;
  int32_t type;     /* vditc_float_type of q, k, v, mask and y: fp16 or bf16 */
  int32_t smooth_k; /* subtract the mean of k over its keys before it is quantized, which changes no softmax */
  int32_t mask;     /* 0: none; 1: a number for each key is added to the scores */
  float scale;      /* of the products: 1 / sqrt(head_dim) */
  /* Elements from one batch, token, head to the next, multiples of 8 where there is more than one; of a channel 1. */
  int64_t q_strides[3], k_strides[3], v_strides[3], y_strides[3];
  int64_t mask_stride; /* from one batch to the next; 0: one mask for all; of a key 1 */
} vditc_qattention_problem;

typedef struct {
  const void *q, *k, *v;
  const void* mask; /* [batch or 1, keys] */
  void* y;
} vditc_qattention_tensors;

/* Where the workspace holds what k becomes, in bytes from its beginning: tests read it. */
typedef struct {
  size_t codes;       /* int8 [batch, heads, keys, width], width 64 or 128, zeros behind head_dim */
  size_t scale;       /* float32 [batch, heads, row] */
  int64_t width, row; /* row: keys rounded up to a multiple of 4 */
} vditc_qattention_keys;

VDITC_API vditc_status vditc_qattention_workspace(const vditc_qattention_problem* problem, size_t* bytes);
VDITC_API vditc_status vditc_qattention_launch(const vditc_qattention_problem* problem, const vditc_qattention_tensors* tensors, void* workspace,
                                               size_t workspace_bytes, void* stream);
/* The products of codes alone, int32 [batch, heads, queries, keys], and where the codes of k are: what tests compare. v and y are not read. */
VDITC_API vditc_status vditc_qattention_scores(const vditc_qattention_problem* problem, const vditc_qattention_tensors* tensors, int32_t* scores,
                                               vditc_qattention_keys* keys, void* workspace, size_t workspace_bytes, void* stream);

#if defined(__cplusplus)
}
#endif
#endif
