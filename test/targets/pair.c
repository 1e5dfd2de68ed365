/* Threads call two functions whose contract changes together: outer() passes a version that inner() checks. A thread
 * that ever sees a mix of versions, in one call, ends the program with SIGABRT.
 *   pair THREADS SECONDS [fork|vfork|churn|exec|exit|seccomp-errno|seccomp-kill|seccomp-exec|hardened|gs|leader|dumpable|signals|handler|althandler|context|full|uring]
 * Compiled with -DPATCHED for the new versions. Prints "ready PID", then once in 50 ms the version that main sees. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#ifdef PATCHED
#define VERSION 2
#else
#define VERSION 1
#endif

static volatile int zero;
/* What outer() does in its middle, for a coroutine that is suspended there; not for the threads beside it. */
static __thread void (*volatile middle)(void);
static __thread long calls;

__attribute__((noinline, noipa)) int inner(int contract) {
  calls++;
  if (contract != VERSION * 1000) abort();
#ifdef PATCHED
  static volatile long counted;
  counted++;
#endif
  return VERSION + zero;
}

__attribute__((noinline, noipa)) int outer(int naps) {
  int version = VERSION;
  if (middle) middle();
  for (int i = 0; i < 3; i++) {
    if (inner(version * 1000 + zero) != version) abort();
    if (naps) usleep(500);
  }
  return version;
}

static void *busy(void *unused) {
  for (;;) {
    outer(0);
    for (volatile int work = 0; work < 200; work++) {}
  }
  return unused;
}

static void *napping(void *unused) {
  for (;;) {
    outer(1);
    usleep(1000);
  }
  return unused;
}

static void *brief(void *unused) {
  for (int i = 0; i < 3; i++) outer(0);
  return unused;
}

static void *printing(void *unused) {
  for (;;) {
    printf("%d\n", outer(0));
    fflush(stdout);
    usleep(50000);
  }
  return unused;
}

static ucontext_t main_context, coroutine;

static void suspend(void) { swapcontext(&coroutine, &main_context); }

static void run_coroutine(void) { outer(0); }

/* Leaves a coroutine suspended in the middle of outer(), on a stack that is no thread's. */
static void suspend_coroutine(void) {
  size_t size = 65536;
  middle = suspend;
  getcontext(&coroutine);
  coroutine.uc_stack.ss_sp = malloc(size);
  coroutine.uc_stack.ss_size = size;
  coroutine.uc_link = &main_context;
  makecontext(&coroutine, run_coroutine, 0);
  swapcontext(&main_context, &coroutine);
  middle = NULL;
}

static volatile sig_atomic_t resume_wanted;
static void want_resume(int signal) {
  (void)signal;
  resume_wanted = 1;
}

/* A handler that calls both functions, wherever the thread is. */
static void call_both(int signal) {
  (void)signal;
  int before = errno;
  for (int i = 0; i < 10; i++) outer(1);
  errno = before;
}

static void take_signals(void) {
  struct sigaction action = {.sa_handler = call_both, .sa_flags = SA_RESTART};
  struct itimerval often = {{0, 1500}, {0, 1500}};
  if (sigaction(SIGVTALRM, &action, NULL) || setitimer(ITIMER_VIRTUAL, &often, NULL)) abort();
}

static void stay(int signal) {
  (void)signal;
  for (;;) outer(1);
}

/* The main thread goes into a handler and stays there, on its own stack or on another. */
static void stay_in_handler(int flags) {
  stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
  struct sigaction action = {.sa_handler = stay, .sa_flags = flags};
  if (sigaltstack(&stack, NULL) || sigaction(SIGUSR2, &action, NULL)) abort();
  raise(SIGUSR2);
}

/* Leaves no free page within 2 GiB of the program. */
static void fill_address_space(void) {
  unsigned long here = (unsigned long)&zero & ~0xfffUL, reach = 0x81000000UL;
  for (int found = 1; found;) {
    found = 0;
    unsigned long end = here - reach;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) {
      unsigned long from, to, gap_end;
      if (sscanf(line, "%lx-%lx", &from, &to) != 2 || to <= end) continue;
      gap_end = from < here + reach ? from : here + reach;
      if (gap_end > end && mmap((void *)end, gap_end - end, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != MAP_FAILED)
        found = 1;
      end = to;
      if (end > here + reach) break;
    }
    fclose(maps);
  }
}

/* Starts an io_uring worker thread: a read of an empty pipe that is asked to be done by one. */
static void start_uring_worker(void) {
  struct io_uring_params params = {0};
  int ring = (int)syscall(SYS_io_uring_setup, 4, &params), ends[2];
  if (ring < 0 || pipe(ends)) abort();
  char *queue = mmap(NULL, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
                     MAP_SHARED, ring, IORING_OFF_SQ_RING);
  struct io_uring_sqe *entries = mmap(NULL, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED,
                                      ring, IORING_OFF_SQES);
  if (queue == MAP_FAILED || entries == MAP_FAILED) abort();
  static char byte;
  entries[0] = (struct io_uring_sqe){
      .opcode = IORING_OP_READ, .fd = ends[0], .addr = (unsigned long)&byte, .len = 1, .flags = IOSQE_ASYNC};
  *(unsigned *)(queue + params.sq_off.array) = 0;
  __atomic_store_n((unsigned *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
  if (syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0) != 1) abort();
}

static void forbid(int number, unsigned action) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) abort();
}

/* Ends the process for mappings, and changes of them, that have all of these protections. */
static void forbid_protection(unsigned protection) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 4),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, protection),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, protection, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) abort();
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 4;
  alarm(argc > 2 ? (unsigned)atoi(argv[2]) : 60);
  const char *mode = argc > 3 ? argv[3] : "";
  static char own[64];
  pthread_t thread;
  if (strcmp(mode, "gs") == 0) syscall(SYS_arch_prctl, ARCH_SET_GS, own);
  if (strcmp(mode, "seccomp-errno") == 0) forbid(SYS_mmap, SECCOMP_RET_ERRNO | EPERM);
  /* As systemd's MemoryDenyWriteExecute. */
  if (strcmp(mode, "hardened") == 0) forbid_protection(PROT_WRITE | PROT_EXEC);
  int early = strncmp(mode, "seccomp", 7) == 0;
  for (int i = 0; i < threads && !early; i++) {
    if (pthread_create(&thread, NULL, i == 0 ? busy : napping, NULL)) abort();
  }
  if (strcmp(mode, "dumpable") == 0 && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) abort();
  if (strcmp(mode, "signals") == 0) take_signals();
  if (strcmp(mode, "full") == 0) fill_address_space();
  if (strcmp(mode, "uring") == 0) start_uring_worker();
  if (strcmp(mode, "context") == 0) {
    signal(SIGUSR1, want_resume);
    suspend_coroutine();
  }
  if (strcmp(mode, "leader") == 0) {
    if (pthread_create(&thread, NULL, printing, NULL)) abort();
    printf("ready %d\n", getpid());
    fflush(stdout);
    pthread_exit(NULL);
  }
  if (strcmp(mode, "seccomp-kill") == 0) forbid(SYS_mmap, SECCOMP_RET_KILL_PROCESS);
  if (strcmp(mode, "seccomp-exec") == 0) forbid_protection(PROT_EXEC);
  printf("ready %d\n", getpid());
  fflush(stdout);
  if (strcmp(mode, "handler") == 0) stay_in_handler(0);
  if (strcmp(mode, "althandler") == 0) stay_in_handler(SA_ONSTACK);
  for (int round = 0;; round++) {
    printf("%d\n", outer(0));
    fflush(stdout);
    if (strcmp(mode, "churn") == 0) {
      for (int i = 0; i < 50; i++) {
        if (pthread_create(&thread, NULL, brief, NULL) == 0) pthread_join(thread, NULL);
        usleep(200);
      }
    } else if (strcmp(mode, "fork") == 0) {
      pid_t child = fork();
      if (child == 0) {
        for (int i = 0; i < 2000; i++) outer(0);
        _exit(0);
      }
      int status = 0;
      while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
      if (status != 0) abort();
    } else if (strcmp(mode, "vfork") == 0) {
      char *const words[] = {"true", NULL};
      for (int i = 0, status; i < 5; i++) {
        pid_t child;
        if (posix_spawn(&child, "/bin/true", NULL, NULL, words, NULL)) abort();
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
        if (status != 0) abort();
        usleep(2000);
      }
    } else if (resume_wanted) {
      resume_wanted = 0;
      swapcontext(&main_context, &coroutine);
    } else if (strcmp(mode, "exec") == 0 && round == 24) {
      execl("/bin/sleep", "sleep", "5", NULL);
    } else if (strcmp(mode, "exit") == 0 && round == 24) {
      _exit(0);
    } else
      usleep(50000);
  }
}
