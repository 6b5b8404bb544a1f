/* A clip that a prompt tells of, in place of a saved conditioning. */
#ifndef PROMPTS_H
#define PROMPTS_H

#include "vditc/vditc.h"

#define PROMPT_USAGE                                                                                        \
  "  --prompt TEXT     what the clip shows, in place of a conditioning\n"                                   \
  "  --negative TEXT   what it is to lead away from [default: nothing]\n"                                   \
  "  --size FxHxW      frames, height, width of the latents, with --prompt [default: the bundle's]\n"

typedef struct Prompt {
  const char *text, *negative, *size;
} Prompt;

/* Where the value of an option goes; NULL for other options. */
const char** prompt_option(Prompt* prompt, const char* option);
/* Whether `size` is three whole numbers, or not given. */
int prompt_size_fits(const Prompt* prompt);
/* One clip of the bundle's size, or the prompt's. */
vditc_status prompt_clip(vditc_bundle* bundle, const Prompt* prompt, vditc_conditioning** conditioning);
vditc_status prompt_encode(vditc_session* session, const Prompt* prompt, vditc_conditioning* conditioning);

#endif
