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
   An interpreter that cannot be forked is started in its box ahead of any order instead (parked.c).

   Then the slot hands the box over to the service, by way of the keeper: the runner takes its order directly from the
   service, and pid 1 tells the service directly how the program ended.  The slot hears only that pid 1 has died; the
   kernel lets that show when the pid namespace is empty.  What outlives a box is the state of its namespaces that no
   program can change without capabilities, and its cgroup, whose counters are taken as differences.

   Who dies first.  Keeper: the nursery by its death signal or the end of file, and with it everything.  Slot: pid 1 by
   its death signal.  Pid 1: its tree, by the kernel. */

#define _GNU_SOURCE
#include "slot.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define CONTROL 3 /* the nursery's socket to the keeper, and a zygote's to those who have it fork */
#define LOCK 4    /* locked file: free again when nothing that runs programs lives */

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
        const char *step = be_slot(&slot, mapped[0]);
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
        } else if (message[0] == 'Z' && count == 1 && message[length - 1] == 0) {
            if (fork() == 0) exec_zygote(message + sizeof(struct make_zygote), message + length, fds[0]);
        }
        for (int i = 0; i < count; i++) close(fds[i]);
    }
}
