/* A clip as something that people look at, written as its frames come: CLIP.y4m, or a folder of pictures, FOLDER/ with 0001.png, ...
 * For C99 and C++ on POSIX.
 *
 * It is written under a temporary name, and gets its own by video_file_publish: there is a whole clip, or none. Functions return 0, or
 * errno.
 *
 * A y4m holds Y'CbCr 4:4:4 of BT.601 in limited range (Y' 16 to 235, Cb and Cr 16 to 240), as `vditc run` writes it. Its header names the
 * range, and has no word for the matrix: players that take large clips for BT.709 are to be told.
 */
#ifndef VDITC_EXAMPLES_VIDEO_FILE_H
#define VDITC_EXAMPLES_VIDEO_FILE_H

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "png_file.h"

#define VIDEO_FILE_ENDINGS ".y4m, or a folder that ends in /, for pictures"

typedef struct video_file {
  char *path, *temporary; /* without the / of a folder */
  int is_folder;
  FILE* y4m;
  uint8_t* planes; /* of a frame */
  uint64_t width, height, frames;
} video_file;

static inline int video_file_is_folder(const char* out) { return out[0] != '\0' && out[strlen(out) - 1] == '/'; }

/* Whether the ending is one of those above. */
static inline int video_file_knows(const char* out) {
  const size_t length = strlen(out);
  return length > 1 && (video_file_is_folder(out) || (length > 4 && strcmp(out + length - 4, ".y4m") == 0));
}

/* Where clip `clip` of `clips` goes: of several, -1, -2, ... stands behind the name. Freed by the caller; NULL: no memory. */
static inline char* video_file_path(const char* out, uint64_t clip, uint64_t clips) {
  const int folder = video_file_is_folder(out);
  size_t stem = strlen(out) - (folder ? 1 : 4);
  while (folder && stem > 1 && out[stem - 1] == '/') --stem;
  char* made = (char*)malloc(stem + 32);
  if (made == NULL) return NULL;
  memcpy(made, out, stem);
  const int number = clips > 1 ? snprintf(made + stem, 24, "-%" PRIu64, clip + 1) : 0;
  strcpy(made + stem + number, folder ? "" : ".y4m");
  return made;
}

/* ENOMEM, or EEXIST where something is in the way: a file without `force`, and any folder, for what is in that stays. */
static inline int video_file_blocked(const char* out, uint64_t clip, uint64_t clips, int force) {
  struct stat about;
  char* path = video_file_path(out, clip, clips);
  if (path == NULL) return ENOMEM;
  const int there = lstat(path, &about) == 0;
  free(path);
  return there && (!force || video_file_is_folder(out) || S_ISDIR(about.st_mode)) ? EEXIST : 0;
}

static inline int video_file_open(video_file* video, const char* out, uint64_t clip, uint64_t clips, uint64_t width, uint64_t height,
                                  int32_t fps) {
  memset(video, 0, sizeof *video);
  video->width = width, video->height = height, video->is_folder = video_file_is_folder(out);
  video->path = video_file_path(out, clip, clips);
  const size_t size = video->path == NULL ? 0 : strlen(video->path) + 32;
  char* temporary = (char*)malloc(size + 1);
  if (video->path == NULL || temporary == NULL) {
    free(temporary);
    return ENOMEM;
  }
  snprintf(temporary, size, "%s.%ld.part", video->path, (long)getpid());
  if (video->is_folder) {
    if (mkdir(temporary, 0777) == 0) video->temporary = temporary;
  } else {
    video->planes = (uint8_t*)malloc((size_t)(3 * width * height));
    video->y4m = video->planes == NULL ? NULL : fopen(temporary, "wb");
    if (video->y4m != NULL) video->temporary = temporary;
  }
  if (video->temporary == NULL) {
    const int error = errno;
    free(temporary);
    return error;
  }
  if (video->y4m != NULL) {
    fprintf(video->y4m, "YUV4MPEG2 W%" PRIu64 " H%" PRIu64 " F%" PRId32 ":1 Ip A1:1 C444 XYSCSS=444 XCOLORRANGE=LIMITED\n", width, height,
            fps);
  }
  return 0;
}

static inline void video_file_y4m_frame(video_file* video, const uint8_t* pixels) {
  const size_t size = (size_t)(video->width * video->height);
  for (size_t i = 0; i < size; ++i) {
    const double r = pixels[3 * i] / 255.0, g = pixels[3 * i + 1] / 255.0, b = pixels[3 * i + 2] / 255.0;
    video->planes[i] = (uint8_t)(16.5 + 65.481 * r + 128.553 * g + 24.966 * b);
    video->planes[size + i] = (uint8_t)(128.5 - 37.797 * r - 74.203 * g + 112 * b);
    video->planes[2 * size + i] = (uint8_t)(128.5 + 112 * r - 93.786 * g - 18.214 * b);
  }
  fputs("FRAME\n", video->y4m);
  fwrite(video->planes, 1, 3 * size, video->y4m);
}

/* The name of a picture in the temporary folder; freed by the caller. */
static inline char* video_file_picture(const video_file* video, uint64_t number) {
  const size_t size = strlen(video->temporary) + 32;
  char* made = (char*)malloc(size);
  if (made != NULL) snprintf(made, size, "%s/%04" PRIu64 ".png", video->temporary, number);
  return made;
}

static inline int video_file_close(FILE* file) {
  errno = 0;
  const int failed = fflush(file) != 0 || ferror(file);
  const int error = failed ? (errno ? errno : EIO) : 0;
  return fclose(file) != 0 && error == 0 ? (errno ? errno : EIO) : error;
}

/* `pixels`: uint8 [count, height, width, 3]. */
static inline int video_file_add(video_file* video, const uint8_t* pixels, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i, pixels += 3 * video->width * video->height) {
    ++video->frames;
    if (video->y4m != NULL) {
      video_file_y4m_frame(video, pixels);
      if (ferror(video->y4m)) return errno ? errno : EIO;
      continue;
    }
    char* name = video_file_picture(video, video->frames);
    FILE* file = name == NULL ? NULL : fopen(name, "wb");
    free(name);
    if (file == NULL) return errno;
    png_write(file, pixels, (uint32_t)video->width, (uint32_t)video->height);
    const int error = video_file_close(file);
    if (error) return error;
  }
  return 0;
}

/* When all frames are there. */
static inline int video_file_finish(video_file* video) {
  FILE* file = video->y4m;
  video->y4m = NULL;
  return file == NULL ? 0 : video_file_close(file);
}

static inline int video_file_publish(video_file* video) {
  if (rename(video->temporary, video->path) != 0) return errno;
  free(video->temporary);
  video->temporary = NULL;
  return 0;
}

/* Frees it. What was not published is gone. */
static inline void video_file_discard(video_file* video) {
  if (video->y4m != NULL) fclose(video->y4m);
  if (video->temporary != NULL && !video->is_folder) unlink(video->temporary);
  if (video->temporary != NULL && video->is_folder) {
    for (uint64_t i = 1; i <= video->frames; ++i) {
      char* name = video_file_picture(video, i);
      if (name != NULL) unlink(name);
      free(name);
    }
    rmdir(video->temporary);
  }
  free(video->temporary);
  free(video->path);
  free(video->planes);
  memset(video, 0, sizeof *video);
}

#endif
