/* What the programs and libraries of the native sandbox share: the messages between them, and the confinement.

   Every message is one datagram of a SOCK_SEQPACKET pair, in the machine's byte order, without padding; its Python
   side is keeper/wire.py.  Descriptors travel beside it. */

#ifndef RUNTAPE_CONFINE_H
#define RUNTAPE_CONFINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BOX_ID 1000 /* uid and gid of a program, as it sees itself */
#define WORK_DIRECTORY "/box"
#define FILTER_PATH "/runtape/filter.bpf"
#define MESSAGE_FDS 16
#define DATAGRAM_BYTES 65536
#define GROUPS 3 /* cgroup hierarchies that a process may have to join: v1 has memory, pids and cpuacct apart */

/* Keeper to nursery. */
struct make_slot { /* descriptors: see `slot_fds` */
    uint32_t kind; /* 'S' */
    uint32_t uid;  /* of the nursery's namespace, to be BOX_ID in the slot's */
    uint64_t memory_bytes;
    uint64_t processes; /* what the group is set to before each box */
    uint32_t holds;     /* bit N: descriptor N of `slot_fds` is among those sent */
    uint32_t flags;
};
#define SHARE_WORK_DIRECTORY 1 /* hand a descriptor of it to the keeper */
#define OWN_KERNEL 2           /* programs run in a monitor that needs a whole /proc, and room that they cannot see */
struct make_zygote { /* followed by arguments, an empty string, environment, each with its NUL; descriptor: channel */
    uint32_t kind;   /* 'Z' */
};

enum slot_fds {
    SLOT_CONTROL,
    SLOT_ZYGOTE,
    SLOT_GROUP,
    SLOT_MEMORY_LIMIT = SLOT_GROUP + GROUPS,
    SLOT_PROCESSES,
    SLOT_PEAK_MEMORY,
    SLOT_EVENTS,
    SLOT_CPU_USER,
    SLOT_CPU_SYSTEM,
    SLOT_OOM,
    SLOT_PARKING, /* the order of the interpreter that is parked in its boxes */
    SLOT_FDS
};

/* Keeper to slot. */
struct arm {
    uint32_t kind; /* 'A' */
    uint32_t box;
    uint64_t disk_bytes;
    uint64_t inodes;
};

/* Slot to keeper. */
struct armed { /* descriptors: order channel, stdout, stderr, pidfd of pid 1, and the work directory when shared */
    uint32_t kind; /* 'a' */
    uint32_t box;
    uint64_t user_ns;
    uint64_t system_ns; /* on the account that the program is measured by, before it begins: its group's, or its own */
};
struct dead {
    uint32_t kind; /* 'd' */
    uint32_t box;
    int32_t wait_status; /* of pid 1: 0 when it told the end itself */
    uint32_t out_of_memory;
    uint64_t user_ns;
    uint64_t system_ns; /* on its group's account, at the end */
    uint64_t peak_memory_bytes;
};
struct failed { /* followed by the reason in words, without a NUL */
    uint32_t kind; /* 'f'; from a slot, a box to its slot, and a runner to the service */
    uint32_t box;
};

/* Slot to zygote; descriptors in this order, the last two only where there is a group. */
struct fork_runner {
    uint32_t kind; /* 'F' */
    uint32_t groups;
    uint32_t limits;
};
enum runner_fds { RUNNER_PIDFD, RUNNER_CHANNEL, RUNNER_STDOUT, RUNNER_STDERR, RUNNER_SYNC, RUNNER_GROUP };

/* Runner to pid 1, when it is armed, and pid 1 to slot; and again when it has its order, from which on usage counts. */
struct ready {
    uint32_t kind; /* 'r' */
    int32_t pid;   /* as pid 1 sees it */
    uint64_t user_ns;
    uint64_t system_ns;
};

/* Pid 1 to service. */
struct ended {
    uint32_t kind; /* 'e' */
    int32_t wait_status;
    uint64_t user_ns;
    uint64_t system_ns;
    uint64_t peak_memory_bytes;
    uint64_t oom_kills;
    uint64_t left_files; /* whether the program has left files, which the service may ask for */
};

/* Service to pid 1: what it takes of the files that the program has left. */
struct collect {
    uint32_t kind; /* 'c' */
    uint32_t files;
    uint64_t bytes;
};

/* Pid 1 to service, for each file in the order of their paths; then what was left out, which is the last message. */
#define ARTIFACT 'A'
#define PIECE 'p'
#define LEFT_OUT 'l'
#define ARTIFACT_PATH_BYTES 1024
#define ARTIFACT_DEPTH 32
struct artifact { /* followed by its path, without a NUL */
    uint32_t kind;
    uint32_t path_bytes;
    uint64_t size;
};
struct piece { /* followed by bytes of the last artifact */
    uint32_t kind;
};
struct left_out { /* files, and folders as one each, by the reason */
    uint32_t kind;
    uint32_t too_large;
    uint32_t too_many;
    uint32_t not_regular;
    uint32_t bad_name;
    uint32_t too_deep;
    uint32_t unreadable;
};

/* Service to runner: one flag byte, then the order, in the datagram or in a memfd; descriptors: [order,] [stdin]. */
#define ORDER_IN_FD 1
#define STDIN_IN_FD 2
struct order { /* followed by the limits, then by texts: path and content of each file, arguments, environment, stdin */
    uint64_t memory_bytes;
    uint64_t processes;
    uint32_t files;
    uint32_t arguments;
    uint32_t variables;
    uint32_t limits;
};
struct limit {
    uint64_t resource;
    uint64_t soft;
    uint64_t hard;
};
/* A text: its length as uint32_t, its bytes, a NUL that does not count. */

/* Read the seccomp filter, to be installed later; -1 and errno. */
int load_filter(void);

/* Give up every privilege for good and install the filter.  `dumpable`: whether others of the same user may look
   into this process.  -1 and errno; then the process must end. */
int confine(bool dumpable);

/* Install the filter alone, for who has no privilege to give up. */
int install_filter(void);

/* One datagram with descriptors; all of them are close-on-exec.  `receive` returns its length, 0 at the end of file,
   -1 and errno; it fills `fds` and sets `*count`. */
ssize_t receive(int socket, void *buffer, size_t size, int *fds, int *count);
int send_with(int socket, const void *buffer, size_t size, const int *fds, int count);
int send_at_once(int socket, const void *buffer, size_t size, const int *fds, int count); /* or not at all */

/* A preference: when memory runs out this goes before any service. */
void go_first(void);

/* A file of /proc. */
int write_file(const char *path, const char *text);

/* With the words of errno. */
void tell_failure(int socket, uint32_t box, const char *step);
void tell_failure_by_pipe(int pipe, const char *step);

void close_if(int *fd);

/* Files of cgroups and of /proc: one read or write from the start.  What cannot be read counts as 0, and a write to
   what is not there (-1) succeeds. */
uint64_t number_in(int fd);
uint64_t field_in(int fd, const char *name);
int write_number(int fd, uint64_t number);

/* Tell pid 1 at the other end of `sync`, if there is one, what this runner has used so far. */
int tell_ready(int sync);

void usage_of(int who, uint64_t *user_ns, uint64_t *system_ns);

#endif
