/* Creates threads when it is told to, around its own passing of checkpoint():
 *   creating SECONDS [gs]
 * SIGUSR1: creates a thread that stays in outer(), passes checkpoint() itself, creates another one that stays there, and lets
 * both call inner() for a while. Prints "born VERSION, VERSION, mixes N": the versions of outer() that they are in, and how
 * often one of them called an inner() of another version. SIGUSR2: lets them out. Compiled with -DVERSION=2 for the new
 * versions. Prints "ready PID" first. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 1
#endif

struct stay {
  pthread_t thread;
  int version;
  int calls;
};

static volatile int zero;
static volatile int leave;
static int mixes;

__attribute__((noinline, noipa)) void checkpoint(int unused) {
  if (unused) abort();
}

__attribute__((noinline, noipa)) int inner(void) { return VERSION + zero; }

__attribute__((noinline, noipa)) int outer(struct stay *stay) {
  __atomic_store_n(&stay->version, VERSION, __ATOMIC_SEQ_CST);
  while (!leave) {
    if (inner() != VERSION) __atomic_add_fetch(&mixes, 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&stay->calls, 1, __ATOMIC_SEQ_CST);
    usleep(50);
  }
  return VERSION;
}

static void *staying(void *stay) {
  outer(stay);
  return NULL;
}

static void await_calls(struct stay *stay, int count) {
  int until = __atomic_load_n(&stay->calls, __ATOMIC_SEQ_CST) + count;
  while (__atomic_load_n(&stay->calls, __ATOMIC_SEQ_CST) < until) usleep(100);
}

static void create(struct stay *stay) {
  memset(stay, 0, sizeof *stay);
  if (pthread_create(&stay->thread, NULL, staying, stay)) abort();
  await_calls(stay, 1);
}

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 30);
  static char own[64];
  if (argc > 2 && strcmp(argv[2], "gs") == 0) syscall(SYS_arch_prctl, ARCH_SET_GS, own);
  static struct stay before, behind;
  sigset_t told;
  sigemptyset(&told);
  sigaddset(&told, SIGUSR1);
  sigaddset(&told, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &told, NULL);
  printf("ready %d\n", getpid());
  fflush(stdout);
  for (;;) {
    int signal;
    if (sigwait(&told, &signal)) abort();
    if (signal == SIGUSR1) {
      leave = 0;
      create(&before);
      checkpoint(zero);
      create(&behind);
      await_calls(&before, 100);
      await_calls(&behind, 100);
      printf("born %d, %d, mixes %d\n", before.version, behind.version, mixes);
    } else {
      leave = 1;
      pthread_join(before.thread, NULL);
      pthread_join(behind.thread, NULL);
      printf("left, mixes %d\n", mixes);
    }
    fflush(stdout);
  }
}
