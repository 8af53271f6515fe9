// sseload: holds N server-sent event streams in one process, driven by a command a line on stdin.
//
//   sseload --port P --streams N --path PATH [--every K] [--classes C] [--rcvbuf BYTES]
//           [--paths FILE]
//
// FILE holds a path for each stream, a line each, instead of the one PATH.
// "%d" in PATH becomes the class of the stream, 0 to C-1. Every byte is read, but only one stream
// in K is parsed, and what is counted there is scaled by K: with few cores the client is part of
// the load. An event is a frame whose data holds "ts=<ns of CLOCK_REALTIME>" and "seq=<n>"; n
// goes up by one from event to event of a stream.
//
//   connect FIRST              open what is not open, from the last id seen if any; FIRST is the
//                              first seq to come on a stream that saw none, or -1
//   count SECONDS              measure
//   drain TOTAL SPREAD SECONDS wait until the streams have every event of TOTAL, of which class
//                              k saw those with number k modulo SPREAD
//   drop                       close every stream
//   stall K / resume           stop reading the first K streams / go on
//   shed K                     close the next K open streams, in turn
//   follow                     from now on streams that end come back by themselves, after the
//                              delay they were told, as browsers do
//   returns                    say when they did
//
// Each is answered by one line of JSON.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (1 << 20)
#define BUCKETS 200000 // of 0.1 ms
#define PER_ADDRESS 25000
#define PENDING 256
#define CONNECT_TIMEOUT 60
#define RETRY 3.
#define FOLLOW_STEP .005
#define TENTHS 6000

typedef enum { CLOSED, CONNECTING, WAITING, OPEN } State;

typedef struct {
  int fd;
  State state;
  int class, parsed, lost, reset, holes;
  double retry, ended, due; // seconds; when it ended and is to come back, or 0
  const char *path;
  int64_t next; // the seq to come, or -1
  char id[64];
  char *tail; // of an unfinished frame
  size_t tail_length, tail_size;
} Stream;

typedef struct {
  int64_t ts, seq;
  const char *id;
  size_t id_length;
  int reset, lost, chunks;
  double retry;
} Frame;

static struct {
  uint64_t bytes, events, chunks, resets, closed;
  uint64_t latencies, histogram[BUCKETS + 1];
  int64_t slowest;
} window;
static struct { uint64_t missing, repeated, skipped, resets, lost, closed; } total;

static struct {
  uint64_t all, refused, tenths[TENTHS];
  double first, last, shortest, longest;
} returns;

static int port, count, every = 1, classes = 1, rcvbuf, epoll;
static const char *path = "/", *paths;
static Stream *streams;
static char *buffer;
static int opened, pending, failed, cursor; // of the connect under way
static int follows;
static double followed; // when it was last looked who is due

static double monotonic(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static int64_t realtime(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void watch(Stream *s, int operation, uint32_t events) {
  struct epoll_event e = {.events = events, .data.u32 = s - streams};
  epoll_ctl(epoll, operation, s->fd, &e);
}

static void end(Stream *s) {
  close(s->fd);
  s->fd = -1;
  s->state = CLOSED;
  s->tail_length = 0;
  if (!follows) return;
  double now = monotonic();
  if (!s->ended) s->ended = now;
  s->due = now + s->retry;
}

// Parsing.

static void dispatch(Stream *s, const Frame *f, int64_t now) {
  if (s->state == OPEN) window.chunks += f->chunks;
  if (f->id && f->id_length < sizeof s->id) {
    memcpy(s->id, f->id, f->id_length);
    s->id[f->id_length] = 0;
  }
  if (f->retry >= 0) s->retry = f->retry;
  if (f->reset) {
    s->lost = s->reset = 1;
    window.resets++;
    total.resets++;
    total.lost += f->lost;
  }
  if (f->seq < 0) return;
  window.events++;
  int64_t latency = now > f->ts ? now - f->ts : 0, bucket = latency / 100000;
  if (latency > window.slowest) window.slowest = latency;
  window.histogram[bucket < BUCKETS ? bucket : BUCKETS]++;
  window.latencies++;
  if (s->next >= 0 && f->seq < s->next) {
    total.repeated++;
    return;
  }
  if (s->next >= 0) *(s->lost ? &total.skipped : &total.missing) += f->seq - s->next;
  if (s->next >= 0 && f->seq > s->next && !s->lost) s->holes = 1;
  s->next = f->seq + 1;
  s->lost = 0;
}

static void read_data(Frame *f, char *line, size_t length) {
  if (f->reset) f->lost = memmem(line, length, "\"history-lost\"", 14) != NULL;
  char *ts = memmem(line, length, "ts=", 3);
  if (!ts) return;
  char *rest;
  f->ts = strtoll(ts + 3, &rest, 10);
  if (!strncmp(rest, " seq=", 5)) f->seq = strtoll(rest + 5, NULL, 10);
}

// Lines are only acted on once the frame is whole, since an unfinished one is parsed again.
static void parse(Stream *s, char *text, size_t length) {
  char *line = text, *frame = text, *limit = text + length, *newline;
  int64_t now = realtime();
  Frame f = {.seq = -1, .retry = -1};
  for (; (newline = memchr(line, '\n', limit - line)); line = newline + 1) {
    size_t n = newline - line;
    if (n == 0) {
      dispatch(s, &f, now);
      f = (Frame){.seq = -1, .retry = -1};
      frame = newline + 1;
    } else if (n > 5 && !memcmp(line, "data:", 5)) {
      read_data(&f, line, n);
    } else if (n > 4 && !memcmp(line, "id: ", 4)) {
      f.id = line + 4;
      f.id_length = n - 4;
    } else if (n > 7 && !memcmp(line, "retry: ", 7)) {
      f.retry = atof(line + 7) / 1000;
    } else if (n == 19 && !memcmp(line, "event: stream.reset", 19)) {
      f.reset = 1;
    } else if (n > 1 && newline[-1] == '\r') {
      f.chunks++;
    }
  }
  s->tail_length = limit - frame;
  if (s->tail_length > s->tail_size) s->tail = realloc(s->tail, s->tail_size = s->tail_length);
  memcpy(s->tail, frame, s->tail_length);
}

// Connections.

static void fail(Stream *s) {
  pending--;
  failed++;
  returns.refused += s->ended > 0;
  end(s);
}

static void open_stream(Stream *s) {
  s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (s->fd < 0) {
    perror("socket");
    exit(1);
  }
  int one = 1, index = s - streams;
  struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
  from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + index / PER_ADDRESS);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  to.sin_port = htons(port);
  setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  if (rcvbuf) setsockopt(s->fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof rcvbuf);
  bind(s->fd, (void *)&from, sizeof from);
  pending++;
  s->state = CONNECTING;
  if (connect(s->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) fail(s);
  else watch(s, EPOLL_CTL_ADD, EPOLLOUT);
}

static void ask(Stream *s) {
  char target[1024], resume[128] = "", request[2048];
  const char *mark = strstr(s->path, "%d");
  if (mark)
    snprintf(target, sizeof target, "%.*s%d%s", (int)(mark - s->path), s->path, s->class, mark + 2);
  else
    snprintf(target, sizeof target, "%s", s->path);
  if (*s->id) snprintf(resume, sizeof resume, "Last-Event-ID: %s\r\n", s->id);
  int n = snprintf(request, sizeof request,
                   "GET %s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n%s\r\n",
                   target, resume);
  if (write(s->fd, request, n) != n) {
    fail(s);
    return;
  }
  s->state = WAITING;
  watch(s, EPOLL_CTL_MOD, EPOLLIN);
}

static void came_back(Stream *s, double now) {
  double after = now - s->ended;
  if (!returns.all || after < returns.shortest) returns.shortest = after;
  if (after > returns.longest) returns.longest = after;
  if (!returns.all++) returns.first = now;
  returns.last = now;
  int tenth = (now - returns.first) * 10;
  returns.tenths[tenth < TENTHS ? tenth : TENTHS - 1]++;
  s->ended = 0;
}

static void receive(Stream *s) {
  memcpy(buffer, s->tail, s->tail_length);
  ssize_t n = read(s->fd, buffer + s->tail_length, BUFFER - s->tail_length);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    if (s->state == WAITING) fail(s);
    else {
      window.closed++;
      total.closed++;
      end(s);
    }
    return;
  }
  window.bytes += n;
  size_t length = s->tail_length + n;
  buffer[length] = 0;
  if (s->state == WAITING && (n < 12 || memcmp(buffer, "HTTP/1.1 200", 12))) {
    if (!failed) fprintf(stderr, "refused: %.300s\n", buffer);
    fail(s);
    return;
  }
  if (s->parsed) parse(s, buffer, length);
  if (s->state == WAITING) {
    s->state = OPEN;
    pending--;
    opened++;
    if (s->ended) came_back(s, monotonic());
  }
}

static void on_event(Stream *s) {
  if (s->state == CONNECTING) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) fail(s);
    else ask(s);
  } else if (s->state != CLOSED) {
    receive(s);
  }
}

static void follow(double now) {
  if (!follows || now - followed < FOLLOW_STEP) return;
  followed = now;
  for (int i = 0; i < count; i++)
    if (streams[i].due && streams[i].due <= now) {
      streams[i].due = 0;
      if (streams[i].state == CLOSED) open_stream(&streams[i]);
    }
}

// Commands. Each `..._done` says whether the one under way is over, and then answers it.

static enum { IDLE, TO_CONNECT, TO_COUNT, TO_DRAIN } command;
static double begun, lasts;
static int64_t drain_total, drain_spread, first;

static double cpu(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static double cpu_before;

static int connect_done(double now) {
  for (; cursor < count && pending < PENDING; cursor++) {
    Stream *s = &streams[cursor];
    if (s->state != CLOSED) continue;
    if (!*s->id) s->next = first;
    open_stream(s);
  }
  int late = now - begun > CONNECT_TIMEOUT;
  if ((cursor < count || pending) && !late) return 0;
  for (int i = 0; late && i < count; i++)
    if (streams[i].state == CONNECTING || streams[i].state == WAITING) fail(&streams[i]);
  printf("{\"connected\": %d, \"failed\": %d, \"seconds\": %.3f}\n", opened, failed, now - begun);
  return 1;
}

static double quantile(double share) {
  uint64_t seen = 0;
  for (int b = 0; b <= BUCKETS; b++) {
    seen += window.histogram[b];
    if (window.latencies && seen >= window.latencies * share) return b / 10.;
  }
  return -1;
}

static int count_done(double now) {
  if (now - begun < lasts) return 0;
  printf("{\"seconds\": %.4f, \"bytes\": %lu, \"events\": %lu, \"writes\": %lu, \"resets\": %lu, "
         "\"closed\": %lu, \"p50_ms\": %.1f, \"p99_ms\": %.1f, \"max_ms\": %.1f, "
         "\"client_cpu\": %.3f}\n",
         now - begun, window.bytes, window.events * every, window.chunks * every,
         window.resets * every, window.closed, quantile(.5), quantile(.99),
         window.slowest / 1e6, cpu() - cpu_before);
  return 1;
}

static int drain_done(double now) {
  int complete = 0, parsed = 0, reset = 0, holes = 0;
  for (int i = 0; i < count; i++) {
    Stream *s = &streams[i];
    if (!s->parsed) continue;
    int64_t k = s->class % drain_spread;
    int64_t all = drain_total > k ? (drain_total - 1 - k) / drain_spread + 1 : 0;
    parsed++;
    complete += s->next == all;
    reset += s->reset;
    holes += s->holes;
  }
  if (complete < parsed && now - begun < lasts) return 0;
  printf("{\"parsed\": %d, \"complete\": %d, \"missing\": %lu, \"repeated\": %lu, "
         "\"skipped\": %lu, \"resets\": %lu, \"history_lost\": %lu, \"closed\": %lu, "
         "\"reset_streams\": %d, "
         "\"holed_streams\": %d, \"seconds\": %.3f}\n",
         parsed, complete, total.missing, total.repeated, total.skipped, total.resets,
         total.lost, total.closed, reset, holes, now - begun);
  return 1;
}

static int drop(void) {
  int dropped = 0;
  for (int i = 0; i < count; i++)
    if (streams[i].state != CLOSED) {
      end(&streams[i]);
      dropped++;
    }
  return dropped;
}

static int shed(int wanted) {
  static int next;
  int closed = 0;
  for (int seen = 0; seen < count && closed < wanted; seen++, next = (next + 1) % count)
    if (streams[next].state == OPEN) {
      end(&streams[next]);
      closed++;
    }
  return closed;
}

static void say_returns(void) {
  uint64_t peak = 0;
  for (int i = 0; i < TENTHS; i++)
    if (returns.tenths[i] > peak) peak = returns.tenths[i];
  printf("{\"returns\": %lu, \"refused\": %lu, \"shortest\": %.3f, \"longest\": %.3f, "
         "\"span\": %.3f, \"peak\": %lu}\n",
         returns.all, returns.refused, returns.shortest, returns.longest,
         returns.last - returns.first, peak * 10);
}

static void obey(const char *line) {
  int stalled = 0, leaving = 0;
  begun = monotonic();
  if (sscanf(line, "connect %ld", &first) == 1) {
    command = TO_CONNECT;
    opened = pending = failed = cursor = 0;
  } else if (sscanf(line, "count %lf", &lasts) == 1) {
    command = TO_COUNT;
    memset(&window, 0, sizeof window);
    cpu_before = cpu();
  } else if (sscanf(line, "drain %ld %ld %lf", &drain_total, &drain_spread, &lasts) == 3) {
    command = TO_DRAIN;
  } else if (!strncmp(line, "drop", 4)) {
    printf("{\"dropped\": %d}\n", drop());
  } else if (sscanf(line, "stall %d", &stalled) == 1) {
    for (int i = 0; i < stalled; i++) watch(&streams[i], EPOLL_CTL_DEL, 0);
    printf("{\"stalled\": %d}\n", stalled);
  } else if (!strncmp(line, "resume", 6)) {
    for (int i = 0; i < count; i++)
      if (streams[i].state == OPEN) watch(&streams[i], EPOLL_CTL_ADD, EPOLLIN);
    printf("{}\n");
  } else if (sscanf(line, "shed %d", &leaving) == 1) {
    printf("{\"shed\": %d}\n", shed(leaving));
  } else if (!strncmp(line, "follow", 6)) {
    follows = 1;
    printf("{}\n");
  } else if (!strncmp(line, "returns", 7)) {
    say_returns();
  } else {
    fprintf(stderr, "unknown command: %s", line);
    exit(2);
  }
}

static void read_options(int argc, char **argv) {
  static struct option options[] = {
      {"port", 1, 0, 'p'},  {"streams", 1, 0, 'n'}, {"path", 1, 0, 'u'}, {"every", 1, 0, 'k'},
      {"classes", 1, 0, 'c'}, {"rcvbuf", 1, 0, 'b'},  {"paths", 1, 0, 'f'}, {0}};
  for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    if (o == 'p') port = atoi(optarg);
    else if (o == 'n') count = atoi(optarg);
    else if (o == 'u') path = optarg;
    else if (o == 'k') every = atoi(optarg);
    else if (o == 'c') classes = atoi(optarg);
    else if (o == 'b') rcvbuf = atoi(optarg);
    else if (o == 'f') paths = optarg;
    else exit(2);
  }
}

static void read_paths(void) {
  FILE *file = paths ? fopen(paths, "r") : NULL;
  for (int i = 0; i < count; i++) {
    size_t size = 0;
    char *line = NULL;
    streams[i].path = path;
    if (!file || getline(&line, &size, file) < 0) continue;
    line[strcspn(line, "\n")] = 0;
    streams[i].path = line;
  }
  if (file) fclose(file);
}

int main(int argc, char **argv) {
  read_options(argc, argv);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  setvbuf(stdout, NULL, _IOLBF, 0);
  buffer = malloc(BUFFER + 1);
  streams = calloc(count, sizeof *streams);
  for (int i = 0; i < count; i++) {
    // Of the streams that are parsed, as many are in each class as of all.
    streams[i] = (Stream){.fd = -1, .next = -1, .class = i / every % classes, .retry = RETRY};
    streams[i].parsed = i % every == 0;
  }
  read_paths();
  epoll = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event input = {.events = EPOLLIN, .data.u32 = count}, events[512];
  epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &input);
  char line[256];
  while (1) {
    int n = epoll_wait(epoll, events, 512, command == IDLE && !follows ? -1 : 10);
    for (int i = 0; i < n; i++) {
      if (events[i].data.u32 < (uint32_t)count) {
        on_event(&streams[events[i].data.u32]);
        continue;
      }
      ssize_t got = read(0, line, sizeof line - 1);
      if (got <= 0) return 0;
      line[got] = 0;
      obey(line);
    }
    double now = monotonic();
    follow(now);
    if ((command == TO_CONNECT && connect_done(now)) || (command == TO_COUNT && count_done(now)) ||
        (command == TO_DRAIN && drain_done(now)))
      command = IDLE;
  }
}
