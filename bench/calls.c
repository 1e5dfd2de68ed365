/* What a call of a redirected function costs. One thread calls without pause and prints, many times a second,
 *   call NS jmp NS       ns per call of called(), and of a function that begins with a jump, for comparison.
 * A second thread sits inside of held() until SIGUSR1, so that a patch of both functions can't complete before.
 *   calls SECONDS        prints "ready PID" first; compiled with -DPATCHED for the new versions */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#ifdef PATCHED
#define STEP 2
#else
#define STEP 1
#endif

/* Aligned like the code of a patch, so that only the redirect differs. */
__attribute__((noinline, noipa, aligned(64))) int called(int x) { return x * 3 + STEP; }
__attribute__((noinline, noipa, aligned(64))) int behind_jump(int x) { return x * 3 + 1; }
__attribute__((naked, noinline, noipa, aligned(64))) int jump(int x __attribute__((unused))) { __asm__("jmp behind_jump"); }

static volatile sig_atomic_t released;
static void release(int signal) {
  (void)signal;
  released = 1;
}

__attribute__((noinline, noipa)) int held(void) {
  while (!released) usleep(1000);
  return STEP;
}

static void *hold(void *unused) {
  held();
  return unused;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#define CALLS 4000000
#define MEASURE(function)                                         \
  ({                                                              \
    double start = now();                                         \
    for (int i = 0; i < CALLS; i++) value = function(value);      \
    (now() - start) / CALLS;                                      \
  })

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 60);
  signal(SIGUSR1, release);
  pthread_t thread;
  if (pthread_create(&thread, NULL, hold, NULL)) return 1;
  printf("ready %d\n", getpid());
  for (int value = 1;;) {
    double call = MEASURE(called), jmp = MEASURE(jump);
    printf("call %.4f jmp %.4f\n", call, jmp);
    fflush(stdout);
  }
}
