/* A program whose library comes and goes. SIGUSR1 opens the library, SIGUSR2 closes it, SIGURG opens a copy of it in a namespace of its own. One thread is parked inside of hold()
 * until SIGHUP lets it out of there once.
 *   objects SECONDS LIBRARY [open] [ns]
 * With -DLIBRARY: the library. -DPATCHED for the new versions; with -DCALLBACKS they print "callback KIND", behind the library's
 * destructor "callback late KIND", and with -DVETO=n, too, the
 * pre-patch one returns n. Prints "ready PID", "constructor VERSION" whenever the library's
 * constructor runs, and once in 20 ms "OWN LIBRARY MIXES": the versions that main sees (LIBRARY is 0 while there is none), and
 * how often a thread has seen two versions in one pass. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef PATCHED
#define VERSION 2
#else
#define VERSION 1
#endif

static volatile int zero;

#ifdef LIBRARY

__attribute__((noinline, noipa)) int library_version(void) { return VERSION + zero; }

__attribute__((noinline, noipa)) static int helper(const char *text) { return (int)strlen(text) * zero; }

/* Needs symbols of other objects: bound by name when the patch comes. On another page than library_version: no write reaches both. */
__attribute__((noinline, noipa, aligned(4096))) int library_text(char *into, size_t size) {
  return snprintf(into, size, "library %d", VERSION + helper(into));
}

/* The library's destructor has run. */
static volatile int ended;
__attribute__((destructor)) static void end(void) { ended = 1; }

#ifdef CALLBACKS
#include <livegraft.h>
#include <unistd.h>
#ifndef VETO
#define VETO 0
#endif
#define CALLBACK(type, kind, result)                                                     \
  static type kind(void) {                                                               \
    const char *text = ended ? "callback late " #kind "\n" : "callback " #kind "\n";     \
    if (write(1, text, strlen(text)) < 0) abort();                                       \
    return result;                                                                       \
  }
CALLBACK(int, pre_patch, VETO)
CALLBACK(void, post_patch, (void)0)
CALLBACK(void, pre_unpatch, (void)0)
CALLBACK(void, post_unpatch, (void)0)
LIVEGRAFT_PRE_PATCH(pre_patch);
LIVEGRAFT_POST_PATCH(post_patch);
LIVEGRAFT_PRE_UNPATCH(pre_unpatch);
LIVEGRAFT_POST_UNPATCH(post_unpatch);
#endif

__attribute__((constructor)) static void begin(void) {
  printf("constructor %d\n", library_version());
  fflush(stdout);
}

#else

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static void *library;
static int (*library_version)(void);
static int (*library_text)(char *, size_t);
static atomic_int mixes;
static volatile sig_atomic_t wanted;

__attribute__((noinline, noipa)) int own_version(void) { return VERSION + zero; }

/* A barrier for the tests: called by each thread where it is in no function of a patch. */
__attribute__((noinline, noipa)) void turn(void) {}

/* One pass: what it sees must be of one version. */
__attribute__((noinline, noipa)) static void pass(int *own, int *of_library) {
  pthread_rwlock_rdlock(&lock);
  *own = own_version();
  *of_library = library == NULL ? 0 : library_version();
  if (*of_library != 0 && *own != *of_library) mixes++;
  pthread_rwlock_unlock(&lock);
}

static void *working(void *unused) {
  int own, of_library;
  for (;;) {
    turn();
    pass(&own, &of_library);
    usleep(300);
  }
  return unused;
}

static int ends[2];

__attribute__((noinline, noipa)) int hold(int fd) {
  char byte;
  while (read(fd, &byte, 1) != 1) {}
  return VERSION + zero;
}

static void *parking(void *unused) {
  for (;;) {
    turn();
    if (hold(ends[0]) < 1) abort();
    usleep(1000);
  }
  return unused;
}

static void let_out(int number) {
  (void)number;
  if (write(ends[1], "", 1) != 1) abort();
}

static void on_signal(int number) { wanted = number == SIGUSR1; }

static volatile sig_atomic_t copy_wanted;
static void want_copy(int number) { copy_wanted = number; }

#ifndef LM_ID_NEWLM
/* musl has no namespaces. */
#define LM_ID_NEWLM 0
static void *dlmopen(int space, const char *path, int flags) {
  (void)space, (void)path, (void)flags;
  return NULL;
}
#endif

static void open_library(const char *path, int own_namespace) {
  void *opened = own_namespace ? dlmopen(LM_ID_NEWLM, path, RTLD_NOW) : dlopen(path, RTLD_LAZY);
  if (opened == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    abort();
  }
  pthread_rwlock_wrlock(&lock);
  library_version = dlsym(opened, "library_version");
  library_text = dlsym(opened, "library_text");
  library = opened;
  pthread_rwlock_unlock(&lock);
}

static void close_library(void) {
  pthread_rwlock_wrlock(&lock);
  void *opened = library;
  library = NULL;
  pthread_rwlock_unlock(&lock);
  dlclose(opened);
}

int main(int argc, char **argv) {
  alarm((unsigned)atoi(argv[1]));
  int own_namespace = strcmp(argv[argc - 1], "ns") == 0;
  wanted = argc > 3 && strcmp(argv[3], "open") == 0;
  if (wanted) open_library(argv[2], own_namespace);
  pthread_t thread;
  if (pipe(ends) || pthread_create(&thread, NULL, parking, NULL) || signal(SIGHUP, let_out) == SIG_ERR) abort();
  for (int i = 0; i < 3; i++)
    if (pthread_create(&thread, NULL, working, NULL)) abort();
  if (signal(SIGUSR1, on_signal) == SIG_ERR || signal(SIGUSR2, on_signal) == SIG_ERR) abort();
  if (signal(SIGURG, want_copy) == SIG_ERR) abort();
  printf("ready %d\n", getpid());
  for (;;) {
    int own, of_library;
    char text[32] = "";
    turn();
    if (wanted && library == NULL) open_library(argv[2], own_namespace);
    if (!wanted && library != NULL) close_library();
    if (copy_wanted && dlmopen(LM_ID_NEWLM, argv[2], RTLD_NOW) == NULL) abort();
    copy_wanted = 0;
    pass(&own, &of_library);
    if (library != NULL) library_text(text, sizeof text);
    printf("%d %d %d %s\n", own, of_library, mixes, text);
    fflush(stdout);
    usleep(20000);
  }
}
#endif
