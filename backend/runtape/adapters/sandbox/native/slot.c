/* A slot: makes boxes one after another, and hears of the death of each. */

#define _GNU_SOURCE
#include "slot.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

pid_t clone_into(uint64_t flags, int *pidfd) {
    struct clone_args how = {.flags = flags, .exit_signal = SIGCHLD};
    if (pidfd != NULL) {
        how.flags |= CLONE_PIDFD;
        how.pidfd = (uintptr_t)pidfd;
    }
    return syscall(SYS_clone3, &how, sizeof how);
}

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
    int ends[5][2] = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
    int *out = ends[0], *err = ends[1], *channel = ends[2], *ready = ends[3], *sync = ends[4];
    bool forked = group[SLOT_ZYGOTE] >= 0;
    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0 || (forked && pipe2(sync, O_CLOEXEC) < 0) ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) < 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ready) < 0) {
        for (int i = 0; i < 10; i++) close_if(&ends[i / 2][i % 2]);
        return "descriptors";
    }
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
        /* One that takes nothing hangs; then pid 1 reads an end of file. */
        send_at_once(group[SLOT_ZYGOTE], &request, sizeof request, fds, count);
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
    /* A connection that was closed keeps its port for a minute, also from the next program: not here.  Kernels that have
       one number for all networks go on without. */
    write_file("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
    return raise_loopback() < 0 ? "raising loopback" : NULL;
}

const char *be_slot(struct slot *slot, int mapped) {
    const char *step = enter_slot(slot, mapped);
    if (step == NULL) serve_slot(slot);
    return step;
}
