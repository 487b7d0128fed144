/* The first process of a pod's container: takes one program from the service, runs it, and hands over what it prints,
   how it ended and what it left.  `pod REPORT` writes the report to that file as well, where Kubernetes reads it.

   Theory of operation.  One loop waits for everything: the service's frames, the program's two pipes, the deaths of
   processes, and the nearest deadline.  What is printed becomes records (spool.c), which are kept until the service
   has acknowledged them: it can be cut off at any byte and come again (protocol.h).  While nobody comes, the program
   goes on until the spool is full, and then waits.  Nothing that is written waits for a reader either: the loop writes
   as much as the pipe takes.

   The program has this process's uid, and no way to it: as pid 1 it gets no signal from its own namespace that it has
   no handler for, and as it is not dumpable, nobody of its uid can look into its memory, its descriptors or its
   environment; the filter of system calls, which is that of the local sandbox, keeps it from changing our limits.  All
   descriptors are closed in the program.  What can be killed is the container as a whole, by the
   memory limit or from outside, and then there is no report with the token, which Kubernetes' own words explain.

   The end comes in this order: the program's first process ends, or a reason to stop it comes; everything else in the
   container is killed and reaped; the pipes are emptied; the report is written, here and to the file; the files that
   were left can be asked for.  Then the runner waits for the service to let it go, no longer than the lease. */

#define _GNU_SOURCE
#include "account.h"
#include "collect.h"
#include "confine.h"
#include "protocol.h"
#include "runner.h"
#include "spool.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REPORT_BYTES 1024
#define OUT_BYTES (256u << 10)
#define NEVER UINT64_MAX
#define MS 1000000ull
#define REAP_MS 200             /* how long the killed may take to die before we look again */
#define FIRST_PAUSE (100 * MS) /* between two points of a timeline; doubled whenever MOST_POINTS are reached */
#define MOST_POINTS 200

static struct {
    enum state state;
    const char *report_path;
    struct run wanted;
    int order, input; /* memfds, while they come */
    /* the program */
    pid_t program;
    bool program_ended;
    int status;        /* of its first process */
    int pipes[2];      /* its output; -1: closed */
    int started_pipe;  /* tells why it could not be started; -1: it was, or has told */
    char failure[200]; /* why it could not; empty when it could */
    const char *stopped_for;
    uint64_t started_ns, ended_ns;
    uint64_t lease_due, wall_due, cpu_due, point_due, reap_due;
    uint64_t point_pause;
    unsigned points;
    struct spent at_start, at_end;
    uint64_t printed;
    bool truncated;
    struct spool spool;
    /* the end */
    char report[REPORT_BYTES];
    bool report_sent;
    bool left_files;
    int collecting; /* the collector's socket; -1: there is none */
    pid_t collector;
    /* the service */
    bool attached;
    bool extended; /* a lease has come, and that is not told yet */
    char in[PADDING];
    size_t in_bytes;
    char out[OUT_BYTES];
    size_t out_from, out_to;
} pod;

static void give_up(const char *why) {
    fprintf(stderr, "runner: %s: %s\n", why, strerror(errno));
    _exit(70);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static uint64_t after(uint64_t ns) { return ns > NEVER - now() ? NEVER : now() + ns; }

/* Frames to the service */

static bool room_for(size_t bytes) {
    if (pod.out_from > 0) {
        memmove(pod.out, pod.out + pod.out_from, pod.out_to - pod.out_from);
        pod.out_to -= pod.out_from;
        pod.out_from = 0;
    }
    return pod.attached && pod.out_to + sizeof(struct head) + bytes + 1 <= sizeof pod.out;
}

static void put(const void *bytes, size_t size) {
    memcpy(pod.out + pod.out_to, bytes, size);
    pod.out_to += size;
}

/* Put a frame of two parts; false when there is no room for it now. */
static bool put_frame(uint8_t kind, const void *first, size_t first_bytes, const void *second, size_t second_bytes) {
    if (!room_for(first_bytes + second_bytes)) return false;
    struct head head = {kind, first_bytes + second_bytes};
    uint8_t end = END_OF_FRAME;
    put(&head, sizeof head);
    put(first, first_bytes);
    put(second, second_bytes);
    put(&end, sizeof end);
    return true;
}

static void relay_files(void) {
    static char datagram[DATAGRAM_BYTES];
    while (pod.collecting >= 0 && room_for(sizeof datagram)) {
        ssize_t got = recv(pod.collecting, datagram, sizeof datagram, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) close_if(&pod.collecting);
        put_frame(FILES, datagram, got > 0 ? got : 0, NULL, 0); /* an empty one: there is no more */
    }
}

/* Put all that is to be told and has room. */
static void fill(void) {
    const struct kept *record;
    if (pod.extended) pod.extended = !put_frame(EXTENDED, NULL, 0, NULL, 0);
    while (room_for(sizeof(struct record) + RECORD_BYTES) && (record = spool_next(&pod.spool)) != NULL) {
        struct record head = {record->seq, record->stream, record->truncated, record->t_ns};
        put_frame(RECORD, &head, sizeof head, record->data, record->size);
    }
    if (pod.state != ENDED || pod.spool.unsent != NULL) return;
    if (!pod.report_sent) pod.report_sent = put_frame(REPORT, pod.report, strlen(pod.report), NULL, 0);
    relay_files();
}

static void write_out(void) {
    fill();
    while (pod.out_from < pod.out_to) {
        ssize_t written = write(STDOUT_FILENO, pod.out + pod.out_from, pod.out_to - pod.out_from);
        if (written < 0 && errno == EAGAIN) return;
        if (written < 0) give_up("stdout");
        pod.out_from += written;
        if (pod.out_from == pod.out_to) fill();
    }
}

/* The end of the program */

static void kill_all(void) {
    kill(-1, SIGKILL); /* of this pid namespace, but for us; atomic against fork */
    pod.reap_due = after(REAP_MS * MS);
}

static void stop(const char *reason) {
    if (pod.state != RUNNING || pod.stopped_for != NULL) return;
    pod.stopped_for = reason;
    kill_all();
}

static void write_report(void) {
    char token[2 * TOKEN_BYTES + 1];
    for (int i = 0; i < TOKEN_BYTES; i++) sprintf(token + 2 * i, "%02x", pod.wanted.token[i]);
    for (char *at = pod.failure; *at; at++)
        if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\') *at = '?';
    struct spent used = pod.at_end;
    snprintf(pod.report, sizeof pod.report,
             "{\"version\":%d,\"token\":\"%s\",\"wait_status\":%d,\"stopped_for\":\"%s\",\"failure\":\"%s\","
             "\"wall_ns\":%llu,\"cpu_user_ns\":%llu,\"cpu_system_ns\":%llu,\"peak_memory_bytes\":%llu,"
             "\"oom_kills\":%llu,\"output_bytes\":%llu,\"truncated\":%s,\"last_seq\":%u,\"left_files\":%s}",
             PROTOCOL_VERSION, token, pod.status, pod.stopped_for ? pod.stopped_for : "", pod.failure,
             (unsigned long long)(pod.ended_ns - pod.started_ns),
             (unsigned long long)(used.user_ns - pod.at_start.user_ns),
             (unsigned long long)(used.system_ns - pod.at_start.system_ns),
             (unsigned long long)used.peak_memory_bytes, (unsigned long long)(used.oom_kills - pod.at_start.oom_kills),
             (unsigned long long)pod.printed, pod.truncated ? "true" : "false", pod.spool.last_seq,
             pod.left_files ? "true" : "false");
    int fd = open(pod.report_path, O_WRONLY | O_TRUNC | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return; /* whoever is attached hears it */
    (void)!write(fd, pod.report, strlen(pod.report));
    close(fd);
}

static void conclude(void) {
    pod.ended_ns = now();
    pod.at_end = spent();
    for (int i = 0; i < 2; i++) close_if(&pod.pipes[i]);
    int out = open_out();
    pod.left_files = out >= 0;
    close_if(&out);
    pod.wall_due = pod.cpu_due = pod.point_due = NEVER;
    pod.state = ENDED;
    write_report();
}

/* Take what a pipe holds, or as much as there is room for.  false: there is no more now. */
static bool take_output(int which) {
    static char piece[RECORD_BYTES];
    ssize_t got = read(pod.pipes[which], piece, sizeof piece);
    if (got < 0) return false;
    if (got == 0) {
        close_if(&pod.pipes[which]);
        return false;
    }
    uint64_t t_ns = now() - pod.started_ns;
    uint64_t left = pod.wanted.output_bytes - pod.printed;
    size_t taken = (uint64_t)got < left ? (uint64_t)got : left;
    if (pod.truncated) return true; /* it is thrown away */
    if (taken > 0 && !spool_add(&pod.spool, which + 1, t_ns, piece, taken)) give_up("memory");
    pod.printed += taken;
    if ((uint64_t)got > left) {
        pod.truncated = true;
        if (!spool_truncate(&pod.spool, which + 1, t_ns)) give_up("memory");
        stop("output");
    }
    return true;
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, __WALL | WNOHANG)) > 0) {
        if (pid == pod.collector) pod.collector = -1;
        if (pid != pod.program) continue;
        pod.program_ended = true;
        pod.status = status;
        if (pod.state == RUNNING) kill_all(); /* what it has left behind */
    }
    if (pid == 0 || pod.state != RUNNING || !pod.program_ended) return;
    /* Nobody is left who could write: what the pipes hold is all that there will be. */
    if (pod.started_pipe >= 0) {
        struct failed head;
        char told[sizeof pod.failure + sizeof head] = "";
        if (read(pod.started_pipe, told, sizeof told - 1) > (ssize_t)sizeof head)
            memcpy(pod.failure, told + sizeof head, sizeof pod.failure - 1);
        close_if(&pod.started_pipe);
    }
    pod.reap_due = NEVER;
    for (int i = 0; i < 2; i++)
        while (pod.pipes[i] >= 0 && take_output(i)) {}
    conclude();
}

/* The beginning of the program */

static void begin_program(const int *stdout_ends, const int *stderr_ends, int tell) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    prctl(PR_SET_DUMPABLE, 1); /* it may not write to its own /proc otherwise; nobody is there who could look */
    go_first();
    if (install_filter() < 0) {
        tell_failure_by_pipe(tell, "the filter of system calls");
        _exit(127);
    }
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    dup2(nothing, STDIN_FILENO);
    dup2(stdout_ends[1], STDOUT_FILENO);
    dup2(stderr_ends[1], STDERR_FILENO);
    struct runner runner = {-1, -1, -1, -1};
    struct program program;
    void *order = mmap(NULL, pod.wanted.order_bytes, PROT_READ, MAP_PRIVATE, pod.order, 0);
    const char *step = order == MAP_FAILED ? "the order" : NULL;
    lseek(pod.input, 0, SEEK_SET);
    if (step == NULL)
        step = carry_out(order, pod.wanted.order_bytes, pod.wanted.input_bytes ? pod.input : -1, &runner, &program);
    if (step == NULL) {
        execve(program.arguments[0], program.arguments, program.variables);
        step = program.arguments[0];
    }
    tell_failure_by_pipe(tell, step);
    _exit(127);
}

/* Make a pipe of which our end does not block. */
static void open_pipe(int *ends) {
    if (pipe2(ends, O_CLOEXEC) < 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) < 0) give_up("pipe");
}

static void start(void) {
    int ends[2][2], tell[2];
    for (int i = 0; i < 2; i++) open_pipe(ends[i]);
    open_pipe(tell);
    pod.at_start = spent();
    pod.started_ns = now();
    pod.program = fork();
    if (pod.program < 0) give_up("fork");
    if (pod.program == 0) begin_program(ends[0], ends[1], tell[1]);
    for (int i = 0; i < 2; i++) {
        close(ends[i][1]);
        pod.pipes[i] = ends[i][0];
    }
    close(tell[1]);
    pod.started_pipe = tell[0];
    close_if(&pod.order);
    close_if(&pod.input);
    pod.state = RUNNING;
    pod.wall_due = after(pod.wanted.wall_ns);
    pod.cpu_due = after(pod.wanted.cpu_ns / sysconf(_SC_NPROCESSORS_ONLN));
    pod.point_due = pod.wanted.timeline ? now() : NEVER;
    pod.point_pause = FIRST_PAUSE;
    put_frame(STARTED, NULL, 0, NULL, 0);
}

static void look_at_cpu(void) {
    struct spent used = spent();
    uint64_t total = used.user_ns + used.system_ns - pod.at_start.user_ns - pod.at_start.system_ns;
    if (total >= pod.wanted.cpu_ns) {
        stop("cpu");
        pod.cpu_due = NEVER;
    } else {
        uint64_t least = (pod.wanted.cpu_ns - total) / sysconf(_SC_NPROCESSORS_ONLN);
        pod.cpu_due = after(least > 10 * MS ? least : 10 * MS);
    }
}

static void tell_point(void) {
    struct spent used = spent();
    struct point point = {
        .t_ns = now() - pod.started_ns,
        .memory_bytes = used.memory_bytes,
        .cpu_ns = used.user_ns + used.system_ns - pod.at_start.user_ns - pod.at_start.system_ns,
    };
    put_frame(POINT, &point, sizeof point, NULL, 0); /* one that has no room is left out */
    if (++pod.points == MOST_POINTS - 1) { /* the service drops every second one too */
        pod.points = (pod.points + 1) / 2;
        pod.point_pause *= 2;
    }
    pod.point_due = after(pod.point_pause);
}

static void collect(const void *room, size_t size) {
    int ends[2];
    int out = pod.state == ENDED ? open_out() : -1;
    if (out < 0 || pod.collecting >= 0 || size != sizeof(struct collect)) {
        close_if(&out);
        return;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) give_up("socketpair");
    pod.collector = fork();
    if (pod.collector < 0) give_up("fork");
    if (pod.collector == 0) {
        hand_over_files(ends[1], out);
        _exit(0);
    }
    close(ends[1]);
    close(out);
    send(ends[0], room, size, MSG_NOSIGNAL);
    pod.collecting = ends[0];
}

/* Frames from the service */

static void begin_waiting(void) {
    close_if(&pod.order);
    close_if(&pod.input);
    pod.order = memfd_create("order", MFD_CLOEXEC);
    pod.input = memfd_create("input", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (pod.order < 0 || pod.input < 0) give_up("memfd");
}

static void on_hello(const struct hello *hello) {
    if (pod.state == WAITING) begin_waiting(); /* whoever was here before has not said it all */
    if (pod.collecting >= 0) {
        close_if(&pod.collecting); /* the files are asked for again */
        kill(pod.collector, SIGKILL);
    }
    spool_rewind(&pod.spool, hello->after_seq);
    pod.report_sent = false;
    pod.extended = false;
    pod.attached = true;
    pod.out_from = pod.out_to = 0;
    put(MARK, MARK_BYTES);
    put(hello->nonce, NONCE_BYTES);
    struct welcome welcome = {PROTOCOL_VERSION, pod.state};
    put_frame(WELCOME, &welcome, sizeof welcome, NULL, 0);
}

static void on_piece(int fd, const char *bytes, size_t size) {
    if (fd < 0) return; /* the program has started */
    while (size > 0) {
        ssize_t written = write(fd, bytes, size);
        if (written < 0) give_up("the order");
        bytes += written;
        size -= written;
    }
}

static bool holds(int fd, uint64_t bytes) {
    struct stat file;
    return fstat(fd, &file) == 0 && (uint64_t)file.st_size == bytes;
}

static void on_run(const struct run *run) {
    if (pod.state != WAITING || !holds(pod.order, run->order_bytes) || !holds(pod.input, run->input_bytes)) return;
    pod.wanted = *run;
    pod.lease_due = after(run->lease_ns);
    if (fcntl(pod.input, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0) give_up("the input");
    start();
}

static void on_frame(uint8_t kind, const char *bytes, size_t size) {
    if (kind == HELLO && size == sizeof(struct hello)) {
        on_hello((const struct hello *)bytes);
    } else if (kind == ORDER) {
        on_piece(pod.order, bytes, size);
    } else if (kind == INPUT) {
        on_piece(pod.input, bytes, size);
    } else if (kind == RUN && size == sizeof(struct run)) {
        on_run((const struct run *)bytes);
    } else if (kind == ACKNOWLEDGE && size == sizeof(struct acknowledge)) {
        spool_acknowledge(&pod.spool, ((const struct acknowledge *)bytes)->seq);
    } else if (kind == LEASE && size == sizeof(struct lease)) {
        pod.lease_due = after(((const struct lease *)bytes)->lease_ns);
        pod.extended = true;
    } else if (kind == KILL) {
        stop("cancelled");
    } else if (kind == COLLECT) {
        collect(bytes, size);
    } else if (kind == LEAVE) {
        kill_all();
        _exit(0);
    }
}

static void take_in(void) {
    ssize_t got = read(STDIN_FILENO, pod.in + pod.in_bytes, sizeof pod.in - pod.in_bytes);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) give_up("stdin");
    pod.in_bytes += got;
    size_t at = 0;
    while (at < pod.in_bytes) {
        struct head head;
        if (pod.in[at] == 0) {
            at++;
            continue;
        }
        if (pod.in_bytes - at < sizeof head) break;
        memcpy(&head, pod.in + at, sizeof head);
        if (head.bytes > TO_RUNNER_BYTES) give_up("a frame is too large");
        size_t end = at + sizeof head + head.bytes;
        if (end >= pod.in_bytes) break;
        if (pod.in[end] == END_OF_FRAME) on_frame(head.kind, pod.in + at + sizeof head, head.bytes);
        at = end + 1;
    }
    memmove(pod.in, pod.in + at, pod.in_bytes - at);
    pod.in_bytes -= at;
}

/* The loop */

static uint64_t least(uint64_t one, uint64_t other) { return one < other ? one : other; }

static void on_due(void) {
    uint64_t time = now();
    if (time >= pod.lease_due) {
        if (pod.state == ENDED) _exit(0); /* nobody has let us go, and nobody may come any more */
        stop("lease");
    }
    if (time >= pod.wall_due) stop("wall");
    if (time >= pod.cpu_due) look_at_cpu();
    if (time >= pod.point_due) tell_point();
    if (time >= pod.reap_due) kill_all();
}

static int wait_ms(void) {
    uint64_t due = least(pod.lease_due, pod.reap_due);
    if (pod.state == RUNNING && pod.stopped_for == NULL)
        due = least(due, least(pod.wall_due, least(pod.cpu_due, pod.point_due)));
    uint64_t time = now();
    if (due == NEVER) return -1;
    if (due <= time) return 0;
    uint64_t ms = (due - time + MS - 1) / MS;
    return ms < INT_MAX ? (int)ms : INT_MAX;
}

/* SIGTERM is Kubernetes' word, who is in no namespace of ours.  The program's own would have a sender, unless it was
   queued with a sender that the program made up: the kernel lets nobody say SI_USER of such a one. */
static void on_signal(int fd) {
    struct signalfd_siginfo told;
    while (read(fd, &told, sizeof told) == sizeof told) {
        if (told.ssi_signo != SIGTERM || told.ssi_pid != 0 || told.ssi_code != SI_USER) continue;
        if (pod.state == WAITING) _exit(0);
        stop("deleted");
    }
    reap();
}

static int open_signals(void) {
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGCHLD);
    sigaddset(&ours, SIGTERM);
    sigprocmask(SIG_SETMASK, &ours, NULL);
    int fd = signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0) give_up("signalfd");
    return fd;
}

static void run_loop(int signals) {
    for (;;) {
        write_out();
        bool reads = pod.state == RUNNING && !spool_is_full(&pod.spool);
        bool writes = pod.out_from < pod.out_to;
        bool relays = pod.collecting >= 0 && !writes;
        struct pollfd watched[] = {
            {.fd = STDIN_FILENO, .events = POLLIN},
            {.fd = signals, .events = POLLIN},
            {.fd = writes ? STDOUT_FILENO : -1, .events = POLLOUT},
            {.fd = reads ? pod.pipes[0] : -1, .events = POLLIN},
            {.fd = reads ? pod.pipes[1] : -1, .events = POLLIN},
            {.fd = relays ? pod.collecting : -1, .events = POLLIN},
        };
        if (poll(watched, sizeof watched / sizeof *watched, wait_ms()) < 0 && errno != EINTR) give_up("poll");
        on_due();
        if (watched[0].revents) take_in();
        for (int i = 0; i < 2; i++)
            if (watched[3 + i].revents && pod.pipes[i] >= 0) take_output(i);
        if (watched[1].revents) on_signal(signals);
    }
}

int main(int count, char **arguments) {
    if (prctl(PR_SET_DUMPABLE, 0) < 0) give_up("prctl");
    if (count != 2 || getpid() != 1) {
        fprintf(stderr, "usage: pod REPORT, as the first process of a container\n");
        return 64;
    }
    pod.state = WAITING;
    pod.report_path = arguments[1];
    pod.order = pod.input = pod.pipes[0] = pod.pipes[1] = pod.started_pipe = pod.collecting = -1;
    pod.collector = pod.program = -1;
    pod.lease_due = pod.wall_due = pod.cpu_due = pod.point_due = pod.reap_due = NEVER;
    spool_begin(&pod.spool);
    if (load_filter() < 0) give_up(FILTER_PATH);
    if (chdir(WORK_DIRECTORY) < 0) give_up(WORK_DIRECTORY);
    if (mkdir("out", 0755) < 0 && errno != EEXIST) give_up("mkdir out");
    for (int fd = 0; fd < 2; fd++)
        if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) give_up("fcntl");
    open_account();
    begin_waiting();
    run_loop(open_signals());
}
