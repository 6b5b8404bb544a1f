#include "prompts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const char** prompt_option(Prompt* prompt, const char* option) {
  if (!strcmp(option, "--prompt")) return &prompt->text;
  if (!strcmp(option, "--negative")) return &prompt->negative;
  return strcmp(option, "--size") ? NULL : &prompt->size;
}

static int read_size(const char* text, int64_t size[3]) {
  int end = 0;
  const int read = sscanf(text, "%6" SCNd64 "x%6" SCNd64 "x%6" SCNd64 "%n", &size[0], &size[1], &size[2], &end);
  return read == 3 && text[end] == '\0' && size[0] > 0 && size[1] > 0 && size[2] > 0;
}

int prompt_size_fits(const Prompt* prompt) {
  int64_t size[3];
  return prompt->size == NULL || read_size(prompt->size, size);
}

vditc_status prompt_clip(vditc_bundle* bundle, const Prompt* prompt, vditc_conditioning** conditioning) {
  vditc_bundle_info about = {0};
  about.abi_version = VDITC_ABI_VERSION, about.struct_size = sizeof about;
  const vditc_status status = vditc_bundle_info_get(bundle, &about);
  if (status) return status;
  if (prompt->size) read_size(prompt->size, about.latent_shape + 1);
  const uint64_t seed = 0;
  return vditc_conditioning_create(about.latent_shape, &seed, 1, conditioning);
}

vditc_status prompt_encode(vditc_session* session, const Prompt* prompt, vditc_conditioning* conditioning) {
  const char* negative = prompt->negative ? prompt->negative : "";
  return vditc_session_encode(session, &prompt->text, &negative, 1, conditioning);
}
