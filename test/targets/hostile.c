/* A program that is hard to patch. It counts what it must never see: a call that mixes versions, and work that got lost.
 *   hostile MODE SECONDS [THREADS]     (the modes are in the table at the end)
 * Compiled with -DPATCHED or -DVERSION=n for the new versions. Prints "ready PID", then once in 20 ms
 *   "VERSION mixes M lost L done D" */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if !defined VERSION && defined PATCHED
#define VERSION 2
#elif !defined VERSION
#define VERSION 1
#endif

/* Shared with children that are forked. */
struct counts {
  atomic_long mixes, lost, done;
};
static struct counts *counts;
static volatile int zero;
/* What outer() does first in a thread that stays there. */
static __thread void (*volatile stay)(void);

__attribute__((noinline, noipa)) int inner(int contract) {
  if (contract != VERSION * 1000) atomic_fetch_add(&counts->mixes, 1);
  return VERSION + zero;
}

__attribute__((noinline, noipa)) int outer(int naps) {
  int version = VERSION;
  if (stay) stay();
  for (int i = 0; i < 3; i++) {
    if (inner(version * 1000 + zero) != version) atomic_fetch_add(&counts->mixes, 1);
    if (naps) usleep(500);
  }
  return version;
}

static void note(int is_right) { atomic_fetch_add(is_right ? &counts->done : &counts->lost, 1); }

static void sleep_ms(long ms) {
  struct timespec left = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&left, &left) && errno == EINTR) {}
}

/* Waits for the next of instants that lie `ns` apart, however late this one is. */
static void wait_for_tick(struct timespec *next, long ns) {
  next->tv_nsec += ns;
  if (next->tv_nsec >= 1000000000) {
    next->tv_nsec -= 1000000000;
    next->tv_sec++;
  }
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, next, NULL)) {}
}

static pthread_t start(void *(*body)(void *), void *argument, size_t stack_size) {
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, stack_size);
  if (pthread_create(&thread, &attributes, body, argument)) abort();
  pthread_attr_destroy(&attributes);
  return thread;
}

#define SMALL (64 * 1024)

static void *busy(void *unused) {
  for (;;) {
    outer(0);
    for (volatile int work = 0; work < 200; work++) {}
  }
  return unused;
}

/* Forks without pause, three children at a time. */
static void *forking(void *unused) {
  for (int alive = 0;;) {
    pid_t child = fork();
    if (child == 0) {
      for (int i = 0; i < 200; i++) outer(i % 50 == 0);
      _exit(outer(0) * 0);
    }
    if (child < 0) abort();
    if (++alive < 3) continue;
    int status;
    if (waitpid(-1, &status, 0) < 0) abort();
    alive--;
    note(status == 0);
  }
  return unused;
}

/* vfork()s; the child stays on our memory for a while, and we are in uninterruptible sleep for as long. */
static void *vforking(void *milliseconds) {
  for (;;) {
    pid_t child = vfork();
    if (child == 0) {
      sleep_ms((long)milliseconds);
      execl("/bin/true", "true", NULL);
      _exit(1);
    }
    int status;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    note(status == 0);
    outer(1);
    sleep_ms(20);
  }
  return milliseconds;
}

static void *brief(void *number) {
  for (int i = 0; i < 3; i++) outer(0);
  return number;
}

/* Creates a thread every millisecond, which ends at once. */
static void *churning(void *unused) {
  enum { ALIVE = 16 };
  static pthread_t threads[ALIVE];
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (long number = 0;; number++) {
    void *result;
    if (number >= ALIVE) {
      pthread_join(threads[number % ALIVE], &result);
      note(result == (void *)(number - ALIVE));
    }
    threads[number % ALIVE] = start(brief, (void *)number, SMALL);
    wait_for_tick(&next, 1000000);
  }
  return unused;
}

static void *ticking(void *unused) {
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (;;) {
    note(outer(0) > 0);
    wait_for_tick(&next, 300000000);
  }
  return unused;
}

/* Each thread has a GS base of its own, and looks whether it is still there. */
static void *with_gs(void *unused) {
  long own = (long)&own;
  syscall(SYS_arch_prctl, ARCH_SET_GS, &own);
  for (;;) {
    long seen;
    for (int i = 0; i < 100; i++) outer(0);
    usleep(500);
    __asm__ volatile("mov %%gs:0, %0" : "=r"(seen));
    note(seen == own);
  }
  return unused;
}

static __thread int expected;

/* Signals to one thread come in the order in which they were queued. */
static void take(int signal, siginfo_t *info, void *context) {
  (void)signal;
  (void)context;
  outer(0);
  note(info->si_value.sival_int == expected);
  expected = info->si_value.sival_int + 1;
}

static void use_signal_stack(void) {
  stack_t stack = {.ss_sp = malloc(SMALL), .ss_size = SMALL};
  if (sigaltstack(&stack, NULL)) abort();
}

static void *taking(void *unused) {
  use_signal_stack();
  return busy(unused);
}

/* 10 signals a millisecond to two busy threads, which handle them on signal stacks. It waits for threads that can't keep up, as
 * whoever needs an answer does: a queue that only grows would leave them no time for anything else. */
static void *signalling(void *unused) {
  struct sigaction action = {.sa_sigaction = take, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
  if (sigaction(SIGRTMIN, &action, NULL)) abort();
  pthread_t takers[2] = {start(taking, NULL, SMALL), start(taking, NULL, SMALL)};
  sleep_ms(20);
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (int number = 0;; wait_for_tick(&next, 1000000)) {
    if (2 * number - atomic_load(&counts->done) - atomic_load(&counts->lost) > 10) continue;
    for (int i = 0; i < 5; i++, number++) {
      for (int t = 0; t < 2; t++) {
        while (pthread_sigqueue(takers[t], SIGRTMIN, (union sigval){.sival_int = number}) == EAGAIN) sleep_ms(1);
      }
    }
  }
  return unused;
}

static __attribute__((noinline, noipa)) long descend(long depth) {
  if (depth <= 0) {
    for (int i = 0; i < 100; i++) {
      outer(0);
      sleep_ms(1);
    }
    return 0;
  }
  /* Not a loop: what it adds is not known before. */
  long below = descend(depth - 1);
  return below + 1 + zero;
}

/* Goes down 100,000 frames, stays there for a while, and comes back. */
static void *diving(void *depth) {
  for (;;) note(descend((long)depth) == (long)depth);
  return depth;
}

static __thread sigjmp_buf before_overflow;

static void overflowed(int signal) {
  (void)signal;
  for (int i = 0; i < 30; i++) {
    outer(0);
    sleep_ms(1);
  }
  siglongjmp(before_overflow, 1);
}

/* The stack pointer ends on the stack, as a call does not get to store its return address, … */
static __attribute__((noinline, noipa)) long without_end(long depth) { return without_end(depth + 1) + zero; }

/* … or below it, where a large frame begins. */
static __attribute__((noinline, noipa)) long without_end_large(long depth) {
  volatile char frame[2000];
  frame[0] = (char)depth;
  return without_end_large(depth + 1) + frame[0];
}

static void *overflowing(void *unused) {
  use_signal_stack();
  struct sigaction action = {.sa_handler = overflowed, .sa_flags = SA_ONSTACK};
  if (sigaction(SIGSEGV, &action, NULL)) abort();
  static atomic_int started;
  for (volatile int i = atomic_fetch_add(&started, 1);; i++) {
    if (sigsetjmp(before_overflow, 1)) note(1);
    else if (i % 2) without_end(0);
    else without_end_large(0);
  }
  return unused;
}

/* A server's thread: every request is a number, its answer is that number and the version. */
static void *answering(void *end) {
  for (int number; read((int)(long)end, &number, sizeof number) == sizeof number;) {
    int answer[2] = {number, outer(number % 4 == 0)};
    if (write((int)(long)end, answer, sizeof answer) != sizeof answer) abort();
  }
  return end;
}

static void *asking(void *unused) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends)) abort();
  start(answering, (void *)(long)ends[1], SMALL);
  for (int number = 0;; number++) {
    int answer[2];
    if (write(ends[0], &number, sizeof number) != sizeof number) abort();
    note(read(ends[0], answer, sizeof answer) == sizeof answer && answer[0] == number && answer[1] > 0);
    if (number % 16 == 0) usleep(200);
  }
  return unused;
}

static void wait_for_ever(void) {
  for (;;) pause();
}

/* Requests, and a thread that holds a transition up. */
static void *holding(void *unused) {
  start(asking, NULL, SMALL);
  stay = wait_for_ever;
  outer(0);
  return unused;
}

static const struct {
  const char *name;
  void *(*body)(void *);
  void *argument;
  size_t stack_size;
} modes[] = {
    {"fork", forking, NULL, SMALL},
    {"vfork", vforking, (void *)150, SMALL},
    {"long-vfork", vforking, (void *)60000, SMALL},
    {"churn", churning, NULL, SMALL},
    {"tick", ticking, NULL, SMALL},
    {"gs", with_gs, NULL, SMALL},
    {"signals", signalling, NULL, SMALL},
    {"deep", diving, (void *)100000, 64 << 20},
    {"overflow", overflowing, NULL, SMALL},
    {"load", asking, NULL, SMALL},
    {"held", holding, NULL, SMALL},
};

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  int threads = argc > 3 ? atoi(argv[3]) : 1;
  alarm((unsigned)atoi(argv[2]));
  counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (counts == MAP_FAILED) abort();
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
    if (strcmp(argv[1], modes[i].name)) continue;
    for (int t = 0; t < threads; t++) start(modes[i].body, modes[i].argument, modes[i].stack_size);
  }
  start(busy, NULL, SMALL);
  sleep_ms(20);
  printf("ready %d\n", getpid());
  for (;;) {
    int version = outer(0);
    printf("%d mixes %ld lost %ld done %ld\n", version, counts->mixes, counts->lost, counts->done);
    fflush(stdout);
    sleep_ms(20);
  }
}
