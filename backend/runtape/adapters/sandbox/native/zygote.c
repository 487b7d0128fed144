/* Forks a warm interpreter into boxes.  A library that the interpreter loads; see starters/zygote.py.

   Theory of operation.  The interpreter, outside of every box, has imported what programs mostly use and now waits in
   `zygote_serve`, in which it stays for good: the zygote itself never runs Python again, so its pages stay shared.
   For each request it makes a runner: a fork of itself inside a box that stands already.  A runner must be a child of
   the box's pid 1, which alone tells how it ended.  So two steps:

       zygote ──vfork──▸ go-between ──fork──▸ runner

   The go-between is a member of the box's pid namespace (`setns` before it is made), joins its cgroups, and shares
   the zygote's memory, so it costs no page.  When it is gone the runner is an orphan, and an orphan belongs to
   pid 1 of its namespace.  The runner enters the other namespaces of the box in one call, by the pidfd of pid 1,
   becomes its user, gives up what it can give up, and only then returns to Python, confined for good.

   `fork` is libc's own, since it mends libc's thread state in the child; the interpreter mends its own in
   `PyOS_AfterFork_Child`. */

#define _GNU_SOURCE
#include "confine.h"
#include "runner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHANNEL 3
#define MEMORY_LIMIT 4
#define PROCESSES 5
#define SYNC 6
#define SPARE 64 /* descriptors from here up do not stand in the way of those above */

#define NAMESPACES (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)

/* Number the descriptors that a runner keeps; only 0, 1 and 2 pass through an exec. */
static int keep(const int *fds, const struct fork_runner *request) {
    const int *limits = fds + RUNNER_GROUP + request->groups;
    const struct { int from, to, flags; } kept[] = {
        {fds[RUNNER_STDOUT], 1, 0},
        {fds[RUNNER_STDERR], 2, 0},
        {fds[RUNNER_CHANNEL], CHANNEL, O_CLOEXEC},
        {request->limits ? limits[0] : -1, MEMORY_LIMIT, O_CLOEXEC},
        {request->limits ? limits[1] : -1, PROCESSES, O_CLOEXEC},
        {fds[RUNNER_SYNC], SYNC, O_CLOEXEC},
    };
    enum { COUNT = sizeof kept / sizeof *kept };
    int spare[COUNT];
    for (int i = 0; i < COUNT; i++)
        if ((spare[i] = kept[i].from < 0 ? -1 : fcntl(kept[i].from, F_DUPFD_CLOEXEC, SPARE)) < 0 && kept[i].from >= 0)
            return -1;
    for (int i = 0; i < COUNT; i++)
        if (spare[i] < 0)
            close(kept[i].to);
        else if (dup3(spare[i], kept[i].to, kept[i].flags) < 0)
            return -1;
    return syscall(SYS_close_range, SYNC + 1, ~0u, 0);
}

/* Name the step that failed where pid 1 and its slot hear it, and end. */
static void give_up(int sync, const char *step) {
    tell_failure_by_pipe(sync, step);
    _exit(1);
}

static void become_runner(const int *fds, const struct fork_runner *request) {
    int sync = fds[RUNNER_SYNC];
    if (setns(fds[RUNNER_PIDFD], NAMESPACES) < 0) give_up(sync, "setns");
    if (setresgid(BOX_ID, BOX_ID, BOX_ID) < 0 || setresuid(BOX_ID, BOX_ID, BOX_ID) < 0) give_up(sync, "setresuid");
    if (chdir(WORK_DIRECTORY) < 0) give_up(sync, "chdir");
    if (keep(fds, request) < 0) give_up(sync, "descriptors");
    if (setsid() < 0) give_up(SYNC, "setsid");
    /* What a program may look up of itself in /proc is its own only while it is dumpable. */
    if (confine(true) < 0) give_up(SYNC, "confine");
    go_first();
    while (getppid() != 1) sched_yield(); /* until the go-between is gone, an instant */
}

static void join_groups(const int *fds, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        if (write(fds[RUNNER_GROUP + i], "0", 1) < 0) _exit(errno);
}

/* Wait for requests on `socket` and carry them out.  Returns 1 in each runner, confined; in the zygote 0 at the end
   of file, or -1. */
int zygote_serve(int socket) {
    if (load_filter() < 0) return -1;
    for (;;) {
        struct fork_runner request;
        int fds[MESSAGE_FDS], count;
        ssize_t length = receive(socket, &request, sizeof request, fds, &count);
        if (length <= 0) return length;
        if (count != (int)(RUNNER_GROUP + request.groups + 2 * request.limits)) goto close;
        if (setns(fds[RUNNER_PIDFD], CLONE_NEWPID) < 0) goto close; /* the box has died; pid 1's slot tells */
        pid_t between = vfork();
        if (between == 0) {
            join_groups(fds, request.groups);
            pid_t runner = fork();
            if (runner < 0) _exit(errno);
            if (runner > 0) _exit(0);
            become_runner(fds, &request);
            return 1;
        }
        if (between > 0) {
            int status;
            while (waitpid(between, &status, 0) < 0 && errno == EINTR) {}
            if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
                errno = WEXITSTATUS(status);
                tell_failure_by_pipe(fds[RUNNER_SYNC], "fork");
            }
        }
    close:
        for (int i = 0; i < count; i++) close(fds[i]);
    }
}

/* The rest is called by runners alone. */

static const struct runner self = {CHANNEL, MEMORY_LIMIT, PROCESSES, SYNC};
static struct program program;

/* Tell pid 1 that this runner waits for its order; then return whether that comes within `timeout_ms`. */
int runner_armed(int timeout_ms) {
    if (tell_ready(SYNC) < 0) _exit(1);
    struct pollfd order = {CHANNEL, POLLIN, 0};
    return poll(&order, 1, timeout_ms) > 0;
}

/* Take the order and carry it out as far as the program itself.  Returns whether there is something to run; if not,
   the service has been told. */
int runner_take_order(void) {
    const char *step = take_order(&self, &program);
    if (step != NULL) tell_failure(CHANNEL, 0, step);
    syscall(SYS_close_range, CHANNEL, SYNC, 0);
    return step == NULL;
}

/* The program's arguments and environment, by index; NULL beyond the last. */
const char *runner_argument(int index) { return program.arguments[index]; }
const char *runner_variable(int index) { return program.variables[index]; }
