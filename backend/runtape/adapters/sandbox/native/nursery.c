/* Boxes, one after another, in namespaces that outlive them.

   Theory of operation.  The keeper (Python) execs this program once, as the *nursery*: pid 1 of a pid namespace and
   root of a user namespace that map to nothing of value outside, with the finished read-only root as its root.  All
   that runs programs descends from it, so its death is the death of all.  It does two things on request: it execs a
   *zygote* (an interpreter that is to be forked into boxes, see zygote.c), and it forks a *slot*.

   A slot holds what is too dear to be made for each run: a user namespace with one user, an empty network with
   loopback, a host name, and membership of a cgroup.  It holds one box at a time.  When told to arm it, it makes pid 1
   of the box by one clone3 with fresh pid, mount and ipc namespaces.  Pid 1 lays the work directory, /tmp and /proc
   over the root, confines itself and has the *runner* made, the process that is to become the program: forked from
   the zygote, or from pid 1 when the program is to be exec'd.  The runner is confined before it is told what to run.

   Then the slot hands the box over to the service, by way of the keeper: the runner takes its order directly from the
   service, and pid 1 tells the service directly how the program ended.  The slot hears only that pid 1 has died; the
   kernel lets that show when the pid namespace is empty.  What outlives a box is the state of its namespaces that no
   program can change without capabilities, and its cgroup, whose counters are taken as differences.

   Who dies first.  Keeper: the nursery by its death signal or the end of file, and with it everything.  Slot: pid 1 by
   its death signal.  Pid 1: its tree, by the kernel. */

#define _GNU_SOURCE
#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL 3 /* the nursery's socket to the keeper, and a zygote's to those who have it fork */
#define LOCK 4    /* locked file: free again when nothing that runs programs lives */

static void tell_failure(int socket, uint32_t box, const char *step) {
    char told[200];
    struct failed head = {'f', box};
    memcpy(told, &head, sizeof head);
    int length = snprintf(told + sizeof head, sizeof told - sizeof head, "%s: %s", step, strerror(errno));
    send_with(socket, told, sizeof head + length, NULL, 0);
}

static pid_t clone_into(uint64_t flags, int *pidfd) {
    struct clone_args how = {.flags = flags, .exit_signal = SIGCHLD};
    if (pidfd != NULL) {
        how.flags |= CLONE_PIDFD;
        how.pidfd = (uintptr_t)pidfd;
    }
    return syscall(SYS_clone3, &how, sizeof how);
}

static void close_if(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* Files of /proc and of cgroups: one read or write from the start. */

static uint64_t number_in(int fd) {
    char text[32] = "";
    return fd >= 0 && pread(fd, text, sizeof text - 1, 0) > 0 ? strtoull(text, NULL, 10) : 0;
}

static uint64_t field_in(int fd, const char *name) {
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

static int write_number(int fd, uint64_t number) {
    char text[24];
    int length = snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    return fd < 0 || pwrite(fd, text, length, 0) == length ? 0 : -1;
}

static int write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t written = write(fd, text, strlen(text));
    close(fd);
    return written < 0 ? -1 : 0;
}

/* The keeper ignores what a service manager sends to a whole group: the service decides when its runs end.  Slots and
   zygotes do the same; programs begin with every signal at its default. */
static void default_signals(void) {
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL); /* those that cannot be set, can stay */
}

/* ---- The runner of a program that is exec'd ---- */

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
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
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

static const char *carry_out(const char *bytes, size_t size, int stdin_fd, int memory_limit, int processes) {
    struct order order;
    struct reader reader = {bytes + sizeof order, bytes + size};
    if (size < sizeof order) return errno = EBADMSG, "the order";
    memcpy(&order, bytes, sizeof order);
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
    char **arguments = calloc(order.arguments + order.variables + 2, sizeof *arguments);
    if (arguments == NULL) return "memory";
    char **variables = arguments + order.arguments + 1;
    for (uint32_t i = 0; i < order.arguments + order.variables; i++) {
        if ((text = take(&reader, &length)) == NULL) return errno = EBADMSG, "the order";
        (i < order.arguments ? arguments + i : variables + i - order.arguments)[0] = (char *)text;
    }
    if ((text = take(&reader, &length)) == NULL) return errno = EBADMSG, "the order";
    if (stdin_fd >= 0 ? put_at_stdin(stdin_fd) < 0 : length > 0 && pipe_to_stdin(text, length) < 0) return "stdin";
    if (order.memory_bytes && write_number(memory_limit, order.memory_bytes) < 0) return "the memory limit";
    if (order.processes && write_number(processes, order.processes) < 0) return "the limit of processes";
    for (uint32_t i = 0; i < order.limits; i++) {
        struct limit limit;
        memcpy(&limit, limits + i * sizeof limit, sizeof limit);
        struct rlimit value = {limit.soft, limit.hard};
        if (setrlimit(limit.resource, &value) < 0) return "setrlimit";
    }
    execve(arguments[0], arguments, variables);
    return arguments[0];
}

/* Everything that an order names lies in one datagram or memfd; what is exec'd keeps none of it. */
static void run_order(int channel, int memory_limit, int processes) {
    static char datagram[DATAGRAM_BYTES];
    int fds[MESSAGE_FDS], count;
    ssize_t length = receive(channel, datagram, sizeof datagram, fds, &count);
    if (length <= 0) _exit(0);
    const char *order = datagram + 1;
    size_t size = length - 1;
    int next = 0;
    if (datagram[0] & ORDER_IN_FD) {
        struct stat file;
        if (fstat(fds[0], &file) < 0) _exit(1);
        size = file.st_size;
        order = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fds[0], 0);
        if (order == MAP_FAILED) _exit(1);
        close(fds[next++]);
    }
    const char *step = carry_out(order, size, datagram[0] & STDIN_IN_FD ? fds[next] : -1, memory_limit, processes);
    tell_failure(channel, 0, step);
    _exit(1);
}

/* ---- Pid 1 of a box ---- */

struct box {
    uint32_t number;
    int ready; /* to its slot */
    int sync;  /* from its runner; -1 when pid 1 forks that itself */
    int channel, stdout, stderr;
};

struct slot {
    struct make_slot how;
    int fds[SLOT_FDS];
    /* The box that it holds now. */
    pid_t init;
    int pidfd;
    int ready;
    int handed[3];
    uint32_t box;
    bool armed, out_of_memory;
};

static const char *enter_box(uint64_t disk_bytes, uint64_t inodes) {
    char options[96];
    /* Two inodes are ours: the folder itself and .tmp. */
    snprintf(options, sizeof options, "size=%llu,nr_inodes=%llu,mode=700", (unsigned long long)disk_bytes,
             (unsigned long long)inodes + 2);
    if (mount("box", WORK_DIRECTORY, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0) return "mount " WORK_DIRECTORY;
    if (mkdir(WORK_DIRECTORY "/.tmp", 0700) < 0) return "mkdir .tmp";
    if (mount(WORK_DIRECTORY "/.tmp", "/tmp", NULL, MS_BIND, NULL) < 0) return "mount /tmp";
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

static pid_t fork_runner(const struct box *box, const int *group) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    default_signals();
    setsid();
    dup2(box->stdout, STDOUT_FILENO);
    dup2(box->stderr, STDERR_FILENO);
    close(box->ready);
    run_order(box->channel, group[SLOT_MEMORY_LIMIT], group[SLOT_PROCESSES]);
    _exit(1);
}

static void tell_armed(const struct box *box, const struct slot *slot, const struct ready *ready) {
    int folder = -1;
    if (slot->how.share_work_directory) folder = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    send_with(box->ready, ready, sizeof *ready, &folder, folder >= 0);
    close_if(&folder);
}

/* Wait for the runner and all that it leaves, kill the latter, and return the runner's wait status. */
static int reap_all(pid_t runner) {
    int status = 0, found;
    while (wait4(-1, &found, __WALL, NULL) != runner) {}
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

static void be_init(struct slot *slot, const struct arm *order, struct box *box) {
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
    const char *step = enter_box(order->disk_bytes, order->inodes);
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
    if (box->sync >= 0) {
        send_with(box->ready, "m", 1, NULL, 0); /* mounted: a runner can be forked into this */
        length = read(box->sync, &told, sizeof told);
        if (length <= 0) {
            errno = ECHILD;
            tell_failure(box->ready, box->number, "the zygote");
            _exit(1);
        }
        close(box->sync);
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
    uint64_t kills_before = field_in(group[SLOT_EVENTS], "oom_kill");
    write_number(group[SLOT_PEAK_MEMORY], 0); /* the making is not the program's usage; needs v1, or Linux 6.12 */
    tell_armed(box, slot, &told.ready);
    close(box->ready);

    struct ended ended = {.kind = 'e', .wait_status = reap_all(told.ready.pid)};
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
    send_with(box->channel, &ended, sizeof ended, NULL, 0);
    _exit(0);
}

/* ---- A slot ---- */

static void cpu_of(const struct slot *slot, uint64_t *user_ns, uint64_t *system_ns) {
    if (slot->fds[SLOT_CPU_SYSTEM] >= 0) { /* version 1 has a file for each, version 2 one with both */
        *user_ns = number_in(slot->fds[SLOT_CPU_USER]);
        *system_ns = number_in(slot->fds[SLOT_CPU_SYSTEM]);
    } else {
        *user_ns = field_in(slot->fds[SLOT_CPU_USER], "user_usec") * 1000;
        *system_ns = field_in(slot->fds[SLOT_CPU_USER], "system_usec") * 1000;
    }
}

static const char *begin_box(struct slot *slot, const struct arm *order) {
    const int *group = slot->fds;
    if (write_number(group[SLOT_MEMORY_LIMIT], slot->how.memory_bytes) < 0) return "the memory limit";
    if (write_number(group[SLOT_PROCESSES], slot->how.processes) < 0) return "the limit of processes";
    int out[2], err[2], channel[2], ready[2], sync[2] = {-1, -1};
    bool forked = group[SLOT_ZYGOTE] >= 0;
    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0 || (forked && pipe2(sync, O_CLOEXEC) < 0)) return "pipe";
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) < 0) return "socketpair";
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ready) < 0) return "socketpair";
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    fcntl(err[0], F_SETFL, O_NONBLOCK);

    slot->box = order->box;
    slot->armed = slot->out_of_memory = false;
    slot->init = clone_into(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC, &slot->pidfd);
    if (slot->init == 0) {
        close(out[0]), close(err[0]), close(channel[0]), close(ready[0]);
        close_if(&sync[1]);
        struct box box = {order->box, ready[1], sync[0], channel[1], out[1], err[1]};
        be_init(slot, order, &box);
    }
    const char *failed = slot->init < 0 ? "clone3" : NULL;
    close(ready[1]);
    close_if(&sync[0]);
    char mounted;
    if (failed == NULL && forked && recv(ready[0], &mounted, 1, MSG_PEEK) == 1 && mounted == 'm') {
        recv(ready[0], &mounted, 1, 0);
        struct fork_runner request = {'F', 0, group[SLOT_MEMORY_LIMIT] >= 0};
        int fds[MESSAGE_FDS] = {slot->pidfd, channel[1], out[1], err[1], sync[1]}, count = RUNNER_GROUP;
        for (int i = 0; i < GROUPS; i++)
            if (group[SLOT_GROUP + i] >= 0) fds[count++] = group[SLOT_GROUP + i], request.groups++;
        if (request.limits) fds[count++] = group[SLOT_MEMORY_LIMIT], fds[count++] = group[SLOT_PROCESSES];
        send_with(group[SLOT_ZYGOTE], &request, sizeof request, fds, count); /* failing, pid 1 reads an end of file */
    }
    close(out[1]), close(err[1]), close(channel[1]);
    close_if(&sync[1]);
    slot->ready = ready[0];
    slot->handed[0] = channel[0], slot->handed[1] = out[0], slot->handed[2] = err[0];
    return failed;
}

static void close_handed(struct slot *slot) {
    for (int i = 0; i < 3; i++) close_if(&slot->handed[i]);
    close_if(&slot->ready);
}

static void hear_init(struct slot *slot) {
    char told[256];
    int fds[MESSAGE_FDS], count;
    ssize_t length = receive(slot->ready, told, sizeof told, fds, &count);
    struct ready ready;
    if (length == sizeof ready && told[0] == 'r') {
        memcpy(&ready, told, sizeof ready);
        struct armed armed = {'a', slot->box, ready.user_ns, ready.system_ns};
        if (slot->fds[SLOT_CPU_USER] >= 0) cpu_of(slot, &armed.user_ns, &armed.system_ns);
        int handed[] = {slot->handed[0], slot->handed[1], slot->handed[2], slot->pidfd, count > 0 ? fds[0] : -1};
        slot->armed = send_with(slot->fds[SLOT_CONTROL], &armed, sizeof armed, handed, count > 0 ? 5 : 4) == 0;
        if (!slot->armed) kill(slot->init, SIGKILL);
    } else if (length > (ssize_t)sizeof(struct failed)) {
        memcpy(told + offsetof(struct failed, box), &slot->box, sizeof slot->box);
        send_with(slot->fds[SLOT_CONTROL], told, length, NULL, 0);
    } else {
        errno = ECHILD;
        tell_failure(slot->fds[SLOT_CONTROL], slot->box, "pid 1");
    }
    if (count > 0) close(fds[0]);
    close_handed(slot);
}

static void bury(struct slot *slot) {
    struct dead dead = {.kind = 'd', .box = slot->box, .out_of_memory = slot->out_of_memory};
    if (slot->ready >= 0) hear_init(slot);
    while (waitpid(slot->init, &dead.wait_status, __WALL) < 0 && errno == EINTR) {}
    close_if(&slot->pidfd);
    slot->init = 0;
    if (dead.wait_status != 0 && slot->armed) {
        cpu_of(slot, &dead.user_ns, &dead.system_ns);
        dead.peak_memory_bytes = number_in(slot->fds[SLOT_PEAK_MEMORY]);
    }
    send_with(slot->fds[SLOT_CONTROL], &dead, sizeof dead, NULL, 0);
}

/* The limit was hit.  Version 1 kills one process and lets the others go on; the run is over for us all the same. */
static void on_out_of_memory(struct slot *slot) {
    uint64_t count;
    (void)!read(slot->fds[SLOT_OOM], &count, sizeof count);
    if (slot->init > 0 && slot->armed) {
        slot->out_of_memory = true;
        kill(slot->init, SIGKILL);
    }
}

static void arm(struct slot *slot, const struct arm *order) {
    uint64_t count;
    /* Whatever the box before has caused was signalled before its last process was gone. */
    if (slot->fds[SLOT_OOM] >= 0) (void)!read(slot->fds[SLOT_OOM], &count, sizeof count);
    const char *step = begin_box(slot, order);
    if (step == NULL) return;
    tell_failure(slot->fds[SLOT_CONTROL], order->box, step);
    close_handed(slot);
    slot->init = 0;
    struct dead dead = {.kind = 'd', .box = order->box};
    send_with(slot->fds[SLOT_CONTROL], &dead, sizeof dead, NULL, 0);
}

static void serve_slot(struct slot *slot) {
    for (;;) {
        struct pollfd waits[] = {
            {slot->fds[SLOT_CONTROL], POLLIN, 0},
            {slot->init > 0 ? slot->pidfd : -1, POLLIN, 0},
            {slot->ready, POLLIN, 0},
            {slot->fds[SLOT_OOM], POLLIN, 0},
        };
        if (poll(waits, sizeof waits / sizeof *waits, -1) < 0) continue;
        if (waits[2].revents) hear_init(slot);
        if (waits[3].revents) on_out_of_memory(slot);
        if (waits[1].revents) bury(slot);
        if (waits[0].revents) {
            struct arm order;
            int fds[MESSAGE_FDS], count;
            ssize_t length = receive(slot->fds[SLOT_CONTROL], &order, sizeof order, fds, &count);
            if (length != sizeof order) break; /* the keeper has no more use for this slot, or is gone */
            arm(slot, &order);
        }
    }
    if (slot->init > 0) {
        kill(slot->init, SIGKILL);
        while (waitpid(slot->init, NULL, __WALL) < 0 && errno == EINTR) {}
    }
    _exit(0);
}

static int raise_loopback(void) {
    int probe = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (probe < 0) return -1;
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int result = ioctl(probe, SIOCSIFFLAGS, &request);
    close(probe);
    return result;
}

static const char *enter_slot(struct slot *slot, int mapped) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    char byte;
    if (read(mapped, &byte, 1) != 1) _exit(1); /* the nursery could not map our user */
    close(mapped);
    if (setresgid(BOX_ID, BOX_ID, BOX_ID) < 0 || setresuid(BOX_ID, BOX_ID, BOX_ID) < 0) return "setresuid";
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* the change of ids has cleared it */
    for (int i = 0; i < GROUPS; i++)
        if (slot->fds[SLOT_GROUP + i] >= 0 && write(slot->fds[SLOT_GROUP + i], "0", 1) < 0) return "joining the cgroup";
    if (unshare(CLONE_NEWCGROUP) < 0) return "unshare";
    if (sethostname("runtape", 7) < 0) return "sethostname";
    return raise_loopback() < 0 ? "raising loopback" : NULL;
}

static int map_user(pid_t pid, uint32_t uid) {
    char path[64], line[64];
    snprintf(line, sizeof line, "%d %u 1", BOX_ID, uid);
    snprintf(path, sizeof path, "/proc/%d/setgroups", pid);
    if (write_file(path, "deny") < 0) return -1;
    snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
    if (write_file(path, line) < 0) return -1;
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    return write_file(path, line);
}

static void make_slot(const struct make_slot *how, const int *fds, int count) {
    struct slot slot = {.how = *how, .init = 0, .pidfd = -1, .ready = -1, .handed = {-1, -1, -1}};
    for (int i = 0, next = 0; i < SLOT_FDS; i++) slot.fds[i] = how->holds & 1u << i && next < count ? fds[next++] : -1;
    int mapped[2];
    if (pipe2(mapped, O_CLOEXEC) < 0) {
        tell_failure(slot.fds[SLOT_CONTROL], 0, "pipe");
        return;
    }
    pid_t pid = clone_into(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWUTS, NULL);
    if (pid == 0) {
        signal(SIGCHLD, SIG_DFL);
        close(CONTROL);
        close(mapped[1]);
        const char *step = enter_slot(&slot, mapped[0]);
        if (step == NULL) serve_slot(&slot);
        tell_failure(slot.fds[SLOT_CONTROL], 0, step);
        _exit(1);
    }
    if (pid < 0)
        tell_failure(slot.fds[SLOT_CONTROL], 0, "clone3");
    else if (map_user(pid, how->uid) < 0)
        tell_failure(slot.fds[SLOT_CONTROL], 0, "mapping the user");
    else
        (void)!write(mapped[1], "m", 1);
    close(mapped[0]);
    close(mapped[1]);
}

/* ---- The nursery ---- */

static void exec_zygote(char *texts, const char *end, int channel) {
    char *list[256], **next = list, **variables = NULL;
    for (char *text = texts; text < end && next < list + 254; text += strlen(text) + 1)
        if (*text == 0 && variables == NULL) {
            *next++ = NULL;
            variables = next;
        } else {
            *next++ = text;
        }
    *next = NULL;
    signal(SIGCHLD, SIG_DFL);
    signal(SIGINT, SIG_DFL); /* an interpreter makes an exception of it unless it was ignored from the start */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (channel != CONTROL) dup2(channel, CONTROL); /* without close-on-exec */
    if (variables != NULL) execve(list[0], list, variables);
    tell_failure(CONTROL, 0, list[0]);
    _exit(1);
}

int main(void) {
    static char message[DATAGRAM_BYTES];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    signal(SIGCHLD, SIG_IGN); /* slots and zygotes are reaped by the kernel */
    fcntl(CONTROL, F_SETFD, FD_CLOEXEC);
    fcntl(LOCK, F_SETFD, FD_CLOEXEC);
    if (load_filter() < 0) {
        tell_failure(CONTROL, 0, FILTER_PATH);
        return 1;
    }
    send_with(CONTROL, "n", 1, NULL, 0);
    for (;;) {
        int fds[MESSAGE_FDS], count;
        ssize_t length = receive(CONTROL, message, sizeof message, fds, &count);
        if (length <= 0) return 0;
        if (message[0] == 'S' && length == sizeof(struct make_slot)) {
            struct make_slot how;
            memcpy(&how, message, sizeof how);
            make_slot(&how, fds, count);
        } else if (message[0] == 'Z' && count == 1) {
            if (fork() == 0) exec_zygote(message + sizeof(struct make_zygote), message + length, fds[0]);
        }
        for (int i = 0; i < count; i++) close(fds[i]);
    }
}
