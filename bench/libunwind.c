/* libunwind-ptrace on all threads of a process, its cache kept: the peer of livegraft's own walk.
 *   libunwind PID ROUNDS    prints one line: frames per second of walking alone, ms that each thread was held (medians) */
#define _GNU_SOURCE
#include <dirent.h>
#include <libunwind-ptrace.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

enum { MOST_THREADS = 4096, MOST_FRAMES = 200 };

static int threads[MOST_THREADS], count;
static void *contexts[MOST_THREADS];
static unw_addr_space_t space;

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *values, int n) {
  qsort(values, (size_t)n, sizeof *values, compare);
  return values[n / 2];
}

static int walk(int index) {
  unw_cursor_t cursor;
  int frames = 0;
  if (unw_init_remote(&cursor, space, contexts[index])) exit(1);
  do {
    unw_word_t ip, sp;
    unw_get_reg(&cursor, UNW_REG_IP, &ip);
    unw_get_reg(&cursor, UNW_REG_SP, &sp);
    frames++;
  } while (frames < MOST_FRAMES && unw_step(&cursor) > 0);
  return frames;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  char path[64];
  snprintf(path, sizeof path, "/proc/%s/task", argv[1]);
  DIR *folder = opendir(path);
  if (!folder) return 1;
  for (struct dirent *entry; (entry = readdir(folder)) && count < MOST_THREADS;)
    if (entry->d_name[0] != '.') threads[count++] = atoi(entry->d_name);
  closedir(folder);
  space = unw_create_addr_space(&_UPT_accessors, 0);
  unw_set_caching_policy(space, UNW_CACHE_GLOBAL);
  for (int i = 0; i < count; i++) {
    if (ptrace(PTRACE_SEIZE, threads[i], 0, 0)) return 1;
    contexts[i] = _UPT_create(threads[i]);
  }
  int rounds = atoi(argv[2]), samples = 0;
  double *held = calloc((size_t)(rounds * count), sizeof *held), *walked = calloc((size_t)rounds, sizeof *walked);
  long frames = 0;
  for (int round = 0; round < rounds; round++) {
    frames = 0;
    for (int i = 0; i < count; i++) {
      int status;
      double start = now_us();
      if (ptrace(PTRACE_INTERRUPT, threads[i], 0, 0) || waitpid(threads[i], &status, __WALL) < 0) return 1;
      double stopped = now_us();
      frames += walk(i);
      walked[round] += now_us() - stopped;
      ptrace(PTRACE_CONT, threads[i], 0, 0);
      held[samples++] = now_us() - start;
    }
  }
  double us = median(walked, rounds);
  printf("%ld frames %.0f frames/s %.4f ms held\n", frames, (double)frames / us * 1e6, median(held, samples) / 1e3);
  return 0;
}
