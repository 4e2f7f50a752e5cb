// The C program as a server among the others: ADDRESS ACCEPTORS close|http [cpu]. Unlike
// tests/mirror/reuseport.c it does not print each connection, and its queue is as long as theirs.
// With "cpu" thread i runs on CPU i, and its listener gets the connections that this CPU receives.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int http;

static int check(const char *call, int result) {
  if (result == -1) {
    perror(call);
    exit(1);
  }
  return result;
}

// Answers a client's requests until it wants no more, or is gone.
static void answer(int client) {
  static const char last[] =
      "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
  static const char more[] =
      "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nok\n";
  char buffer[1024];
  size_t filled = 0;
  for (;;) {
    ssize_t got = recv(client, buffer + filled, sizeof buffer - filled, 0);
    if (got <= 0)
      return;
    filled += (size_t)got;
    char *blank;
    while ((blank = memmem(buffer, filled, "\r\n\r\n", 4)) != NULL) {
      char *end = blank + 4;
      blank[2] = '\0'; // the header is a string up to here
      int ends = strcasestr(buffer, "\r\nConnection: close\r\n") != NULL;
      const char *bytes = ends ? last : more;
      size_t length = ends ? sizeof last - 1 : sizeof more - 1;
      if (send(client, bytes, length, MSG_NOSIGNAL) != (ssize_t)length || ends)
        return;
      filled -= (size_t)(end - buffer);
      memmove(buffer, end, filled);
    }
  }
}

static void *acceptor(void *listener) {
  int server = *(int *)listener;
  for (;;) {
    int client = check("accept", accept(server, NULL, NULL));
    if (http)
      answer(client);
    check("close", close(client));
  }
  return NULL;
}

// The kernel asks this program which listener of the group gets a connection: number cpu % n.
static void choose_by_cpu(int server, int n) {
  struct sock_filter code[] = {
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, (unsigned)(SKF_AD_OFF + SKF_AD_CPU)},
      {BPF_ALU | BPF_MOD | BPF_K, 0, 0, (unsigned)n},
      {BPF_RET | BPF_A, 0, 0, 0},
  };
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  check("setsockopt", setsockopt(server, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program,
                                 sizeof program));
}

static void run_on(pthread_t thread, int cpu) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(cpu, &cpus);
  errno = pthread_setaffinity_np(thread, sizeof cpus, &cpus);
  if (errno != 0)
    check("pthread_setaffinity_np", -1);
}

int main(int argc, char **argv) {
  char *colon = argc == 4 || argc == 5 ? strchr(argv[1], ':') : NULL;
  if (colon == NULL) {
    fprintf(stderr, "usage: ADDRESS ACCEPTORS close|http [cpu]\n");
    return 2;
  }
  *colon = '\0';
  struct sockaddr_in addr = {0};
  addr.sin_family = AF_INET;
  addr.sin_port = htons((unsigned short)atoi(colon + 1));
  if (inet_pton(AF_INET, argv[1], &addr.sin_addr) != 1) {
    fprintf(stderr, "not an address: %s\n", argv[1]);
    return 2;
  }
  int acceptors = atoi(argv[2]);
  http = strcmp(argv[3], "http") == 0;
  int by_cpu = argc == 5 && strcmp(argv[4], "cpu") == 0;

  pthread_t *threads = calloc((size_t)acceptors, sizeof *threads);
  int *servers = calloc((size_t)acceptors, sizeof *servers);
  if (threads == NULL || servers == NULL)
    check("calloc", -1);
  for (int i = 0; i < acceptors; i++) {
    int server = check("socket", socket(AF_INET, SOCK_STREAM, 0));
    int on = 1;
    check("setsockopt", setsockopt(server, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));
    check("bind", bind(server, (struct sockaddr *)&addr, sizeof addr));
    check("listen", listen(server, 4096));
    socklen_t length = sizeof addr; // the others bind what port 0 has become
    check("getsockname", getsockname(server, (struct sockaddr *)&addr, &length));
    servers[i] = server;
  }
  if (by_cpu)
    choose_by_cpu(servers[0], acceptors); // for the whole group
  for (int i = 0; i < acceptors; i++) {
    errno = pthread_create(&threads[i], NULL, acceptor, &servers[i]);
    if (errno != 0)
      check("pthread_create", -1);
    if (by_cpu)
      run_on(threads[i], i);
  }
  fprintf(stderr, "listening on %s:%d\n", argv[1], ntohs(addr.sin_port));
  for (int i = 0; i < acceptors; i++) {
    errno = pthread_join(threads[i], NULL);
    if (errno != 0)
      check("pthread_join", -1);
  }
}
