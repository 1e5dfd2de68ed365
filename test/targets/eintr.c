/* A thread in each blocking system call; an EINTR that no signal handler caused, or a wait that ends early, is a
 * failure: it is printed and the program aborts. Each thread calls patched_function between its waits.
 *   eintr SECONDS        prints "ready PID" */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <netinet/in.h>
#include <unistd.h>

__attribute__((noinline, noipa)) int patched_function(int x) {
#ifdef PATCHED
  return x + 2;
#else
  return x + 1;
#endif
}

#define WAIT_MS 150
static int never[2];
static int pair_fds[2];

static int wait_epoll(void) { static __thread int fd; struct epoll_event e; if (!fd) fd = epoll_create1(0); return epoll_wait(fd, &e, 1, WAIT_MS); }
static int wait_epoll_pwait(void) { static __thread int fd; struct epoll_event e; sigset_t s; sigemptyset(&s); if (!fd) fd = epoll_create1(0); return epoll_pwait(fd, &e, 1, WAIT_MS, &s); }
static int wait_poll(void) { struct pollfd p = {never[0], POLLIN, 0}; return poll(&p, 1, WAIT_MS); }
static int wait_ppoll(void) { struct pollfd p = {never[0], POLLIN, 0}; struct timespec t = {0, WAIT_MS * 1000000}; return ppoll(&p, 1, &t, NULL); }
static int wait_select(void) { fd_set f; FD_ZERO(&f); FD_SET(never[0], &f); struct timeval t = {0, WAIT_MS * 1000}; return select(never[0] + 1, &f, NULL, NULL, &t); }
static int wait_nanosleep(void) { struct timespec t = {0, WAIT_MS * 1000000}; return nanosleep(&t, NULL); }
static int wait_clock(void) { struct timespec t = {0, WAIT_MS * 1000000}; errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL); return errno ? -1 : 0; }
static int wait_futex(void) { static int word; struct timespec t = {0, WAIT_MS * 1000000}; int r = (int)syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0); return r < 0 && errno == ETIMEDOUT ? 0 : r; }
static int wait_timerfd(void) { static __thread int fd; if (!fd) fd = timerfd_create(CLOCK_MONOTONIC, 0); struct itimerspec t = {.it_value.tv_nsec = WAIT_MS * 1000000}; timerfd_settime(fd, 0, &t, NULL); unsigned long n; return (int)read(fd, &n, 8); }
static int wait_recv(void) { char c; int r = (int)recv(pair_fds[0], &c, 1, 0); return r < 0 && errno == EAGAIN ? 0 : r; }
static int wait_recvmsg(void) { char c; struct iovec v = {&c, 1}; struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1}; int r = (int)recvmsg(pair_fds[1], &m, 0); return r < 0 && errno == EAGAIN ? 0 : r; }
static int wait_accept(void) {
  static __thread int fd;
  if (!fd) { fd = socket(AF_INET, SOCK_STREAM, 0); struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}; bind(fd, (struct sockaddr *)&a, sizeof a); listen(fd, 1); struct timeval t = {0, WAIT_MS * 1000}; setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t); }
  int r = accept(fd, NULL, NULL);
  return r < 0 && errno == EAGAIN ? 0 : r;
}
static int wait_sem(void) { static __thread int id = -1; if (id < 0) { id = semget(IPC_PRIVATE, 1, 0600); } struct sembuf b = {0, -1, 0}; struct timespec t = {0, WAIT_MS * 1000000}; int r = semtimedop(id, &b, 1, &t); return r < 0 && errno == EAGAIN ? 0 : r; }
static int wait_signal(void) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR1); struct timespec t = {0, WAIT_MS * 1000000}; int r = sigtimedwait(&s, NULL, &t); return r < 0 && errno == EAGAIN ? 0 : r; }

static const struct { const char *name; int (*wait)(void); } calls[] = {
    {"epoll_wait", wait_epoll}, {"epoll_pwait", wait_epoll_pwait}, {"poll", wait_poll}, {"ppoll", wait_ppoll},
    {"select", wait_select}, {"nanosleep", wait_nanosleep}, {"clock_nanosleep", wait_clock}, {"futex", wait_futex},
    {"read of a timerfd", wait_timerfd}, {"recv with a timeout", wait_recv}, {"recvmsg with a timeout", wait_recvmsg},
    {"accept with a timeout", wait_accept}, {"semtimedop", wait_sem}, {"sigtimedwait", wait_signal},
};

static void *run(void *argument) {
  size_t i = (size_t)argument;
  for (;;) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    int result = calls[i].wait();
    int error = errno;
    clock_gettime(CLOCK_MONOTONIC, &b);
    double ms = (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6;
    if (result < 0) { printf("%s failed: %s\n", calls[i].name, strerror(error)); fflush(stdout); abort(); }
    if (ms < WAIT_MS - 5) { printf("%s returned after %.1f ms\n", calls[i].name, ms); fflush(stdout); abort(); }
    int value = patched_function(1);
    if (value != 2 && value != 3) abort();
  }
}

static void *forever(void *argument) {
  char c;
  if (read(never[0], &c, 1) < 0) { printf("read of a pipe failed: %s\n", strerror(errno)); fflush(stdout); abort(); }
  return argument;
}

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 60);
  sigset_t s;
  sigemptyset(&s);
  sigaddset(&s, SIGUSR1);
  sigprocmask(SIG_BLOCK, &s, NULL);
  struct timeval t = {0, WAIT_MS * 1000};
  if (pipe(never) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair_fds)) return 1;
  for (int i = 0; i < 2; i++) setsockopt(pair_fds[i], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
  pthread_t thread;
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) pthread_create(&thread, NULL, run, (void *)i);
  pthread_create(&thread, NULL, forever, NULL);
  printf("ready %d\n", getpid());
  fflush(stdout);
  for (;;) pause();
}
