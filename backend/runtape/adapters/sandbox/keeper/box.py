"""Making a box without a compiler: from `clone3` in the keeper to a confined pid 1 that waits for its order.

Theory of operation.  One `clone3` makes the process and all its namespaces at once, so it needs no privilege and no
process in between.  The child is pid 1 of the box.  In order:

1. It maps its one user: `BOX_UID` inside is an unprivileged uid outside, under root one of its own per living box
   (limits per user then cannot be exhausted by a neighbour), else the uid of the service.  A keeper that is root
   takes that uid on for the moment of the clone, so the new user namespace belongs to it and not to root.
2. It asks to be killed when the keeper dies.  The kernel forgets such a request at a change of ids, hence after 1.
3. Loopback, host name, file system (`rootfs.enter_box`): all that needs capabilities.
4. It closes every descriptor but its own, lowers the limits that no order may raise, drops all capabilities with the
   bounding set, forbids new ones, becomes unreadable to others (not dumpable), and installs the seccomp filter.
5. It tells the keeper that it is armed, and turns into `init.serve`.

A step that fails is told by the box and ends it: there is no box that is half confined.
"""

import contextlib
import fcntl
import os
import resource
import signal
import socket
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from . import init, linux, rootfs, wire
from .cgroups import Group, GroupFiles

_NAMESPACES: Final = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWCGROUP
)
_STACK_BYTES: Final = (8 << 20, 64 << 20)
FIXED_LIMITS: Final = (
    (resource.RLIMIT_CORE, (1, 1)),  # no file, and unlike 0 no program that the host has cores piped to
    (resource.RLIMIT_MEMLOCK, (0, 0)),
    (resource.RLIMIT_MSGQUEUE, (0, 0)),
    (resource.RLIMIT_RTPRIO, (0, 0)),
    (resource.RLIMIT_STACK, _STACK_BYTES),
)
DEATH_SIGNAL: Final = signal.SIGUSR1
"""Tells the keeper that the service has died; it can clean up, which a SIGKILL would keep it from."""
OOM_SCORE_ADJUSTMENT: Final = b"500"
"""When the whole machine runs out of memory, a box goes before any service."""
_NO_GROUP: Final = GroupFiles(-1, -1, -1, -1)


class _Kept(NamedTuple):
    """The descriptors that a box keeps."""

    stdout: int
    stderr: int
    channel: int
    lock: int
    memory_limit: int
    processes: int
    peak_memory: int
    events: int


@dataclass(slots=True, eq=False)
class Box:
    """A box as the keeper sees it, from the moment it is armed until it is dead."""

    number: int
    shape: wire.Shape
    pidfd: int
    """Of its pid 1."""
    group: Group | None
    work_directory_fd: int = -1
    memory_limit_bytes: int = 0
    """Bound to be watched; 0 when a cgroup does it or nothing runs yet."""
    peak_memory_bytes: int = 0
    cpu_ns: tuple[int, int] = (0, 0)
    """User and system time on its account when it was last looked at."""
    arming_cpu_ns: tuple[int, int] = (0, 0)
    """What stood on that account before its order, which is no usage of the program."""
    cpu_limit_ns: int = 0
    cpu_check_due_s: float = 0.0
    stop_asked: bool = False
    """Whether the service was told that the CPU limit is exceeded."""
    kill_reason: str = ""
    point_pause_s: float = 0.0
    """Time between two points of the timeline that was asked for; 0 where none was."""
    point_due_s: float = 0.0
    points: int = 0
    """Those that are kept, the service thinning them out as `timeline.passed` does."""

    def pid(self) -> int:
        """Return the pid of its pid 1 as the keeper sees it.  Raises: ProcessLookupError, when that is reaped."""
        with open(f"/proc/self/fdinfo/{self.pidfd}", "rb") as file:
            pid = next((int(line[4:]) for line in file if line.startswith(b"Pid:")), -1)
        if pid <= 0:
            raise ProcessLookupError(self.number)
        return pid

    def kill(self, reason: str) -> None:
        """Kill it with all that runs in it; the first reason is the one that counts."""
        self.kill_reason = self.kill_reason or reason
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Clone(NamedTuple):
    """A box in the making, cloned from the keeper."""

    pid: int
    pidfd: int
    channel: socket.socket
    """The service's end of the order channel; the keeper's until the box is armed."""
    output_fds: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What is the same for every box of a keeper."""

    seccomp_filter: bytes
    lock_fd: int
    """Lock of the data folder: pid 1 keeps it open, so the lock is held while a box may live."""
    first_host_uid: int | None
    """Under root, the uid of slot 0; None where the service's own uid is all there is."""
    share_work_directory: bool
    """Whether the keeper measures the work directory, for want of a cgroup that does."""


def make_box(shape: wire.Shape, uid_slot: int, group: Group | None, confinement: Confinement) -> Clone:
    """Clone a box and return at once; it tells on its channel when it is armed.  Raises: OSError."""
    files = _NO_GROUP if group is None else group.open_files()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stdout_read, stdout_write = os.pipe()
    stderr_read, stderr_write = os.pipe()
    os.set_blocking(stdout_read, False)
    os.set_blocking(stderr_read, False)
    kept = _Kept(stdout_write, stderr_write, theirs.fileno(), confinement.lock_fd, *files)
    try:
        pid, pidfd = _clone(kept, shape, uid_slot, confinement)
    except OSError:
        ours.close()
        os.close(stdout_read)
        os.close(stderr_read)
        raise
    finally:
        theirs.close()
        os.close(stdout_write)
        os.close(stderr_write)
        if group is not None:
            group.close_files()
    return Clone(pid, pidfd, ours, (stdout_read, stderr_read))


def _clone(kept: _Kept, shape: wire.Shape, uid_slot: int, confinement: Confinement) -> tuple[int, int]:
    host_uid = os.geteuid() if confinement.first_host_uid is None else confinement.first_host_uid + uid_slot
    host_gid = os.getegid() if confinement.first_host_uid is None else host_uid
    if confinement.first_host_uid is not None:
        for fd in (kept.stdout, kept.stderr):  # else the program could not open its own /dev/stdout
            os.fchown(fd, host_uid, host_gid)
        os.setegid(host_gid)
        os.seteuid(host_uid)
    pid = -1
    try:
        pid, pidfd = linux.clone(_NAMESPACES, signal.SIGCHLD)
        if pid == 0:
            _become_box(kept, shape, host_uid, host_gid, confinement)
    finally:
        if pid != 0 and confinement.first_host_uid is not None:
            os.seteuid(0)
            os.setegid(0)
            linux.prctl(linux.PR_SET_PDEATHSIG, DEATH_SIGNAL)  # the change of ids has cleared it
    return pid, pidfd


def _become_box(kept: _Kept, shape: wire.Shape, host_uid: int, host_gid: int, confinement: Confinement) -> NoReturn:
    channel_fd = kept.channel
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(DEATH_SIGNAL, signal.SIG_DFL)
        _become_user(host_uid, host_gid)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        linux.set_hostname(b"runtape")
        _raise_loopback()
        rootfs.enter_box(shape.disk_bytes, shape.inodes + rootfs.OWN_INODES)
        kept = _close_all_but(kept)
        channel_fd = kept.channel
        for kind, limits in FIXED_LIMITS:
            resource.setrlimit(kind, within(resource.getrlimit(kind)[1], limits))
        linux.drop_capabilities()
        linux.forbid_new_privileges()
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        linux.install_filter(confinement.seccomp_filter)
        channel = socket.socket(fileno=channel_fd)
        shared = [os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)] if confinement.share_work_directory else []
        used = resource.getrusage(resource.RUSAGE_SELF)
        armed = wire.pack("armed", int(used.ru_utime * 1e9), int(used.ru_stime * 1e9))
        socket.send_fds(channel, [armed], shared)
        for fd in shared:
            os.close(fd)
        init.serve(channel, GroupFiles(*kept[4:]))
    except BaseException as error:
        os.write(channel_fd, wire.pack("failed", f"{type(error).__name__}: {error}"))
    finally:
        os._exit(1)  # whatever happens, a box does not return into the keeper's code


def within(hard: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Return `limits` as far as `hard` allows."""
    return limits if hard == resource.RLIM_INFINITY else (min(limits[0], hard), min(limits[1], hard))


def _become_user(host_uid: int, host_gid: int) -> None:
    """Map `BOX_UID` to the user that made this namespace, and be it in every way."""
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root, the keeper having changed its ids
    with contextlib.suppress(OSError):  # a preference; /proc may be masked
        _write("/proc/self/oom_score_adj", OOM_SCORE_ADJUSTMENT)
    _write("/proc/self/setgroups", b"deny")
    _write("/proc/self/uid_map", b"%d %d 1" % (rootfs.BOX_UID, host_uid))
    _write("/proc/self/gid_map", b"%d %d 1" % (rootfs.BOX_UID, host_gid))
    os.setresgid(rootfs.BOX_UID, rootfs.BOX_UID, rootfs.BOX_UID)
    os.setresuid(rootfs.BOX_UID, rootfs.BOX_UID, rootfs.BOX_UID)


def _raise_loopback() -> None:
    siocsifflags, up_and_running = 0x8914, 0x1 | 0x40
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, siocsifflags, struct.pack("16sH14x", b"lo", up_and_running))


def _close_all_but(kept: _Kept) -> _Kept:
    """Number the kept descriptors from 1 up without a gap, put /dev/null at 0, close all else, return the new numbers.

    Only 0, 1 and 2 pass through an exec.
    """
    spare = {name: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for name, fd in kept._asdict().items() if fd >= 0}
    numbers = {name: number for number, name in enumerate(spare, start=1)}
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for name, number in numbers.items():
        os.dup2(spare[name], number, inheritable=number <= 2)
    linux.close_from(len(numbers) + 1)
    return _Kept(*(numbers.get(name, -1) for name in kept._fields))


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
