/* A thread that a signal interrupts on its way through a redirect, and that stays in its handler:
 *   interrupted SECONDS before|behind
 * It calls work() all the time. SIGUSR1 to the process: the thread traps behind each instruction until it has come before or behind the
 * one that reads its state at the GS base (the signals of others come there once in many thousand times, or never, by processor); its
 * handler then waits, "caught" is printed. SIGUSR2: the handler calls
 * work() and returns, and "let go H, V" is printed: what the handler's call returned, and the interrupted one. Nothing calls
 * checkpoint(). Compiled with -DWORK=n: work() returns n instead of 1; with -DOTHER: other() returns 2 instead of 1. Prints "ready PID" first. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef WORK
#define WORK 1
#endif

#define TRAP_FLAG 0x100L

/* cmpb $0, %gs:0 */
static const unsigned char test[] = {0x65, 0x80, 0x3c, 0x25, 0, 0, 0, 0, 0};

static volatile int zero;
static volatile int is_sought, in_handler, answer;
static int wants_behind;
static int ends[2];

__attribute__((noinline, noipa)) void checkpoint(int unused) {
  if (unused) abort();
}

__attribute__((noinline, noipa)) int other(void) {
#ifdef OTHER
  return 2 + zero;
#else
  return 1 + zero;
#endif
}

__attribute__((noinline, noipa)) int work(int value) { return value * 0 + WORK + zero; }

static void interrupted(int signal, siginfo_t *info, void *context) {
  (void)signal;
  (void)info;
  const unsigned char *at = (const unsigned char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
  if (!is_sought) return;
  if (wants_behind ? at[0] != 0x0f || at[1] != 0x85 || memcmp(at - sizeof test, test, sizeof test)
                   : memcmp(at, test, sizeof test))
    return;
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
  is_sought = 0;
  in_handler = 1;
  char byte;
  while (read(ends[0], &byte, 1) != 1) {}
  answer = work(1);
}

static void set_flags(long set) {
  __asm__ volatile("add $-128, %%rsp; pushfq; orq %0, (%%rsp); popfq; sub $-128, %%rsp" : : "r"(set) : "memory", "cc");
}

static void *calling(void *unused) {
  for (;;) {
    if (is_sought) set_flags(TRAP_FLAG);
    int version = work(1);
    if (!other()) abort();
    if (!answer) continue;
    printf("let go %d, %d\n", answer, version);
    fflush(stdout);
    answer = 0;
  }
  return unused;
}

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 30);
  wants_behind = argc > 2 && strcmp(argv[2], "behind") == 0;
  struct sigaction action = {.sa_sigaction = interrupted, .sa_flags = SA_SIGINFO | SA_RESTART};
  pthread_t thread;
  if (pipe(ends) || sigaction(SIGTRAP, &action, NULL)) abort();
  sigset_t told;
  sigemptyset(&told);
  sigaddset(&told, SIGUSR1);
  sigaddset(&told, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &told, NULL);
  if (pthread_create(&thread, NULL, calling, NULL)) abort();
  printf("ready %d\n", getpid());
  fflush(stdout);
  for (;;) {
    int signal;
    if (sigwait(&told, &signal)) abort();
    if (signal == SIGUSR2) {
      if (write(ends[1], "", 1) != 1) abort();
      continue;
    }
    is_sought = 1;
    while (!in_handler) usleep(50);
    in_handler = 0;
    printf("caught\n");
    fflush(stdout);
  }
}
