#define _GNU_SOURCE
#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct sock_filter filter[4096]; /* BPF_MAXINSNS */
static unsigned short filter_length;

int load_filter(void) {
    int fd = open(FILTER_PATH, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t size = read(fd, filter, sizeof filter);
    close(fd);
    if (size <= 0 || size % sizeof *filter) {
        errno = EINVAL;
        return -1;
    }
    filter_length = size / sizeof *filter;
    return 0;
}

int confine(bool dumpable) {
    for (int capability = 0; capability < 64; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0) {
            if (errno != EINVAL || capability == 0) return -1;
            break; /* the kernel knows none beyond */
        }
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0}; /* empties the ambient set too */
    if (syscall(SYS_capset, &header, none) < 0) return -1;
    if (prctl(PR_SET_DUMPABLE, dumpable, 0, 0, 0) < 0) return -1;
    return install_filter();
}

int install_filter(void) {
    struct sock_fprog program = {.len = filter_length, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -1;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

ssize_t receive(int socket, void *buffer, size_t size, int *fds, int *count) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
    } control;
    struct iovec piece = {buffer, size};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t length;
    do length = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (length < 0 && errno == EINTR);
    *count = 0;
    if (length < 0) return errno == ECONNRESET ? 0 : -1;
    if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) return errno = EMSGSIZE, -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        *count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(header), *count * sizeof(int));
    }
    return length;
}

static int send_flagged(int socket, const void *buffer, size_t size, const int *fds, int count, int flags) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
    } control;
    struct iovec piece = {(void *)buffer, size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    }
    ssize_t sent;
    do sent = sendmsg(socket, &message, MSG_NOSIGNAL | flags);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -1 : 0;
}

int send_with(int socket, const void *buffer, size_t size, const int *fds, int count) {
    return send_flagged(socket, buffer, size, fds, count, 0);
}

int send_at_once(int socket, const void *buffer, size_t size, const int *fds, int count) {
    return send_flagged(socket, buffer, size, fds, count, MSG_DONTWAIT);
}

int write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t written = write(fd, text, strlen(text));
    close(fd);
    return written < 0 ? -1 : 0;
}

void go_first(void) { write_file("/proc/self/oom_score_adj", "500"); }

#define FAILURE_BYTES 200

static size_t pack_failure(char *told, uint32_t box, const char *step) {
    struct failed head = {'f', box};
    memcpy(told, &head, sizeof head);
    size_t room = FAILURE_BYTES - sizeof head;
    size_t length = snprintf(told + sizeof head, room, "%s: %s", step, strerror(errno));
    return sizeof head + (length < room ? length : room - 1);
}

void tell_failure(int socket, uint32_t box, const char *step) {
    char told[FAILURE_BYTES];
    send_with(socket, told, pack_failure(told, box, step), NULL, 0);
}

void tell_failure_by_pipe(int pipe, const char *step) {
    char told[FAILURE_BYTES];
    (void)!write(pipe, told, pack_failure(told, 0, step));
}

void close_if(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

uint64_t number_in(int fd) {
    char text[32] = "";
    return fd >= 0 && pread(fd, text, sizeof text - 1, 0) > 0 ? strtoull(text, NULL, 10) : 0;
}

uint64_t field_in(int fd, const char *name) {
    char text[4096], wanted[32];
    ssize_t length = fd >= 0 ? pread(fd, text, sizeof text - 1, 0) : -1;
    if (length <= 0) return 0;
    text[length] = 0;
    size_t size = snprintf(wanted, sizeof wanted, "%s ", name);
    for (char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, wanted, size) == 0) return strtoull(line + size, NULL, 10);
    }
    return 0;
}

int write_number(int fd, uint64_t number) {
    char text[24];
    int length = snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    return fd < 0 || pwrite(fd, text, length, 0) == length ? 0 : -1;
}

void usage_of(int who, uint64_t *user_ns, uint64_t *system_ns) {
    struct rusage used;
    getrusage(who, &used);
    *user_ns = used.ru_utime.tv_sec * 1000000000ull + used.ru_utime.tv_usec * 1000ull;
    *system_ns = used.ru_stime.tv_sec * 1000000000ull + used.ru_stime.tv_usec * 1000ull;
}

int tell_ready(int sync) {
    if (sync < 0) return 0;
    struct ready ready = {.kind = 'r', .pid = getpid()};
    usage_of(RUSAGE_SELF, &ready.user_ns, &ready.system_ns);
    return write(sync, &ready, sizeof ready) == sizeof ready ? 0 : -1;
}
