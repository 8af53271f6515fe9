// floor: what the machine itself can send. Accepts N streams and sends them the same bytes, one
// non-blocking send() each, round robin: no events, no framing, no fairness, no Python.
//
//   floor PORT N BODYFILE
//
// Prints {"listening": PORT}. A line with a number of seconds on stdin starts the sends; the
// answer is one line of JSON. Ends with stdin.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RUN 64

static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n";

typedef struct { int fd; size_t sent; } Client;

static Client *clients;
static int accepted;
static char *body;
static size_t body_length;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fatal(const char *what) {
  perror(what);
  exit(1);
}

static void read_body(const char *file) {
  FILE *f = fopen(file, "rb");
  if (!f) fatal(file);
  fseek(f, 0, SEEK_END);
  body_length = ftell(f);
  rewind(f);
  body = malloc(body_length);
  if (fread(body, 1, body_length, f) != body_length) fatal(file);
  fclose(f);
}

static int listen_on(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) fatal("listen");
  return fd;
}

static void measure(double seconds) {
  uint64_t sends = 0, blocked = 0;
  double begun = now(), t = begun;
  for (int i = 0; t - begun < seconds; t = now())
    for (int run = 0; run < RUN; run++, i = (i + 1) % accepted) {
      Client *c = &clients[i];
      ssize_t n = send(c->fd, body + c->sent, body_length - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0) {
        blocked++;
        continue;
      }
      c->sent += n;
      if (c->sent == body_length) {
        c->sent = 0;
        sends++;
      }
    }
  printf("{\"sends\": %lu, \"blocked\": %lu, \"seconds\": %.4f}\n", sends, blocked, t - begun);
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int port = atoi(argv[1]), count = atoi(argv[2]), listener = listen_on(port);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  setvbuf(stdout, NULL, _IOLBF, 0);
  read_body(argv[3]);
  clients = calloc(count, sizeof *clients);
  int epoll = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN, .data.fd = 0}, events[256];
  epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &e);
  e.data.fd = listener;
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
  printf("{\"listening\": %d}\n", port);
  while (1) {
    int n = epoll_wait(epoll, events, 256, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      char text[4096];
      if (fd == listener) {
        int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (client < 0) continue;
        e.data.fd = client;
        epoll_ctl(epoll, EPOLL_CTL_ADD, client, &e);
        continue;
      }
      ssize_t got = read(fd, text, sizeof text - 1);
      if (fd == 0) {
        if (got <= 0) return 0;
        text[got] = 0;
        measure(atof(text));
        continue;
      }
      epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
      if (got > 0 && accepted < count && write(fd, head, sizeof head - 1) > 0)
        clients[accepted++].fd = fd;
      else
        close(fd);
    }
  }
}
