/* A key-value server over loopback: one line a request, one line an answer.
 *   SET key value | GET key | INCR key | REFUSED | PING
 * Several worker threads, each with an epoll loop of its own; connections are dealt out in turn. */
#define _GNU_SOURCE
#include "store.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_BYTES 1024

struct connection {
  int fd;
  size_t used;
  char line[LINE_BYTES];
};

struct worker {
  pthread_t thread;
  int epoll;
};

static __thread long handled;

static int answer(int fd, const char *text) {
  size_t left = strlen(text);
  while (left > 0) {
    ssize_t written = send(fd, text, left, MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return -1;
    text += written;
    left -= (size_t)written;
  }
  return 0;
}

static const char *result_text(enum store_result result) {
  static const char *const texts[] = {"OK\n", "MISSING\n", "FULL\n", "ERROR value too long\n"};
  return texts[result];
}

int handle_request(int fd, char *line) {
  char reply[LINE_BYTES];
  char *rest = line;
  char *command = strsep(&rest, " ");
  char *key = strsep(&rest, " ");
  handled++;
  if (strcmp(command, "PING") == 0) return answer(fd, "PONG\n");
  if (strcmp(command, "REFUSED") == 0) {
    snprintf(reply, sizeof reply, "%ld\n", store_refused());
    return answer(fd, reply);
  }
  if (key == NULL || *key == 0 || strlen(key) >= KEY_BYTES) return answer(fd, "ERROR bad key\n");
  if (strcmp(command, "SET") == 0 && rest != NULL) return answer(fd, result_text(store_set(key, rest)));
  if (strcmp(command, "GET") == 0) {
    char value[LINE_BYTES - 2];
    enum store_result result = store_get(key, value, sizeof value);
    if (result != STORE_OK) return answer(fd, result_text(result));
    snprintf(reply, sizeof reply, "%s\n", value);
    return answer(fd, reply);
  }
  if (strcmp(command, "INCR") == 0) {
    long value = 0;
    enum store_result result = store_increment(key, &value);
    if (result != STORE_OK) return answer(fd, result_text(result));
    snprintf(reply, sizeof reply, "%ld\n", value);
    return answer(fd, reply);
  }
  return answer(fd, "ERROR unknown command\n");
}

static int serve(struct connection *connection) {
  ssize_t count = read(connection->fd, connection->line + connection->used, LINE_BYTES - 1 - connection->used);
  if (count < 0 && (errno == EINTR || errno == EAGAIN)) return 0;
  if (count <= 0) return -1;
  connection->used += (size_t)count;
  connection->line[connection->used] = 0;
  char *start = connection->line;
  for (char *end; (end = strchr(start, '\n')) != NULL; start = end + 1) {
    *end = 0;
    if (handle_request(connection->fd, start) < 0) return -1;
  }
  connection->used -= (size_t)(start - connection->line);
  memmove(connection->line, start, connection->used);
  return connection->used == LINE_BYTES - 1 ? -1 : 0;
}

static void *work(void *argument) {
  struct worker *worker = argument;
  struct epoll_event events[64];
  for (;;) {
    int count = epoll_wait(worker->epoll, events, 64, 100);
    if (count < 0 && errno != EINTR) abort();
    for (int i = 0; i < count; i++) {
      struct connection *connection = events[i].data.ptr;
      if (serve(connection) < 0) {
        close(connection->fd);
        free(connection);
      }
    }
  }
  return NULL;
}

int main(int argc, char **argv) {
  int workers = argc > 1 ? atoi(argv[1]) : 4;
  if (argc > 2) alarm((unsigned)atoi(argv[2]));
  struct worker *all = calloc((size_t)workers, sizeof *all);
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 128) < 0) {
    perror("listen");
    return 1;
  }
  getsockname(listener, (struct sockaddr *)&address, &size);
  for (int i = 0; i < workers; i++) {
    all[i].epoll = epoll_create1(EPOLL_CLOEXEC);
    if (pthread_create(&all[i].thread, NULL, work, &all[i]) != 0) return 1;
  }
  printf("%d %d\n", getpid(), ntohs(address.sin_port));
  fflush(stdout);
  for (int next = 0;; next = (next + 1) % workers) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) continue;
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    struct connection *connection = calloc(1, sizeof *connection);
    connection->fd = fd;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    epoll_ctl(all[next].epoll, EPOLL_CTL_ADD, fd, &event);
  }
}
