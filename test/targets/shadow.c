/* Objects whose layout a patch must not change; each call of handle() says what it knows of one.
 *   shadow SECONDS
 * Compiled plain: always 1. -DPATCH=2: counts the calls for each object in a shadow variable that starts at 100; -DPATCH=3
 * goes on counting there, from 1000 on top; -DPATCH=4 frees all and says how many destructors have run, on top of 5000.
 * Prints "ready PID", then once in 20 ms what main's object gives; other threads use objects of their own, and abort when
 * the count of theirs is wrong. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct session {
  long number;
};

static volatile int zero;

#ifdef PATCH
#include <livegraft.h>
#endif

#if PATCH == 2 || PATCH == 3
static int construct(void *object, void *data, void *argument) {
  (void)object;
  *(long *)data = *(long *)argument;
  return 0;
}
#endif
#if PATCH == 3
static int give_up(void *object, void *data, void *argument) { return object != NULL && data != argument; }
#elif PATCH == 4
static long destroyed;
static void destroy(void *object, void *data) {
  if (*(long *)data < 100 || ((struct session *)object)->number == 0) abort();
  destroyed++;
}
#endif

__attribute__((noinline, noipa)) long handle(struct session *session) {
#if PATCH == 2
  long first = 100;
  long *count = livegraft_shadow_get_or_alloc(session, 7, sizeof *count, construct, &first);
  if (livegraft_shadow_alloc(session, 7, sizeof *count, NULL, NULL)) abort();
  return ++*count;
#elif PATCH == 3
  long *count = livegraft_shadow_get(session, 7);
  if (!count || livegraft_shadow_get(session, 8)) abort();
  if (livegraft_shadow_alloc(session, 8, sizeof *count, give_up, NULL) || livegraft_shadow_get(session, 8)) abort();
  long nine = 9;
  long *other = livegraft_shadow_alloc(session, 9, sizeof nine, construct, &nine);
  if (!other || *other != nine || livegraft_shadow_get(session, 9) != other) abort();
  livegraft_shadow_free(session, 9, NULL);
  if (livegraft_shadow_get(session, 9) || livegraft_shadow_get(session, 7) != count) abort();
  return ++*count + 1000;
#elif PATCH == 4
  livegraft_shadow_free(session, 7, destroy);
  if (livegraft_shadow_get(session, 7)) abort();
  livegraft_shadow_free_all(7, destroy);
  return 5000 + destroyed;
#else
  return session->number * 0 + 1 + zero;
#endif
}

static void *working(void *unused) {
  struct session *session = malloc(sizeof *session);
  session->number = 2;
  for (long last = 0;;) {
    long now = handle(session) % 1000;
    if (last >= 100 && now >= 100 && now != last + 1) abort();
    last = now < 500 ? now : 0;
    usleep(20000);
  }
  return unused;
}

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 30);
  struct session *session = malloc(sizeof *session);
  session->number = 1;
  pthread_t thread;
  for (int i = 0; i < 3; i++) {
    if (pthread_create(&thread, NULL, working, NULL)) abort();
  }
  printf("ready %d\n", getpid());
  fflush(stdout);
  for (;;) {
    printf("%ld\n", handle(session));
    fflush(stdout);
    usleep(20000);
  }
}
