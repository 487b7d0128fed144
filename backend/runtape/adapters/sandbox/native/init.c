/* Pid 1 of a box: makes the box, waits for the program with all that it started, tells the end, and hands over the
   files that the program has left (collect.c).

   It shares its uid with the program, which can neither see it (hidepid, not dumpable), nor signal it (the kernel drops
   signals to a pid 1 that has no handler), nor change its limits (seccomp), so the program has no way to the channel and
   cannot forge its end.  SIGTERM has a handler: with it the service has the tree killed, and the end takes its usual
   course.  A program that sends it kills itself and nobody else. */

#define _GNU_SOURCE
#include "collect.h"
#include "runner.h"
#include "slot.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The keeper ignores what a service manager sends to a whole group: the service decides when its runs end.  Slots and
   zygotes do the same; programs begin with every signal at its default. */
static void default_signals(void) {
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL); /* those that cannot be set, can stay */
}

static const char *enter_box(uint64_t disk_bytes, uint64_t inodes, bool own_kernel) {
    char options[96];
    /* Three inodes are ours: the folder itself, .tmp and out. */
    snprintf(options, sizeof options, "size=%llu,nr_inodes=%llu,mode=700", (unsigned long long)disk_bytes,
             (unsigned long long)inodes + 3);
    if (mount("box", WORK_DIRECTORY, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0) return "mount " WORK_DIRECTORY;
    if (mkdir(WORK_DIRECTORY "/.tmp", 0700) < 0) return "mkdir .tmp";
    if (mkdir(WORK_DIRECTORY "/out", 0755) < 0) return "mkdir out";
    if (mount(WORK_DIRECTORY "/.tmp", "/tmp", NULL, MS_BIND, NULL) < 0) return "mount /tmp";
    if (own_kernel) {
        unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
        if (mount("monitor", "/run", "tmpfs", flags, "size=16m,mode=700") < 0) return "mount /run";
        if (mount("proc", "/proc", "proc", flags, NULL) < 0) return "mount /proc";
        return chdir(WORK_DIRECTORY) < 0 ? "chdir" : NULL;
    }
    /* Refused where the nursery's own is masked, as in some containers: then no /proc is better than its. */
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2,subset=pid") < 0 &&
        mount("none", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k") < 0)
        return "mount /proc";
    return chdir(WORK_DIRECTORY) < 0 ? "chdir" : NULL;
}

static void kill_tree(int number) {
    (void)number;
    int kept = errno;
    kill(-1, SIGKILL); /* of this pid namespace, but for us; atomic against fork */
    errno = kept;
}

void begin_program(const struct box *box) {
    default_signals();
    setsid();
    dup2(box->stdout, STDOUT_FILENO);
    dup2(box->stderr, STDERR_FILENO);
}

static pid_t fork_runner(const struct box *box, const int *group) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    begin_program(box);
    close(box->ready);
    struct runner runner = {box->channel, group[SLOT_MEMORY_LIMIT], group[SLOT_PROCESSES], -1};
    struct program program;
    const char *step = take_order(&runner, &program);
    if (step == NULL) {
        execve(program.arguments[0], program.arguments, program.variables);
        step = program.arguments[0];
    }
    tell_failure(box->channel, 0, step);
    _exit(1);
}

static int tell_armed(const struct box *box, const struct slot *slot, const struct ready *ready) {
    int folder = -1;
    if (slot->how.flags & SHARE_WORK_DIRECTORY) folder = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = send_with(box->ready, ready, sizeof *ready, &folder, folder >= 0);
    close_if(&folder);
    return result;
}

/* Wait for the runner and all that it leaves, kill the latter, and return the runner's wait status. */
static int reap_all(pid_t runner) {
    int status = 0, found = 0;
    pid_t ended;
    while ((ended = wait4(-1, &found, __WALL, NULL)) != runner)
        if (ended < 0 && errno == ECHILD) break;
    status = found;
    for (;;) {
        pid_t pid = wait4(-1, NULL, __WALL | WNOHANG, NULL);
        if (pid < 0) return status;
        if (pid == 0) {
            kill_tree(0);
            wait4(-1, NULL, __WALL, NULL);
        }
    }
}

void be_init(struct slot *slot, const struct arm *order, struct box *box) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct sigaction on_term = {.sa_handler = kill_tree, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &on_term, NULL);
    int *group = slot->fds;
    close(group[SLOT_CONTROL]);
    close_if(&group[SLOT_ZYGOTE]);
    close_if(&group[SLOT_OOM]);
    close_if(&group[SLOT_CPU_USER]);
    close_if(&group[SLOT_CPU_SYSTEM]);
    for (int i = 0; i < GROUPS; i++) close_if(&group[SLOT_GROUP + i]);
    const char *step = enter_box(order->disk_bytes, order->inodes, slot->how.flags & OWN_KERNEL);
    prctl(PR_SET_DUMPABLE, 1); /* else our own files in /proc are not ours; nobody is here yet, and it ends below */
    go_first();
    if (step == NULL && confine(false) < 0) step = "confine";
    if (step != NULL) {
        tell_failure(box->ready, box->number, step);
        _exit(1);
    }
    union {
        struct ready ready;
        char bytes[256];
    } told = {.ready = {.kind = 'r'}};
    ssize_t length = sizeof told.ready;
    bool parked = group[SLOT_PARKING] >= 0;
    pid_t interpreter = -1;
    if (parked && (step = park(slot, box, &interpreter)) != NULL) {
        tell_failure(box->ready, box->number, step);
        _exit(1);
    }
    if (box->sync >= 0) {
        if (!parked) send_with(box->ready, "m", 1, NULL, 0); /* mounted: a runner can be forked into this */
        length = read(box->sync, &told, sizeof told);
        if (length <= 0) {
            errno = ECHILD;
            tell_failure(box->ready, box->number, "the interpreter");
            _exit(1);
        }
        if (parked) told.ready.pid = interpreter;
    } else if ((told.ready.pid = fork_runner(box, group)) < 0) {
        tell_failure(box->ready, box->number, "fork");
        _exit(1);
    }
    if (told.ready.kind != 'r') {
        send_with(box->ready, &told, length, NULL, 0);
        _exit(1);
    }
    close_if(&group[SLOT_MEMORY_LIMIT]);
    close_if(&group[SLOT_PROCESSES]);
    close_if(&group[SLOT_PARKING]);
    uint64_t kills_before = field_in(group[SLOT_EVENTS], "oom_kill");
    write_number(group[SLOT_PEAK_MEMORY], 0); /* the making is not the program's usage; needs v1, or Linux 6.12 */
    /* A slot that was killed before we asked for its death signal does not hear this. */
    if (tell_armed(box, slot, &told.ready) < 0) _exit(1);
    close(box->ready);

    struct ended ended = {.kind = 'e', .wait_status = reap_all(told.ready.pid)};
    if (box->sync >= 0) { /* what the runner had used when it took its order */
        fcntl(box->sync, F_SETFL, O_NONBLOCK);
        if (read(box->sync, &told.ready, sizeof told.ready) != sizeof told.ready) {
            errno = ECHILD;
            tell_failure(box->channel, 0, "the interpreter that was to run it");
            _exit(0);
        }
    }
    usage_of(RUSAGE_CHILDREN, &ended.user_ns, &ended.system_ns);
    ended.user_ns -= told.ready.user_ns < ended.user_ns ? told.ready.user_ns : ended.user_ns;
    ended.system_ns -= told.ready.system_ns < ended.system_ns ? told.ready.system_ns : ended.system_ns;
    if (group[SLOT_PEAK_MEMORY] >= 0) {
        ended.peak_memory_bytes = number_in(group[SLOT_PEAK_MEMORY]);
    } else {
        struct rusage used;
        getrusage(RUSAGE_CHILDREN, &used);
        ended.peak_memory_bytes = used.ru_maxrss * 1024ull;
    }
    ended.oom_kills = field_in(group[SLOT_EVENTS], "oom_kill") - kills_before;
    int out = open_out();
    ended.left_files = out >= 0;
    if (send_with(box->channel, &ended, sizeof ended, NULL, 0) == 0 && out >= 0) hand_over_files(box->channel, out);
    _exit(0);
}
