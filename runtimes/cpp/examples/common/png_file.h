/* PNG files without a library: what deflate calls stored, so that a picture is about as large as its pixels. For C99 and C++. */
#ifndef VDITC_EXAMPLES_PNG_FILE_H
#define VDITC_EXAMPLES_PNG_FILE_H

#include <stdint.h>
#include <stdio.h>

typedef struct png_file {
  FILE* file;
  uint32_t crc;          /* of the chunk */
  uint32_t adler, carry; /* of all rows */
} png_file;

static inline void png_put(png_file* png, const void* data, size_t size) {
  const uint8_t* bytes = (const uint8_t*)data;
  fwrite(bytes, 1, size, png->file);
  for (size_t i = 0; i < size; ++i) {
    png->crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) png->crc = (png->crc >> 1) ^ (0xEDB88320u & (0u - (png->crc & 1u)));
  }
}

static inline void png_put_number(png_file* png, uint32_t number) {
  const uint8_t bytes[4] = {(uint8_t)(number >> 24), (uint8_t)(number >> 16), (uint8_t)(number >> 8), (uint8_t)number};
  png_put(png, bytes, 4);
}

static inline void png_begin_chunk(png_file* png, uint32_t size, const char* kind) {
  png_put_number(png, size);
  png->crc = 0xFFFFFFFFu;
  png_put(png, kind, 4);
}

static inline void png_end_chunk(png_file* png) { png_put_number(png, png->crc ^ 0xFFFFFFFFu); }

/* Of a row: the byte that says how it is filtered, which is not at all, and its pixels. */
static inline void png_put_data(png_file* png, const uint8_t* bytes, size_t size) {
  png_put(png, bytes, size);
  for (size_t i = 0; i < size; ++i) {
    png->adler = (png->adler + bytes[i]) % 65521u;
    png->carry = (png->carry + png->adler) % 65521u;
  }
}

/* `pixels`: red, green, blue, rows from the top. Errors of writing are left to ferror(file). */
static inline void png_write(FILE* file, const uint8_t* pixels, uint32_t width, uint32_t height) {
  const size_t most = 65535; /* bytes of a stored block */
  png_file png = {file, 0, 1, 0};
  const size_t row = 3 * (size_t)width + 1, blocks = (row + most - 1) / most;
  png_put(&png, "\x89PNG\r\n\x1a\n", 8);
  png_begin_chunk(&png, 13, "IHDR");
  png_put_number(&png, width);
  png_put_number(&png, height);
  png_put(&png, "\x08\x02\0\0\0", 5); /* 8 bits of three colours */
  png_end_chunk(&png);
  for (uint32_t y = 0; y < height; ++y) {
    const int first = y == 0, last = y + 1 == height;
    png_begin_chunk(&png, (uint32_t)(row + 5 * blocks + (first ? 2 : 0) + (last ? 4 : 0)), "IDAT");
    if (first) png_put(&png, "\x78\x01", 2);
    for (size_t at = 0; at < row; at += most) {
      const size_t size = row - at < most ? row - at : most;
      const uint8_t final = last && at + size == row, low = (uint8_t)size, high = (uint8_t)(size >> 8);
      const uint8_t head[5] = {final, low, high, (uint8_t)~low, (uint8_t)~high};
      png_put(&png, head, 5);
      if (at == 0) png_put_data(&png, (const uint8_t*)"", 1);
      png_put_data(&png, pixels + (at == 0 ? 0 : at - 1), at == 0 ? size - 1 : size);
    }
    if (last) png_put_number(&png, png.carry << 16 | png.adler);
    png_end_chunk(&png);
    pixels += row - 1;
  }
  png_begin_chunk(&png, 0, "IEND");
  png_end_chunk(&png);
}

#endif
