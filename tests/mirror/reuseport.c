// Three threads, three listening sockets, one port: the kernel chooses which thread accepts.
// Usage: reuseport [port]. reuseport.rs, beside this file, is the same program line by line.

#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { THREADS = 3 };
static unsigned short port = 3000;

static int check(const char *call, int result) {
  if (result == -1) {
    perror(call);
    exit(1);
  }
  return result;
}

static void *acceptor(void *number) {
  int n = *(int *)number;
  int server = check("socket", socket(AF_INET, SOCK_STREAM, 0));
  int on = 1;
  check("setsockopt", setsockopt(server, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));

  struct sockaddr_in addr = {0};
  addr.sin_family = AF_INET;
  addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  addr.sin_port = htons(port);

  check("bind", bind(server, (struct sockaddr *)&addr, sizeof addr));
  check("listen", listen(server, 1));
  for (;;) {
    int client = check("accept", accept(server, NULL, NULL));
    printf("acceptor %d\n", n);
    fflush(stdout);
    check("close", close(client));
  }
  return NULL;
}

int main(int argc, char **argv) {
  if (argc > 1)
    port = (unsigned short)atoi(argv[1]);

  pthread_t threads[THREADS];
  int numbers[THREADS];
  for (int i = 0; i < THREADS; i++) {
    numbers[i] = i;
    if (pthread_create(&threads[i], NULL, acceptor, &numbers[i]) != 0)
      exit(1);
  }
  for (int i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
}
