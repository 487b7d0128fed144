#define _GNU_SOURCE
#include "runner.h"

#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

struct reader {
    const char *at, *end;
};

static const char *take(struct reader *reader, uint32_t *length) {
    if (reader->end - reader->at < (ptrdiff_t)sizeof *length) return NULL;
    memcpy(length, reader->at, sizeof *length);
    const char *text = reader->at + sizeof *length;
    if ((uint64_t)(reader->end - text) < (uint64_t)*length + 1) return NULL;
    reader->at = text + *length + 1;
    return text;
}

static int write_whole(int fd, const char *bytes, size_t size) {
    while (size > 0) {
        ssize_t written = write(fd, bytes, size);
        if (written < 0) return -1;
        bytes += written;
        size -= written;
    }
    return 0;
}

/* The work directory is empty but for .tmp, and no program has run: no path can lead astray yet. */
static int write_source(const char *path, const char *content, uint32_t size) {
    char folder[4096];
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        if ((size_t)(slash - path) >= sizeof folder) return errno = ENAMETOOLONG, -1;
        memcpy(folder, path, slash - path);
        folder[slash - path] = 0;
        if (mkdir(folder, 0755) < 0 && errno != EEXIST) return -1;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755); /* compiled programs come as files, too */
    if (fd < 0) return -1;
    int result = write_whole(fd, content, size);
    close(fd);
    return result;
}

static int put_at_stdin(int fd) {
    int result = dup2(fd, STDIN_FILENO);
    close(fd);
    return result;
}

/* An input that comes with the order fits an empty pipe. */
static int pipe_to_stdin(const char *content, uint32_t size) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) return -1;
    int result = write_whole(ends[1], content, size);
    close(ends[1]);
    return result < 0 ? -1 : put_at_stdin(ends[0]);
}

const char *carry_out(const char *bytes, size_t size, int stdin_fd, const struct runner *runner,
                      struct program *program) {
    struct order order;
    struct reader reader = {bytes + sizeof order, bytes + size};
    if (size < sizeof order) return errno = EBADMSG, "the order";
    memcpy(&order, bytes, sizeof order);
    if (order.limits > (size - sizeof order) / sizeof(struct limit) || order.arguments == 0)
        return errno = EBADMSG, "the order";
    const char *limits = reader.at;
    reader.at += order.limits * sizeof(struct limit);
    uint32_t length;
    const char *text;
    for (uint32_t i = 0; i < order.files; i++) {
        const char *path = take(&reader, &length);
        text = path ? take(&reader, &length) : NULL;
        if (text == NULL) return errno = EBADMSG, "the order";
        if (write_source(path, text, length) < 0) return path;
    }
    char **list = calloc((size_t)order.arguments + order.variables + 2, sizeof *list);
    if (list == NULL) return "memory";
    program->arguments = list;
    program->variables = list + order.arguments + 1;
    for (uint32_t i = 0; i < order.arguments + order.variables; i++) {
        if ((text = take(&reader, &length)) == NULL) return errno = EBADMSG, "the order";
        list[i < order.arguments ? i : i + 1] = (char *)text;
    }
    if ((text = take(&reader, &length)) == NULL) return errno = EBADMSG, "the order";
    if (stdin_fd >= 0 ? put_at_stdin(stdin_fd) < 0 : length > 0 && pipe_to_stdin(text, length) < 0) return "stdin";
    if (order.memory_bytes && write_number(runner->memory_limit, order.memory_bytes) < 0) return "the memory limit";
    if (order.processes && write_number(runner->processes, order.processes) < 0) return "the limit of processes";
    for (uint32_t i = 0; i < order.limits; i++) {
        struct limit limit;
        memcpy(&limit, limits + i * sizeof limit, sizeof limit);
        struct rlimit value = {limit.soft, limit.hard};
        if (setrlimit(limit.resource, &value) < 0) return "setrlimit";
    }
    return NULL;
}

const char *take_order(const struct runner *runner, struct program *program) {
    static char datagram[DATAGRAM_BYTES];
    int fds[MESSAGE_FDS], count;
    ssize_t length = receive(runner->channel, datagram, sizeof datagram, fds, &count);
    if (length <= 0) _exit(0); /* the box is not needed */
    tell_ready(runner->sync);
    int carried = !!(datagram[0] & ORDER_IN_FD) + !!(datagram[0] & STDIN_IN_FD);
    if (count != carried) return errno = EBADMSG, "the order";
    const char *order = datagram + 1;
    size_t size = length - 1;
    int next = 0;
    if (datagram[0] & ORDER_IN_FD) {
        struct stat file;
        if (fstat(fds[0], &file) < 0) return "the order";
        size = file.st_size;
        order = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fds[0], 0);
        if (order == MAP_FAILED) return "the order";
        close(fds[next++]);
    }
    return carry_out(order, size, datagram[0] & STDIN_IN_FD ? fds[next] : -1, runner, program);
}
