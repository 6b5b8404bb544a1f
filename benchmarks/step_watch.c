/* What happens between the steps of libvditc's loop: time, and calls of the allocator, which this library counts where it is preloaded. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

static atomic_ullong calls;

void* malloc(size_t size) { return atomic_fetch_add(&calls, 1), __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return atomic_fetch_add(&calls, 1), __libc_calloc(count, size); }
void* realloc(void* from, size_t size) { return atomic_fetch_add(&calls, 1), __libc_realloc(from, size); }
void* memalign(size_t to, size_t size) { return atomic_fetch_add(&calls, 1), __libc_memalign(to, size); }
void* aligned_alloc(size_t to, size_t size) { return memalign(to, size); }
int posix_memalign(void** made, size_t to, size_t size) { return (*made = memalign(to, size)) || size == 0 ? 0 : ENOMEM; }

typedef struct Moment {
  uint64_t calls;
  double wall, cpu; /* seconds, of all threads */
} Moment;

typedef struct Watch {
  uint64_t capacity, count;
  Moment* moments; /* one a step, and two a call of a model: begun, ended */
} Watch;

static void note(Watch* watch, int with_cpu) {
  if (watch->count >= watch->capacity) return;
  struct timespec wall, cpu = {0, 0};
  if (with_cpu) clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  clock_gettime(CLOCK_MONOTONIC, &wall);
  Moment* now = watch->moments + watch->count++;
  now->calls = atomic_load(&calls);
  now->wall = (double)wall.tv_sec + 1e-9 * (double)wall.tv_nsec;
  now->cpu = (double)cpu.tv_sec + 1e-9 * (double)cpu.tv_nsec;
}

/* vditc_progress_fn */
int32_t watch_step(void* user, const void* progress) {
  (void)progress;
  note(user, 0);
  return 0;
}

/* vditc_denoiser.predict: a model that answers at once */
int32_t watch_model(void* user, const void* inputs, uint64_t count, int32_t expert, int32_t step, float* prediction, uint64_t bytes) {
  (void)inputs, (void)count, (void)expert, (void)step, (void)prediction, (void)bytes;
  note(user, 1);
  note(user, 1);
  return 0;
}
