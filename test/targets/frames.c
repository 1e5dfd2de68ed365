/* Stacks to be walked.
 *   frames deep SECONDS       threads blocked at several depths, without frame pointers; main reads the clock
 *   frames displaced SECONDS  main sits in held() until SIGUSR1, then calls first_calls(), whose very first instructions
 *                             are a call; that lasts until SIGUSR2. Compiled with -DPATCHED for new versions of both.
 * Prints "ready PID". */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t go, done;
static volatile int calls;

static void note(int signal) {
  if (signal == SIGUSR1) go = 1;
  else done = 1;
}

void blocker(void) {
  while (!done) usleep(1000);
}

/* With a body of its own in assembly: a compiler would not begin with the call. */
void first_calls(void);
__asm__(".pushsection .text.first_calls,\"ax\",@progbits\n.globl first_calls\n.type first_calls,@function\nfirst_calls:\n"
        ".cfi_startproc\n"
#ifdef PATCHED
        "sub $24,%rsp\n.cfi_adjust_cfa_offset 24\ncall blocker\nadd $24,%rsp\n.cfi_adjust_cfa_offset -24\n"
#else
        "sub $8,%rsp\n.cfi_adjust_cfa_offset 8\ncall blocker\nadd $8,%rsp\n.cfi_adjust_cfa_offset -8\n"
#endif
        "ret\n.cfi_endproc\n.size first_calls,.-first_calls\n.popsection");

__attribute__((noinline, noipa)) int held(void) {
  while (!go) usleep(1000);
  first_calls();
#ifdef PATCHED
  return ++calls + 1;
#else
  return ++calls;
#endif
}

static int never[2];

static __attribute__((noinline)) int deeper(int depth) {
  volatile char frame[16 + (depth & 3) * 32];
  frame[0] = (char)depth;
  char byte;
  int result = depth <= 0 ? (int)read(never[0], &byte, 1) : deeper(depth - 1);
  return result + frame[0];
}

static int compare(const void *a, const void *b) {
  deeper(3);
  return *(const char *)a - *(const char *)b;
}

/* The last one blocks behind a callback that the C library calls. */
static void *run(void *depth) {
  char pair[2] = {2, 1};
  if ((long)depth < 0) qsort(pair, 2, 1, compare);
  return (void *)(long)deeper((int)(long)depth);
}

int main(int argc, char **argv) {
  alarm(argc > 2 ? (unsigned)atoi(argv[2]) : 60);
  signal(SIGUSR1, note);
  signal(SIGUSR2, note);
  if (pipe(never)) return 1;
  if (argc > 1 && strcmp(argv[1], "displaced") == 0) {
    printf("ready %d\n", getpid());
    fflush(stdout);
    for (;;) {
      printf("%d\n", held());
      fflush(stdout);
      usleep(10000);
    }
  }
  const long depths[] = {0, 1, 7, 40, 300, -1};
  for (size_t i = 0; i < sizeof depths / sizeof *depths; i++) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, (void *)depths[i])) return 1;
  }
  usleep(50000);
  printf("ready %d\n", getpid());
  fflush(stdout);
  for (;;) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
  }
}
