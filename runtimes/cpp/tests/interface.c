/* The interface from C99: what a host does, and what it may do wrong. Arguments: a bundle, a conditioning. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vditc/vditc.h"

#define CHECK(condition)                                                                                  \
  do {                                                                                                    \
    if (!(condition)) {                                                                                   \
      fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, vditc_last_error());            \
      exit(1);                                                                                            \
    }                                                                                                     \
  } while (0)

static int32_t stop_after(void* user, const vditc_progress* now) { return now->done >= *(const uint64_t*)user; }

static int32_t predict(void* user, const vditc_tensor* inputs, uint64_t count, int32_t expert, int32_t step, float* prediction, uint64_t bytes) {
  (void)expert, (void)step;
  *(int*)user += 1;
  CHECK(count > 0 && strcmp(inputs[0].name, "hidden_states") == 0 && inputs[0].dtype == VDITC_F32 && inputs[0].bytes == bytes);
  memset(prediction, 0, bytes);
  return 0;
}

int main(int count, char** arguments) {
  CHECK(count == 3);
  CHECK(vditc_abi_version() == VDITC_ABI_VERSION && strlen(vditc_version()) > 0);

  vditc_bundle_options how;
  CHECK(vditc_bundle_options_init(&how, sizeof how) == VDITC_OK);
  how.hashes = 1;
  vditc_bundle* bundle = NULL;
  CHECK(vditc_bundle_open(arguments[1], &how, &bundle) == VDITC_OK && bundle != NULL);
  vditc_bundle_info about = {0};
  about.abi_version = VDITC_ABI_VERSION, about.struct_size = sizeof about;
  CHECK(vditc_bundle_info_get(bundle, &about) == VDITC_OK && about.inputs == 4 && about.steps == 6);
  size_t needed = 0;
  CHECK(vditc_bundle_manifest(bundle, NULL, 0, &needed) == VDITC_ERROR_SHORT_BUFFER && needed > 100);
  char* text = malloc(needed);
  CHECK(vditc_bundle_manifest(bundle, text, needed, NULL) == VDITC_OK && strlen(text) + 1 == needed);
  free(text);

  vditc_conditioning* clips = NULL;
  CHECK(vditc_conditioning_open(arguments[2], &clips) == VDITC_OK);
  vditc_session_options options;
  CHECK(vditc_session_options_init(&options, sizeof options) == VDITC_OK && isnan(options.guidance) && options.weight_budget == -1);
  options.backend = "null";
  vditc_session* session = NULL;
  CHECK(vditc_session_create(bundle, &options, &session) == VDITC_OK);
  uint64_t bytes = 0;
  CHECK(vditc_session_sample(session, clips, NULL, NULL, NULL, 0, &bytes) == VDITC_ERROR_SHORT_BUFFER && bytes > 0);
  float* latents = calloc(1, bytes);
  uint64_t last = 3;
  CHECK(vditc_session_sample(session, clips, stop_after, &last, latents, bytes, NULL) == VDITC_CANCELLED && latents[0] == 0.0f);
  CHECK(strstr(vditc_last_error(), "a callback that asks to stop") != NULL);
  CHECK(vditc_session_sample(session, clips, NULL, NULL, latents, bytes, NULL) == VDITC_OK && latents[0] != 0.0f);
  CHECK(vditc_session_cancel(session) == VDITC_OK);
  CHECK(vditc_session_sample(session, clips, NULL, NULL, latents, bytes, NULL) == VDITC_CANCELLED);
  CHECK(vditc_session_destroy(session) == VDITC_OK && vditc_session_destroy(session) == VDITC_ERROR_HANDLE);

  int calls = 0;
  vditc_denoiser own = {VDITC_ABI_VERSION, sizeof own, &calls, predict};
  options.backend = "host", options.denoiser = &own, options.guidance = 1.0;
  CHECK(vditc_session_create(bundle, &options, &session) == VDITC_OK && vditc_bundle_destroy(bundle) == VDITC_OK);
  CHECK(vditc_session_sample(session, clips, NULL, NULL, latents, bytes, NULL) == VDITC_OK && calls == 12); /* two clips of six steps */
  CHECK(vditc_session_destroy(session) == VDITC_OK);

  vditc_tensor made = {"latents", latents, bytes, VDITC_F32, 1, {0}};
  made.shape[0] = (int64_t)(bytes / sizeof(float));
  CHECK(vditc_tensors_write("latents.safetensors", &made, 1) == VDITC_OK);
  vditc_tensors* written = NULL;
  vditc_tensor found;
  CHECK(vditc_tensors_open("latents.safetensors", &written) == VDITC_OK && vditc_tensors_find(written, "latents", &found) == VDITC_OK);
  CHECK(found.bytes == bytes && memcmp(found.data, latents, bytes) == 0);
  CHECK(vditc_tensors_destroy(written) == VDITC_OK && remove("latents.safetensors") == 0);

  CHECK(vditc_bundle_open(NULL, NULL, &bundle) == VDITC_ERROR_ARGUMENT && vditc_bundle_open("x", NULL, NULL) == VDITC_ERROR_ARGUMENT);
  CHECK(vditc_bundle_open("no-such-bundle", NULL, &bundle) == VDITC_ERROR_NOT_FOUND && bundle == NULL);
  CHECK(vditc_bundle_verify(NULL, NULL) == VDITC_ERROR_HANDLE && vditc_session_cancel((vditc_session*)&about) == VDITC_ERROR_HANDLE);
  CHECK(vditc_noise(0, NULL, 4) == VDITC_ERROR_ARGUMENT && vditc_noise(0, NULL, 0) == VDITC_OK);
  CHECK(vditc_conditioning_destroy(clips) == VDITC_OK && vditc_conditioning_destroy(NULL) == VDITC_OK);
  free(latents);
  return 0;
}
