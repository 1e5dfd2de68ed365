/* A program whose patches have callbacks, and change its state (`level`) beyond its code.
 *   callbacks SECONDS
 * One thread parks in hold() until SIGUSR1 lets it out of there once; main calls work() once in 20 ms, prints what it returned
 * and the level. Compiled plain: work() and hold() return 1. -DWORK=n, -DHOLD=n: n instead. -DCALLBACKS=name: callbacks that
 * print "callback name KIND"; with -DVETO=n the pre-patch one returns n; -DCRASH: the post-patch one reads address 8; -DSTUCK: it never returns;
 * -DSTATE=version: they set the level to 10 and back, and hand what it was from patch to patch. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef WORK
#define WORK 1
#endif
#ifndef HOLD
#define HOLD 1
#endif

static volatile int zero;
static volatile int level = 7;
static int ends[2];

__attribute__((noinline, noipa)) int work(int value) { return value * 0 + WORK + zero; }

__attribute__((noinline, noipa)) int hold(int fd) {
  char byte;
  while (read(fd, &byte, 1) != 1) {}
  return HOLD + zero;
}

#ifdef CALLBACKS
#include <livegraft.h>
#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)

#ifdef STATE
LIVEGRAFT_STATE(saved_level, 1, STATE);
#endif

static void say(const char *kind) {
  char line[64];
  int length = snprintf(line, sizeof line, "callback %s %s\n", TEXT(CALLBACKS), kind);
  if (write(1, line, (size_t)length) != length) abort();
}

static int pre_patch(void) {
  say("pre_patch");
#ifdef VETO
  return VETO;
#endif
#ifdef STATE
  int *saved = saved_level.previous ? saved_level.previous->data : malloc(sizeof *saved);
  if (!saved) return -1;
  if (!saved_level.previous) *saved = level;
  saved_level.data = saved;
#endif
  return 0;
}
LIVEGRAFT_PRE_PATCH(pre_patch);

static void post_patch(void) {
  say("post_patch");
#ifdef CRASH
  *(volatile int *)8;
#endif
#ifdef STUCK
  while (!zero) usleep(1000);
#endif
#ifdef STATE
  level = 10;
#endif
}
LIVEGRAFT_POST_PATCH(post_patch);

static void pre_unpatch(void) {
  say("pre_unpatch");
#ifdef STATE
  level = *(int *)saved_level.data;
#endif
}
LIVEGRAFT_PRE_UNPATCH(pre_unpatch);

static void post_unpatch(void) {
  say("post_unpatch");
#ifdef STATE
  free(saved_level.data);
#endif
}
LIVEGRAFT_POST_UNPATCH(post_unpatch);
#endif

static void *parking(void *unused) {
  for (;;) {
    int version = hold(ends[0]);
    printf("out %d\n", version);
    fflush(stdout);
  }
  return unused;
}

static void let_out(int signal) {
  (void)signal;
  if (write(ends[1], "", 1) != 1) abort();
}

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 30);
  pthread_t thread;
  if (pipe(ends) || signal(SIGUSR1, let_out) == SIG_ERR) abort();
  if (pthread_create(&thread, NULL, parking, NULL)) abort();
  usleep(20000);
  printf("ready %d\n", getpid());
  fflush(stdout);
  for (;;) {
    printf("%d %d\n", work(1), level);
    fflush(stdout);
    usleep(20000);
  }
}
