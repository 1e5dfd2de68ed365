/* Threads that can be held inside of an old version. One of them parks in hold() until SIGUSR1 lets it out of there once;
 * the others call work() often. Between two calls every thread goes through checkpoint(), where it holds neither.
 *   parked SECONDS [THREADS] [gs]
 * Compiled with -DPATCHED for the new versions, or -DWORK=n, -DHOLD=n, -DCHECKPOINT for one function only; with -DCALLING new code calls checkpoint(). Prints "ready PID", then
 * once in 20 ms the version that main sees; the parked thread prints "out VERSION" whenever it comes out of hold(). */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef PATCHED
#define VERSION 2
#else
#define VERSION 1
#endif
#ifndef WORK
#define WORK VERSION
#endif
#ifndef HOLD
#define HOLD VERSION
#endif

static volatile int zero;
static int ends[2];

__attribute__((noinline, noipa)) void checkpoint(int unused) {
  if (unused) abort();
#ifdef CHECKPOINT
  zero = 0;
#endif
}

__attribute__((noinline, noipa)) int work(int value) {
#ifdef CALLING
  checkpoint(zero);
#endif
  return value * 0 + WORK + zero;
}

__attribute__((noinline, noipa)) int hold(int fd) {
  char byte;
  while (read(fd, &byte, 1) != 1) {}
  return HOLD + zero;
}

static void *parking(void *unused) {
  for (;;) {
    int version = hold(ends[0]);
    printf("out %d\n", version);
    fflush(stdout);
    checkpoint(zero);
  }
  return unused;
}

static void *working(void *unused) {
  for (;;) {
    if (work(1) < 1) abort();
    checkpoint(zero);
    usleep(500);
  }
  return unused;
}

static void let_out(int signal) {
  (void)signal;
  if (write(ends[1], "", 1) != 1) abort();
}

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 30);
  int threads = argc > 2 ? atoi(argv[2]) : 2;
  static char own[64];
  if (argc > 3 && strcmp(argv[3], "gs") == 0) syscall(SYS_arch_prctl, ARCH_SET_GS, own);
  pthread_t thread;
  if (pipe(ends) || signal(SIGUSR1, let_out) == SIG_ERR) abort();
  for (int i = 0; i < threads; i++) {
    if (pthread_create(&thread, NULL, i == 0 ? parking : working, NULL)) abort();
  }
  usleep(20000);
  printf("ready %d\n", getpid());
  fflush(stdout);
  for (;;) {
    printf("%d\n", work(1));
    fflush(stdout);
    checkpoint(zero);
    usleep(20000);
  }
}
