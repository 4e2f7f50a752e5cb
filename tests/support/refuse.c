/* refuse WHAT... -- PROGRAM [ARGUMENT...]
 *
 * Runs PROGRAM under a seccomp filter that refuses what WHAT names: see the table. The set-ups of
 * .ci/setups use it. Exits with 125 if the filter or the program cannot be had. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* An argument of a system call that, under `mask`, equals `value`. */
struct condition {
    int argument;
    unsigned mask;
    unsigned value;
};

/* The system call `call` fails with `error` where all its conditions hold. A mask of 0 ends them. */
static const struct refusal {
    const char *what;
    unsigned call;
    int error;
    struct condition conditions[2];
} table[] = {
    {"bpf", SYS_setsockopt, EPERM, {{1, ~0u, SOL_SOCKET}, {2, ~0u, SO_ATTACH_REUSEPORT_CBPF}}},
    {"filter", SYS_setsockopt, EPERM, {{1, ~0u, SOL_SOCKET}, {2, ~0u, SO_ATTACH_FILTER}}},
    {"netlink", SYS_socket, EAFNOSUPPORT, {{0, ~0u, AF_NETLINK}}},
    {"bind", SYS_bind, EACCES, {{0}}},
    {"ipv6", SYS_socket, EAFNOSUPPORT, {{0, ~0u, AF_INET6}}},
    {"threads", SYS_clone, EAGAIN, {{0, CLONE_THREAD, CLONE_THREAD}}},
    {"threads", SYS_clone3, ENOSYS, {{0}}}, /* the C library then calls clone */
    {"affinity", SYS_sched_setaffinity, EPERM, {{0}}},
    {"namespaces", SYS_unshare, EPERM, {{0}}},
};

static struct sock_filter code[128];
static unsigned short length;

static void add(unsigned short instruction, unsigned operand, unsigned char if_true,
                unsigned char if_false)
{
    if (length == sizeof code / sizeof *code) {
        fprintf(stderr, "refuse: too many refusals\n");
        exit(125);
    }
    code[length++] = (struct sock_filter)BPF_JUMP(instruction, operand, if_true, if_false);
}

static void load(size_t offset)
{
    add(BPF_LD | BPF_W | BPF_ABS, (unsigned)offset, 0, 0);
}

/* Each refusal ends where its first instruction that does not match jumps to. */
static void refuse(const struct refusal *refusal)
{
    int conditions = 0;
    while (conditions < 2 && refusal->conditions[conditions].mask != 0)
        conditions++;

    load(offsetof(struct seccomp_data, nr));
    add(BPF_JMP | BPF_JEQ | BPF_K, refusal->call, 0, (unsigned char)(3 * conditions + 1));
    for (int at = 0; at < conditions; at++) {
        const struct condition *condition = &refusal->conditions[at];
        /* The lower half of the argument, on a little-endian machine. */
        load(offsetof(struct seccomp_data, args) + 8 * condition->argument);
        add(BPF_ALU | BPF_AND | BPF_K, condition->mask, 0, 0);
        add(BPF_JMP | BPF_JEQ | BPF_K, condition->value, 0,
            (unsigned char)(3 * (conditions - 1 - at) + 1));
    }
    add(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)refusal->error, 0, 0);
}

int main(int argc, char **argv)
{
    int at = 1;

    for (; at < argc && strcmp(argv[at], "--") != 0; at++) {
        int known = 0;
        for (size_t row = 0; row < sizeof table / sizeof *table; row++) {
            if (strcmp(table[row].what, argv[at]) == 0) {
                refuse(&table[row]);
                known = 1;
            }
        }
        if (!known) {
            fprintf(stderr, "refuse: unknown word \"%s\"\n", argv[at]);
            return 125;
        }
    }
    if (at + 1 >= argc) {
        fprintf(stderr, "usage: refuse WHAT... -- PROGRAM [ARGUMENT...]\n");
        return 125;
    }
    add(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    struct sock_fprog program = {length, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("refuse: seccomp");
        return 125;
    }
    execvp(argv[at + 1], argv + at + 1);
    perror(argv[at + 1]);
    return 125;
}
