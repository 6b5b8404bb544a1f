/* libvditc: opens bundles that `vditc compile` made, samples video latents from them, and decodes them into frames. No Python, no PyTorch.
 *
 * This is the whole interface, in C. vditc.hpp is a thin C++17 wrapper of it.
 *
 * Conventions
 *   Every function that can fail returns a vditc_status: VDITC_OK, or a negative number; vditc_last_error() then says, for the calling
 *   thread, what was found, what was wanted, where, and what to do. No exception leaves the library.
 *   Handles are opaque. Everything that is created is destroyed by the function of its name; a handle that was destroyed, NULL, or one of
 *   another kind is answered with VDITC_ERROR_HANDLE, never with a crash. Destroying NULL does nothing.
 *   Handles may be used from any thread. One session does one call at a time; several sessions work side by side.
 *   Structures begin with abi_version and struct_size, which the function NAME_init sets with the defaults. Later versions add fields at
 *   the end only: a library reads no field that its caller's header did not have, and refuses fields that it does not know unless zero.
 *   Text is UTF-8 and ends with a zero byte. Functions that fill a buffer take its capacity and tell what they need: with less they write
 *   nothing and return VDITC_ERROR_SHORT_BUFFER; ask with capacity 0 first. Sizes of tensors are bytes.
 *   Callbacks run on the thread that called the library (log callbacks on any), and must not destroy the handle that is at work.
 *
 * Layouts
 *   Latents      float32 [clips, channels, frames, height, width], rows contiguous, the width fastest, in latent pixels
 *   Embeddings   as the model's inputs say (vditc_bundle_input), [clips, tokens, width] in most
 *   Pixels       uint8 [frames, height, width, 3], red, green, blue, rows from the top, no padding
 */
#ifndef VDITC_VDITC_H
#define VDITC_VDITC_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define VDITC_API __declspec(dllimport)
#elif defined(__GNUC__)
#define VDITC_API __attribute__((visibility("default")))
#else
#define VDITC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define VDITC_ABI_VERSION 1u
#define VDITC_MAX_RANK 8

typedef int32_t vditc_status;
enum {
  VDITC_OK = 0,
  VDITC_ERROR_ARGUMENT = -1,       /* a parameter or an option that cannot be */
  VDITC_ERROR_HANDLE = -2,         /* NULL, destroyed, or of another kind */
  VDITC_ERROR_VERSION = -3,        /* abi_version or struct_size of another header than the library takes */
  VDITC_ERROR_SHORT_BUFFER = -4,   /* nothing was written */
  VDITC_ERROR_NOT_FOUND = -5,      /* no such file, tensor, target */
  VDITC_ERROR_DAMAGED = -6,        /* another size, hash or format than promised */
  VDITC_ERROR_SCHEMA = -7,         /* a bundle of a schema that this library does not read */
  VDITC_ERROR_PATH = -8,           /* a path that leaves its bundle */
  VDITC_ERROR_INPUT = -9,          /* a conditioning or schedule that does not fit the model */
  VDITC_ERROR_UNSUPPORTED = -10,   /* known, and not computed by this library */
  VDITC_ERROR_IO = -11,            /* the system failed to read or write */
  VDITC_ERROR_OUT_OF_MEMORY = -12, /* of the host */
  VDITC_ERROR_NO_DEVICE = -13,     /* no GPU, no driver, or no engine for this GPU */
  VDITC_ERROR_DEVICE_MEMORY = -14, /* out of memory of the GPU */
  VDITC_ERROR_ENGINE = -15,        /* an engine that does not load or run */
  VDITC_ERROR_PLUGIN = -16,        /* a plugin library that is missing, or of another version */
  VDITC_ERROR_BUSY = -17,          /* the session is at work */
  VDITC_ERROR_CALLBACK = -18,      /* the host's own denoiser returned an error */
  VDITC_CANCELLED = -19,           /* by vditc_session_cancel, or a callback */
  VDITC_ERROR_INTERNAL = -20
};

/* Types of tensors, by the names of the safetensors format. */
enum {
  VDITC_F64 = 1,
  VDITC_F32 = 2,
  VDITC_F16 = 3,
  VDITC_BF16 = 4,
  VDITC_F8_E4M3 = 5,
  VDITC_I64 = 6,
  VDITC_I32 = 7,
  VDITC_I16 = 8,
  VDITC_I8 = 9,
  VDITC_U8 = 10,
  VDITC_BOOL = 11
};

typedef struct vditc_bundle vditc_bundle;
typedef struct vditc_tensors vditc_tensors;
typedef struct vditc_conditioning vditc_conditioning;
typedef struct vditc_schedule vditc_schedule;
typedef struct vditc_session vditc_session;

/* A tensor in the host's memory, rows contiguous. */
typedef struct vditc_tensor {
  const char* name;
  const void* data;
  uint64_t bytes;
  int32_t dtype;
  uint32_t rank;
  int64_t shape[VDITC_MAX_RANK];
} vditc_tensor;

/* ---- the library ---------------------------------------------------------------------------------------------------------------- */

VDITC_API uint32_t vditc_abi_version(void);               /* VDITC_ABI_VERSION of the library's own header */
VDITC_API const char* vditc_version(void);                /* of vditc, "0.1.0" */
VDITC_API const char* vditc_status_name(vditc_status status); /* "VDITC_OK"; "unknown status" for others */
VDITC_API const char* vditc_last_error(void);             /* of this thread's last call that failed; good until its next one; "" without */

enum { VDITC_LOG_ERROR = 1, VDITC_LOG_WARNING = 2, VDITC_LOG_INFO = 3, VDITC_LOG_DEBUG = 4 };
typedef void (*vditc_log_fn)(void* user, int32_t level, const char* message);
/* For the process. `level`: the most talkative that is told. NULL: nothing is told, which is the default. */
VDITC_API vditc_status vditc_set_log(vditc_log_fn log, void* user, int32_t level);

/* What a long call has done. Returning anything but 0 cancels it. */
typedef struct vditc_progress {
  uint32_t abi_version;
  uint32_t struct_size;
  uint64_t done;        /* of `total`: bytes hashed, or steps of all clips */
  uint64_t total;
  uint64_t clip;        /* sampling: the clip, and the step of it that is done */
  uint64_t step;
  const float* latents; /* sampling: of the clip after that step [channels, frames, height, width]; good during the call; else NULL */
  uint64_t latents_bytes;
} vditc_progress;
typedef int32_t (*vditc_progress_fn)(void* user, const vditc_progress* progress);

/* ---- bundles --------------------------------------------------------------------------------------------------------------------- */

typedef struct vditc_bundle_options {
  uint32_t abi_version;
  uint32_t struct_size;
  int32_t hashes;  /* 1: check every file's sha256 while opening; 0, the default: names and sizes, hashes by vditc_bundle_verify */
  int32_t threads; /* that hash; 0, the default: one for each core */
  vditc_progress_fn progress;
  void* user;
} vditc_bundle_options;
VDITC_API vditc_status vditc_bundle_options_init(vditc_bundle_options* options, size_t struct_size);

/* `path`: the bundle's folder. `options`: NULL for the defaults. */
VDITC_API vditc_status vditc_bundle_open(const char* path, const vditc_bundle_options* options, vditc_bundle** bundle);
VDITC_API vditc_status vditc_bundle_destroy(vditc_bundle* bundle);
/* Hashes every listed file that was not yet. */
VDITC_API vditc_status vditc_bundle_verify(vditc_bundle* bundle, const vditc_bundle_options* options);

/* manifest.json as it stands: what `vditc inspect --json` prints. `needed` may be NULL; it counts the zero byte. */
VDITC_API vditc_status vditc_bundle_manifest(vditc_bundle* bundle, char* text, size_t capacity, size_t* needed);

/* Text in these structures belongs to the bundle. */
typedef struct vditc_bundle_info {
  uint32_t abi_version;
  uint32_t struct_size;
  int32_t schema;
  int32_t steps;
  uint64_t files, targets, inputs, experts; /* experts: beside the first */
  uint64_t bytes;                           /* of all files */
  double mean_bits;                         /* of a quantized weight */
  double guidance_scale;
  int64_t latent_shape[4]; /* channels, frames, height, width of the clips that it was verified with */
  const char* made_by;     /* version of vditc */
  const char* model_class; /* of diffusers */
  const char* recipe;
  int32_t fps;     /* frames a second that clips are meant to be shown at */
  int32_t decodes; /* 1: it has a decoder, for vditc_session_decode */
  int32_t encodes; /* 1: it has text encoders, through which vditc_session_encode takes prompts */
  int32_t reserved;
} vditc_bundle_info;
VDITC_API vditc_status vditc_bundle_info_get(vditc_bundle* bundle, vditc_bundle_info* info);

typedef struct vditc_file_info {
  uint32_t abi_version;
  uint32_t struct_size;
  const char* name; /* below the bundle's folder */
  uint64_t bytes;
  const char* sha256; /* hexadecimal */
} vditc_file_info;
VDITC_API vditc_status vditc_bundle_file(vditc_bundle* bundle, uint64_t index, vditc_file_info* info);

typedef struct vditc_target_info {
  uint32_t abi_version;
  uint32_t struct_size;
  const char* name;
  const char* backend; /* "tensorrt", "tensorrt_rtx", "onnxruntime" */
  const char* status;  /* "built", "to build on the device", "portable" */
  const char* version; /* of what built the engine, "" if none did */
  const char* arch;    /* compute capabilities with commas, "sm_89,sm_90" */
  const char* library; /* plugin library below the bundle's folder, "" without */
  uint64_t plan_bytes;
} vditc_target_info;
VDITC_API vditc_status vditc_bundle_target(vditc_bundle* bundle, uint64_t index, vditc_target_info* info);

typedef struct vditc_input_info {
  uint32_t abi_version;
  uint32_t struct_size;
  const char* name;
  const char* fill; /* "normal", "timestep", "mask", "ids", or a number: the value where nobody gives one */
  int32_t dtype;
  uint32_t rank;
  int64_t dims[VDITC_MAX_RANK];          /* 0: named */
  const char* axes[VDITC_MAX_RANK];      /* name of the axis, or NULL */
  int64_t smallest[VDITC_MAX_RANK];      /* size that engines were built for; 0: not known */
  int64_t greatest[VDITC_MAX_RANK];
} vditc_input_info;
/* Inputs of the model, the latents first. */
VDITC_API vditc_status vditc_bundle_input(vditc_bundle* bundle, uint64_t index, vditc_input_info* info);

/* A prompt as the tokens of a text encoder: cleaned, in its template, padded. `input`: of the model, which the encoder is for; NULL: the
 * first. `ids`, `mask` [needed] (1: a token, 0: padding); `mask` and `needed` may be NULL. `capacity` counts tokens. */
VDITC_API vditc_status vditc_bundle_tokenize(vditc_bundle* bundle, const char* prompt, const char* input, int64_t* ids, int64_t* mask,
                                             uint64_t capacity, uint64_t* needed);

/* The bundle of a further expert, with a handle of its own. */
VDITC_API vditc_status vditc_bundle_expert(vditc_bundle* bundle, uint64_t index, vditc_bundle** expert);

/* ---- safetensors ------------------------------------------------------------------------------------------------------------------ */

/* Maps a file; nothing is read before it is used. */
VDITC_API vditc_status vditc_tensors_open(const char* path, vditc_tensors** tensors);
VDITC_API vditc_status vditc_tensors_destroy(vditc_tensors* tensors);
VDITC_API vditc_status vditc_tensors_count(vditc_tensors* tensors, uint64_t* count);
/* In the order of their names. Name and data are good until the handle is destroyed. */
VDITC_API vditc_status vditc_tensors_get(vditc_tensors* tensors, uint64_t index, vditc_tensor* tensor);
VDITC_API vditc_status vditc_tensors_find(vditc_tensors* tensors, const char* name, vditc_tensor* tensor);
VDITC_API vditc_status vditc_tensors_metadata(vditc_tensors* tensors, const char* key, char* text, size_t capacity, size_t* needed);
/* Writes a whole file or none. */
VDITC_API vditc_status vditc_tensors_write(const char* path, const vditc_tensor* tensors, uint64_t count);

/* ---- what clips are made of ---------------------------------------------------------------------------------------------------------- */

/* A file of vditc.conditioning (docs/conditioning.md). */
VDITC_API vditc_status vditc_conditioning_open(const char* path, vditc_conditioning** conditioning);
/* `seeds`: [clips]. Clip i starts from the noise of seeds[i], the same on every machine and in Python. */
VDITC_API vditc_status vditc_conditioning_create(const int64_t latent_shape[4], const uint64_t* seeds, uint64_t clips,
                                                 vditc_conditioning** conditioning);
VDITC_API vditc_status vditc_conditioning_destroy(vditc_conditioning* conditioning);
/* Data is copied. [clips, ...], or what the model's input says where it has no axis `batch`. */
VDITC_API vditc_status vditc_conditioning_set_input(vditc_conditioning* conditioning, const char* name, const vditc_tensor* tensor);
/* The same of the branch without a prompt, [1, ...] or [clips, ...]; without it the input is that of the prompts. */
VDITC_API vditc_status vditc_conditioning_set_empty(vditc_conditioning* conditioning, const char* name, const vditc_tensor* tensor);
/* Constant channels behind the latents' own, [1 or clips, extra, frames, height, width]. */
VDITC_API vditc_status vditc_conditioning_set_channels(vditc_conditioning* conditioning, const vditc_tensor* tensor);
/* Latents of given frames, [1 or clips, channels, frames, height, width], of which only `frames` [count] matter. */
VDITC_API vditc_status vditc_conditioning_set_known(vditc_conditioning* conditioning, const vditc_tensor* tensor, const int64_t* frames,
                                                    uint64_t count);
/* Other noise for the same clips: [clips], as many as before. */
VDITC_API vditc_status vditc_conditioning_set_seeds(vditc_conditioning* conditioning, const uint64_t* seeds, uint64_t clips);
VDITC_API vditc_status vditc_conditioning_shape(vditc_conditioning* conditioning, uint64_t* clips, int64_t latent_shape[4]);

/* Standard normal noise as numpy.random.default_rng(seed).standard_normal(count, numpy.float32) draws it. */
VDITC_API vditc_status vditc_noise(uint64_t seed, float* noise, uint64_t count);

/* ---- schedulers of diffusers ------------------------------------------------------------------------------------------------------------ */

typedef struct vditc_schedule_options {
  uint32_t abi_version;
  uint32_t struct_size;
  int32_t steps;
  int32_t patch;        /* latents of a token; 1 */
  const char* pipeline; /* class of diffusers, whose noise levels and shift by size are followed; NULL */
  const char* solver;   /* another scheduler class over the same noise levels; NULL */
  double shift;         /* of flows, instead of the configuration's; NAN */
  int64_t size[3];      /* frames, height, width of the latents; 0 0 0: not known */
} vditc_schedule_options;
VDITC_API vditc_status vditc_schedule_options_init(vditc_schedule_options* options, size_t struct_size);

/* `config`: text of a scheduler_config.json. */
VDITC_API vditc_status vditc_schedule_create(const char* config, const vditc_schedule_options* options, vditc_schedule** schedule);
VDITC_API vditc_status vditc_schedule_destroy(vditc_schedule* schedule);
VDITC_API vditc_status vditc_schedule_steps(vditc_schedule* schedule, uint64_t* steps);
/* `start`: standard deviation of the noise that latents start as. `timesteps` [steps], `sigmas` [steps + 1]; each may be NULL. */
VDITC_API vditc_status vditc_schedule_levels(vditc_schedule* schedule, double* start, float* timesteps, float* sigmas);
/* [steps, 15]: seen, converted x 2, noise, corrects, corrected x 5, following x 5 (docs/cpp.md). */
VDITC_API vditc_status vditc_schedule_rows(vditc_schedule* schedule, double* rows, uint64_t capacity, uint64_t* needed);
/* What the model is shown of the latents at a step, [count]. `shown` may be `latents`. */
VDITC_API vditc_status vditc_schedule_shown(vditc_schedule* schedule, uint64_t index, const float* latents, float* shown, uint64_t count);
/* Latents after a step, [count]; `after` may be `latents`. Steps come in order, and step 0 begins anew.
 * `noise`: standard normal, where the solver adds some; NULL: its own, as the sampling loop draws it. */
VDITC_API vditc_status vditc_schedule_step(vditc_schedule* schedule, uint64_t index, const float* prediction, const float* latents,
                                           const float* noise, float* after, uint64_t count);

/* ---- sampling ------------------------------------------------------------------------------------------------------------------------------ */

/* A denoiser of the host's own, for backend "host". */
typedef struct vditc_denoiser {
  uint32_t abi_version;
  uint32_t struct_size;
  void* user;
  /* `inputs` [count] are the model's, in their order; `step` is the key of the expert's per-step tables. Writes the prediction of the
   * latents' first channels, float32 [batch, channels, frames, height, width]. Anything but 0 ends the call with VDITC_ERROR_CALLBACK. */
  int32_t (*predict)(void* user, const vditc_tensor* inputs, uint64_t count, int32_t expert, int32_t step, float* prediction,
                     uint64_t prediction_bytes);
} vditc_denoiser;

enum { VDITC_PASSES_AUTO = 0, VDITC_PASSES_BATCHED = 1, VDITC_PASSES_TWO = 2 };

typedef struct vditc_session_options {
  uint32_t abi_version;
  uint32_t struct_size;
  /* A target of the bundle; "null": a fixed function of the inputs, for tests of hosts; "host": `denoiser`; NULL: the engine for this GPU. */
  const char* backend;
  const vditc_denoiser* denoiser;
  const char* solver;     /* class of diffusers; NULL: the bundle's */
  const char* step_cache; /* a threshold, or a share of steps to leave out, "30%"; NULL: every step runs */
  int32_t steps;          /* 0: the bundle's */
  int32_t passes;         /* of guidance: VDITC_PASSES_* */
  int32_t threads;        /* of the arithmetic between steps; 0: as many as are of use */
  int32_t device;         /* GPU */
  double shift;           /* the others: NAN for the bundle's */
  double guidance;
  double guidance_2;        /* of the second expert */
  double embedded_guidance; /* of models that are told a scale */
  int64_t weight_budget;    /* bytes of the GPU for the weights of an engine that streams them; -1: what it was built with */
} vditc_session_options;
VDITC_API vditc_status vditc_session_options_init(vditc_session_options* options, size_t struct_size);

/* `options`: NULL for the defaults. The bundle may be destroyed before the session. */
VDITC_API vditc_status vditc_session_create(vditc_bundle* bundle, const vditc_session_options* options, vditc_session** session);
/* Another thread's call ends after the step, prompt or piece of a clip that it computes, with VDITC_CANCELLED; this one waits for it, so that the
 * callbacks and buffers of the host are free afterwards. From a callback of the session: VDITC_ERROR_BUSY. */
VDITC_API vditc_status vditc_session_destroy(vditc_session* session);

/* Samples every clip of `conditioning` into `latents` [clips, channels, frames, height, width], written when all are done, or not at all.
 * `progress` is called after every step; NULL for none. `needed`: bytes; may be NULL. */
VDITC_API vditc_status vditc_session_sample(vditc_session* session, vditc_conditioning* conditioning, vditc_progress_fn progress, void* user,
                                            float* latents, uint64_t capacity, uint64_t* needed);
/* Sets the encoded prompts of `conditioning`, one a clip [count], by the bundle's text encoders on the session's backend; and those of the
 * branch without a prompt, by `negatives` [count], NULL: "" each. Nothing is set by a call that fails. As in vditc_session_decode, the
 * denoiser is closed for the encoders' engines. */
VDITC_API vditc_status vditc_session_encode(vditc_session* session, const char* const* prompts, const char* const* negatives, uint64_t count,
                                            vditc_conditioning* conditioning);
/* From any thread: ends the call that is at work, after the step, prompt or piece of a clip that it computes, or the next call where none is. */
VDITC_API vditc_status vditc_session_cancel(vditc_session* session);

/* Some frames of a clip. */
typedef struct vditc_frames {
  uint32_t abi_version;
  uint32_t struct_size;
  uint64_t first; /* number of the first of them */
  uint64_t count;
  uint64_t total; /* of the clip */
  uint64_t height;
  uint64_t width;
  const uint8_t* pixels; /* [count, height, width, 3]; good during the call */
  uint64_t bytes;
} vditc_frames;
/* Returning anything but 0 cancels the call. */
typedef int32_t (*vditc_frames_fn)(void* user, const vditc_frames* frames);

/* What latents [channels, frames, height, width] of a clip become; each pointer may be NULL. VDITC_ERROR_UNSUPPORTED for a bundle without a
 * decoder, VDITC_ERROR_INPUT for a length of clip that it has no graph for. May be called beside a call at work. */
VDITC_API vditc_status vditc_session_frames(vditc_session* session, const int64_t latent_shape[4], uint64_t* frames, uint64_t* height,
                                            uint64_t* width);
/* Decodes one clip: its frames come in order, as they are made. The session's memory is that of a chunk of the clip.
 * One engine is on the device at a time: the denoiser is closed for the decoder's graphs, and the next vditc_session_sample opens it again. */
VDITC_API vditc_status vditc_session_decode(vditc_session* session, const float* latents, uint64_t bytes, const int64_t latent_shape[4],
                                            vditc_frames_fn on_frames, void* user);

typedef struct vditc_session_info {
  uint32_t abi_version;
  uint32_t struct_size;
  int32_t passes;        /* VDITC_PASSES_BATCHED or _TWO */
  int32_t steps;
  uint64_t runs_asked;   /* of the model, of the last call */
  uint64_t runs_skipped; /* of them, by the step cache */
} vditc_session_info;
VDITC_API vditc_status vditc_session_info_get(vditc_session* session, vditc_session_info* info);

#ifdef __cplusplus
}
#endif
#endif
