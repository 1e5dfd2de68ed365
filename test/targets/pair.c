/* Threads call two functions whose contract changes together: outer() passes a version that inner() checks. A thread
 * that ever sees a mix of versions, in one call, ends the program with SIGABRT.
 *   pair THREADS SECONDS [fork|churn|exec|exit|seccomp-errno|seccomp-kill|gs|busy]
 * Compiled with -DPATCHED for the new versions. Prints "ready PID", then once in 50 ms the version that main sees. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef PATCHED
#define VERSION 2
#else
#define VERSION 1
#endif

static volatile int zero;
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

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 4;
  alarm(argc > 2 ? (unsigned)atoi(argv[2]) : 60);
  const char *mode = argc > 3 ? argv[3] : "";
  static char own[64];
  pthread_t thread;
  if (strcmp(mode, "gs") == 0) syscall(SYS_arch_prctl, ARCH_SET_GS, own);
  if (strcmp(mode, "seccomp-errno") == 0) forbid(SYS_mmap, SECCOMP_RET_ERRNO | EPERM);
  int early = strncmp(mode, "seccomp", 7) == 0;
  for (int i = 0; i < threads && !early; i++) {
    if (pthread_create(&thread, NULL, i == 0 ? busy : napping, NULL)) abort();
  }
  if (strcmp(mode, "seccomp-kill") == 0) forbid(SYS_mmap, SECCOMP_RET_KILL_PROCESS);
  printf("ready %d\n", getpid());
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
    } else if (strcmp(mode, "exec") == 0 && round == 10) {
      execl("/bin/sleep", "sleep", "5", NULL);
    } else if (strcmp(mode, "exit") == 0 && round == 10) {
      _exit(0);
    } else
      usleep(50000);
  }
}
