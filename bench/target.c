/* Threads of three kinds, each 20 frames deep, that call a function to be patched:
 *   busy   reads the clock without pause and keeps the largest gap between two readings
 *   tick   sleeps to an absolute deadline every millisecond and keeps the largest lateness
 *   block  waits on a pipe for ever
 *   target BUSY TICK BLOCK FILE SECONDS
 * The gaps are in FILE (shared memory); adding one to its first word resets them. Prints "ready PID". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct shared {
  volatile uint64_t epoch;
  volatile uint64_t gap[1023];
};

static struct shared *shared;
static int never[2];
static atomic_int ready;

struct thread {
  int index;
  int kind;
};

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((noinline, noipa)) int patched_function(int x) {
#ifdef PATCHED
  return x + 2;
#else
  return x + 1;
#endif
}

static __attribute__((noinline)) int body(struct thread *self) {
  atomic_fetch_add(&ready, 1);
  if (self->kind == 2) {
    char c;
    return (int)read(never[0], &c, 1);
  }
  uint64_t epoch = 0, last = now();
  struct timespec deadline;
  clock_gettime(CLOCK_MONOTONIC, &deadline);
  for (;;) {
    if (shared->epoch != epoch) {
      epoch = shared->epoch;
      shared->gap[self->index] = 0;
      last = now();
      clock_gettime(CLOCK_MONOTONIC, &deadline);
    }
    patched_function(1);
    uint64_t gap;
    if (self->kind == 0) {
      uint64_t time = now();
      gap = time - last;
      last = time;
    } else {
      deadline.tv_nsec += 1000000;
      if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_nsec -= 1000000000;
        deadline.tv_sec++;
      }
      clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL);
      gap = now() - ((uint64_t)deadline.tv_sec * 1000000000u + (uint64_t)deadline.tv_nsec);
      if (gap > 1000000) clock_gettime(CLOCK_MONOTONIC, &deadline);
    }
    if (gap > shared->gap[self->index]) shared->gap[self->index] = gap;
  }
}

static __attribute__((noinline)) int deeper(int depth, struct thread *self) {
  volatile char frame[16 + (depth & 3) * 32];
  frame[0] = (char)depth;
  int result = depth <= 0 ? body(self) : deeper(depth - 1, self);
  return result + frame[0];
}

static void *run(void *argument) { return (void *)(long)deeper(16, argument); }

int main(int argc, char **argv) {
  if (argc < 6) return 2;
  int counts[3] = {atoi(argv[1]), atoi(argv[2]), atoi(argv[3])};
  int fd = open(argv[4], O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (fd < 0 || ftruncate(fd, sizeof *shared) || pipe(never)) return 1;
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  alarm((unsigned)atoi(argv[5]));
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 256 * 1024);
  int total = 0;
  for (int kind = 0; kind < 3; kind++) {
    for (int i = 0; i < counts[kind]; i++) {
      struct thread *self = malloc(sizeof *self);
      *self = (struct thread){total++, kind};
      pthread_t thread;
      if (pthread_create(&thread, &attributes, run, self)) return 1;
    }
  }
  while (atomic_load(&ready) < total) usleep(1000);
  printf("ready %d\n", getpid());
  fflush(stdout);
  for (;;) pause();
}
