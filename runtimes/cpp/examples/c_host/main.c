/* A host in C: a bundle and a saved conditioning, or a prompt, in; videos or latents out.
 *
 *   c_host BUNDLE CONDITIONING -o OUT.y4m|FOLDER/|OUT.safetensors [--backend null|TARGET] [--seed N] [--steps N] [--force]
 *   c_host BUNDLE --prompt TEXT -o OUT [--negative TEXT] [--size FxHxW] [...]
 *   c_host BUNDLE --list
 *
 * Ctrl-C ends it after the step or chunk at work, with nothing written. Exits with 0, 1 (the library's message), 2 (usage) or 130 (Ctrl-C).
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "prompts.h"
#include "video_file.h"
#include "vditc/vditc.h"

static const char USAGE[] =
    "usage: c_host BUNDLE CONDITIONING -o OUT [options]\n"
    "       c_host BUNDLE --prompt TEXT -o OUT [options]\n"
    "       c_host BUNDLE --list\n"
    "  -o, --out OUT     CLIP.y4m, or a new FOLDER/ for pictures 0001.png, ...; of several clips, -1, -2, ... stands behind the name;\n"
    "                    or LATENTS.safetensors, float32 [clips, channels, frames, height, width]\n"
    "  --backend NAME    null, or a target of the bundle [default: the engine for this GPU]\n"
    "  --seed N          of the first clip's noise, one more for each further clip [default: those of the conditioning]\n"
    "  --steps N         sampling steps [default: the bundle's]\n"
    "  --force           replace what is there\n"
    PROMPT_USAGE
    "  --list            what is in the bundle\n";

typedef struct Asked {
  const char *bundle, *conditioning, *out, *backend;
  Prompt prompt;
  uint64_t seed;
  int32_t steps;
  int has_seed, force, list;
} Asked;

/* A signal handler may do little: the callback of the next step asks for this. A second Ctrl-C ends the process. */
static volatile sig_atomic_t interrupted = 0;
static void on_interrupt(int number) {
  (void)number;
  interrupted = 1;
}

static int refused(const char* found, const char* value, const char* wanted) {
  fprintf(stderr, "c_host: found %s%s%s; wanted %s\n%s", found, value ? " " : "", value ? value : "", wanted, USAGE);
  return 2;
}

static int failed(void) {
  fprintf(stderr, "c_host: %s\n", vditc_last_error());
  return 1;
}

static int stopped(void) {
  fprintf(stderr, "\nc_host: stopped, nothing was written\n");
  return 130;
}

static int whole_number(const char* text, uint64_t greatest, uint64_t* value) {
  char* end = NULL;
  if (text[0] < '0' || text[0] > '9') return 0;
  errno = 0;
  const unsigned long long read = strtoull(text, &end, 10);
  *value = read;
  return errno == 0 && *end == '\0' && read <= greatest;
}

static int ends_with(const char* text, const char* end) {
  const size_t length = strlen(text), wanted = strlen(end);
  return length > wanted && strcmp(text + length - wanted, end) == 0;
}

/* 0, or the exit status. */
static int parse(int count, char** words, Asked* asked) {
  for (int i = 1; i < count; ++i) {
    const char* word = words[i];
    const char** told = prompt_option(&asked->prompt, word);
    const int known = told != NULL || !strcmp(word, "-o") || !strcmp(word, "--out") || !strcmp(word, "--backend") || !strcmp(word, "--seed") || !strcmp(word, "--steps");
    if (known && i + 1 == count) return refused(word, NULL, "a value behind it");
    uint64_t number = 0;
    if (!strcmp(word, "--list")) asked->list = 1;
    else if (!strcmp(word, "--force")) asked->force = 1;
    else if (told != NULL) *told = words[++i];
    else if (!strcmp(word, "-o") || !strcmp(word, "--out")) asked->out = words[++i];
    else if (!strcmp(word, "--backend")) asked->backend = words[++i];
    else if (!strcmp(word, "--seed")) {
      if (!whole_number(words[++i], INT64_MAX, &asked->seed)) return refused("--seed", words[i], "a whole number, 0 to 2^63 - 1");
      asked->has_seed = 1;
    } else if (!strcmp(word, "--steps")) {
      if (!whole_number(words[++i], 100000, &number) || number < 1) return refused("--steps", words[i], "a whole number, 1 to 100000");
      asked->steps = (int32_t)number;
    } else if (word[0] == '-') return refused("option", word, "one of these");
    else if (asked->bundle == NULL) asked->bundle = word;
    else if (asked->conditioning == NULL) asked->conditioning = word;
    else return refused("argument", word, "a bundle and a conditioning");
  }
  if (asked->bundle == NULL) return refused("no bundle", NULL, "the folder that `vditc compile` wrote");
  const int says = asked->prompt.text != NULL;
  if (asked->list) return asked->conditioning || asked->out || says ? refused("--list", "with something to sample", "a bundle alone") : 0;
  if (asked->conditioning == NULL && !says) return refused("no conditioning", NULL, "a file that vditc.conditioning saved, or --prompt");
  if (asked->conditioning && (says || asked->prompt.negative || asked->prompt.size)) return refused("a conditioning with a prompt", NULL, "one of them");
  if (!prompt_size_fits(&asked->prompt)) return refused("--size", asked->prompt.size, "frames, height and width of the latents, as 21x60x104");
  if (asked->out == NULL) return refused("no --out", NULL, "a file or folder for the clips");
  const int latents = ends_with(asked->out, ".safetensors");
  if (!latents && !video_file_knows(asked->out)) {
    return refused("--out", asked->out, "a name that ends in .safetensors, " VIDEO_FILE_ENDINGS);
  }
  if (latents && !asked->force && access(asked->out, F_OK) == 0) return refused("--out", asked->out, "a new file, or --force");
  return 0;
}

static int list(vditc_bundle* bundle) {
  vditc_bundle_info about = {0};
  about.abi_version = VDITC_ABI_VERSION, about.struct_size = sizeof about;
  if (vditc_bundle_info_get(bundle, &about)) return failed();
  const int64_t* latents = about.latent_shape;
  printf("model    %s, recipe %s, %.2f bits a weight, by vditc %s\n", about.model_class, about.recipe, about.mean_bits, about.made_by);
  printf("sampling %" PRId32 " steps, guidance %g, latents %" PRId64 " x %" PRId64 " x %" PRId64 " x %" PRId64 ", experts %" PRIu64 "\n", about.steps,
         about.guidance_scale, latents[0], latents[1], latents[2], latents[3], about.experts + 1);
  printf("video    %" PRId32 " frames a second, %s\n", about.fps, about.decodes ? "with a decoder" : "without a decoder");
  for (uint64_t i = 0; i < about.inputs; ++i) {
    vditc_input_info input = {0};
    input.abi_version = VDITC_ABI_VERSION, input.struct_size = sizeof input;
    if (vditc_bundle_input(bundle, i, &input)) return failed();
    printf("input    %s [", input.name);
    for (uint32_t axis = 0; axis < input.rank; ++axis) {
      if (axis) printf(", ");
      if (input.axes[axis]) printf("%s", input.axes[axis]);
      else printf("%" PRId64, input.dims[axis]);
    }
    printf("]\n");
  }
  for (uint64_t i = 0; i < about.targets; ++i) {
    vditc_target_info target = {0};
    target.abi_version = VDITC_ABI_VERSION, target.struct_size = sizeof target;
    if (vditc_bundle_target(bundle, i, &target)) return failed();
    printf("target   %s: %s %s, %s, %s\n", target.name, target.backend, target.version, target.arch, target.status);
  }
  for (uint64_t i = 0; i < about.files; ++i) {
    vditc_file_info file = {0};
    file.abi_version = VDITC_ABI_VERSION, file.struct_size = sizeof file;
    if (vditc_bundle_file(bundle, i, &file)) return failed();
    printf("file     %s, %" PRIu64 " bytes\n", file.name, file.bytes);
  }
  return 0;
}

static int32_t show(void* user, const vditc_progress* now) {
  const vditc_session_info* session = user;
  fprintf(stderr, "%sclip %" PRIu64 "/%" PRIu64 ", step %" PRIu64 "/%" PRId32 "%s", isatty(2) ? "\r" : "", now->clip + 1, now->total / (uint64_t)session->steps,
          now->step + 1, session->steps, isatty(2) && now->done < now->total ? "" : "\n");
  return interrupted;
}

typedef struct Writing {
  video_file* video;
  uint64_t clip, clips;
  int error; /* errno of what was not written */
} Writing;

static int32_t write_frames(void* user, const vditc_frames* now) {
  Writing* writing = user;
  const uint64_t done = now->first + now->count;
  fprintf(stderr, "%sclip %" PRIu64 "/%" PRIu64 ", frame %" PRIu64 "/%" PRIu64 "%s", isatty(2) ? "\r" : "", writing->clip + 1, writing->clips,
          done, now->total, isatty(2) && done < now->total ? "" : "\n");
  writing->error = video_file_add(writing->video, now->pixels, now->count);
  return interrupted || writing->error;
}

/* Whether all clips can be decoded, and written where they are to go: asked before they are sampled. */
static int check_video(vditc_session* session, const Asked* asked, const vditc_tensor* latents) {
  if (vditc_session_frames(session, latents->shape + 1, NULL, NULL, NULL)) return failed();
  for (uint64_t i = 0; i < (uint64_t)latents->shape[0]; ++i) {
    const int error = video_file_blocked(asked->out, i, (uint64_t)latents->shape[0], asked->force);
    if (error == EEXIST) return refused("--out", asked->out, "new files, or --force; a folder that is not there yet");
    if (error) return refused("too little memory", NULL, "some for names");
  }
  return 0;
}

/* All clips are decoded before the first file gets its name, and each is whole. */
static int write_video(vditc_bundle* bundle, vditc_session* session, const Asked* asked, const vditc_tensor* latents) {
  const uint64_t clips = (uint64_t)latents->shape[0], bytes = latents->bytes / clips;
  uint64_t frames = 0, height = 0, width = 0;
  vditc_bundle_info about = {0};
  about.abi_version = VDITC_ABI_VERSION, about.struct_size = sizeof about;
  if (vditc_bundle_info_get(bundle, &about) || vditc_session_frames(session, latents->shape + 1, &frames, &height, &width)) return failed();
  video_file* videos = calloc(clips, sizeof *videos);
  if (videos == NULL) return refused("too little memory", NULL, "some for clips");
  Writing now = {NULL, 0, clips, 0};
  vditc_status status = VDITC_OK;
  for (; now.clip < clips && !status && !now.error; ++now.clip) {
    now.video = videos + now.clip;
    now.error = video_file_open(now.video, asked->out, now.clip, clips, width, height, about.fps);
    if (now.error) break;
    const float* clip = (const float*)latents->data + now.clip * (bytes / sizeof(float));
    status = vditc_session_decode(session, clip, bytes, latents->shape + 1, write_frames, &now);
    if (!status) now.error = video_file_finish(now.video);
  }
  for (uint64_t i = 0; i < clips && !status && !now.error; ++i) {
    now.error = video_file_publish(videos + i);
    if (now.error) break;
    printf("%s: %" PRIu64 " frames of %" PRIu64 " x %" PRIu64 ", %" PRId32 " a second\n", videos[i].path, frames, width, height, about.fps);
  }
  for (uint64_t i = 0; i < clips; ++i) video_file_discard(videos + i);
  free(videos);
  if (now.error) {
    fprintf(stderr, "c_host: %s: %s\n", asked->out, strerror(now.error));
    return 1;
  }
  if (status == VDITC_CANCELLED) return stopped();
  return status ? failed() : 0;
}

static int write_latents(const Asked* asked, const vditc_tensor* latents) {
  if (vditc_tensors_write(asked->out, latents, 1)) return failed();
  printf("%s: latents", asked->out);
  for (uint32_t i = 0; i < latents->rank; ++i) printf("%s%" PRId64, i ? " x " : " ", latents->shape[i]);
  printf("\n");
  return 0;
}

static int sample(vditc_bundle* bundle, vditc_session* session, vditc_conditioning* conditioning, const Asked* asked) {
  uint64_t clips = 0;
  vditc_tensor made = {0};
  if (vditc_conditioning_shape(conditioning, &clips, made.shape + 1)) return failed();
  if (asked->has_seed) {
    uint64_t* seeds = malloc(clips * sizeof *seeds);
    if (seeds == NULL) return refused("too little memory", NULL, "some for seeds");
    for (uint64_t i = 0; i < clips; ++i) seeds[i] = asked->seed + i;
    const vditc_status status = vditc_conditioning_set_seeds(conditioning, seeds, clips);
    free(seeds);
    if (status) return failed();
  }
  vditc_session_info about = {0};
  about.abi_version = VDITC_ABI_VERSION, about.struct_size = sizeof about;
  if (vditc_session_info_get(session, &about)) return failed();
  made.name = "latents", made.dtype = VDITC_F32, made.rank = 5, made.shape[0] = (int64_t)clips;
  const int video = !ends_with(asked->out, ".safetensors");
  const int blocked = video ? check_video(session, asked, &made) : 0;
  if (blocked) return blocked;
  const vditc_status size = vditc_session_sample(session, conditioning, NULL, NULL, NULL, 0, &made.bytes);
  if (size != VDITC_ERROR_SHORT_BUFFER) return failed();
  float* latents = malloc(made.bytes);
  if (latents == NULL) {
    fprintf(stderr, "c_host: no memory for %" PRIu64 " bytes of latents\n", made.bytes);
    return 1;
  }
  made.data = latents;
  int code;
  const vditc_status status = vditc_session_sample(session, conditioning, show, &about, latents, made.bytes, NULL);
  if (status == VDITC_CANCELLED) code = stopped();
  else if (status) code = failed();
  else code = video ? write_video(bundle, session, asked, &made) : write_latents(asked, &made);
  free(latents);
  return code;
}

int main(int count, char** words) {
  Asked asked = {0};
  const int wrong = parse(count, words, &asked);
  if (wrong) return wrong;
  struct sigaction action = {0};
  action.sa_handler = on_interrupt;
  action.sa_flags = (int)SA_RESETHAND;
  sigaction(SIGINT, &action, NULL);

  vditc_bundle* bundle = NULL;
  vditc_conditioning* conditioning = NULL;
  vditc_session* session = NULL;
  vditc_session_options options;
  int code;
  if (vditc_bundle_open(asked.bundle, NULL, &bundle)) code = failed();
  else if (asked.list) code = list(bundle);
  else if ((asked.conditioning ? vditc_conditioning_open(asked.conditioning, &conditioning) : prompt_clip(bundle, &asked.prompt, &conditioning)) || vditc_session_options_init(&options, sizeof options)) code = failed();
  else {
    options.backend = asked.backend, options.steps = asked.steps;
    if (vditc_session_create(bundle, &options, &session)) code = failed();
    else if (asked.prompt.text && prompt_encode(session, &asked.prompt, conditioning)) code = failed();
    else code = sample(bundle, session, conditioning, &asked);
  }
  vditc_session_destroy(session);
  vditc_conditioning_destroy(conditioning);
  vditc_bundle_destroy(bundle);
  return code;
}
