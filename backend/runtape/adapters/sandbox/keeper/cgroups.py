"""Control groups: what bounds and measures a whole process tree, in version 1 or 2, or not at all.

Theory of operation.  Per installation there is one parent group, ``runtape-<instance>``, below the group that the
service itself runs in (so that a limit on the service holds for its boxes too), and in it one short-lived group
per box.  With version 1 the same names exist once per controller.  The keeper makes a box's group, moves the
box's pid 1 into it before anything runs there, and removes it when the box is dead.  Only folder descriptors are
kept, since the keeper leaves the host's root.

The box's pid 1 gets open descriptors of its own group's files: with them it sets the limits that its order names,
and reads peak and kill count at the end.  That saves the service two hops per run; the program never has them
(close-on-exec, and pid 1 cannot be looked into).

Death.  A keeper that is killed leaves empty groups behind.  The paths of the parents stand in the lock file, so the
next keeper of the same installation finds them wherever it runs itself, kills what still lives there, and removes
them.  The instance in the name keeps it from touching anybody else's.

Version 2 forbids processes in a group that delegates controllers.  When the service sits alone in a delegated
group (a systemd unit or scope with Delegate=yes), it is moved to a leaf beside the parent.
"""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_TCP_BYTES: Final = 16 << 20
_LEAF: Final = "runtape-service"
_SWEEP_S: Final = 3.0


class Unusable(Exception):
    """Cgroups cannot bound memory here; the message says why."""


class GroupFiles(NamedTuple):
    """Open descriptors of one box's group, as its pid 1 holds them; -1 where the kernel has no such file."""

    memory_limit: int
    processes: int
    peak_memory: int
    events: int


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of the files that mean the same in both versions, and what else to write into a new group."""

    memory_limit: str
    memory: str
    peak_memory: str
    events: str
    preset: tuple[tuple[str, str], ...]


_NAMES: Final = {
    "v1": _Names(
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.oom_control",
        # What waits in TCP connections has an account of its own in version 1.
        (("memory.swappiness", "0"), ("memory.kmem.tcp.limit_in_bytes", str(_TCP_BYTES))),
    ),
    "v2": _Names(
        "memory.max",
        "memory.current",
        "memory.peak",
        "memory.events",
        (("memory.swap.max", "0"), ("memory.oom.group", "1")),
    ),
}
_CONTROLLERS: Final = ("memory", "pids", "cpuacct")


class Group:
    """The group of one box; usable from its creation until `remove` has answered true."""

    def __init__(self, name: str, names: _Names, parents: Mapping[str, int]) -> None:
        self._name = name
        self._names = names
        self._parents = parents
        self._files: list[int] = []
        self.oom_eventfd = -1

    def make(self, memory_bytes: int, processes: int) -> None:
        for parent in set(self._parents.values()):
            os.mkdir(self._name, dir_fd=parent)
        self._write("memory", self._names.memory_limit, str(memory_bytes))
        for name, value in self._names.preset:
            with contextlib.suppress(OSError):  # no swap accounting in this kernel
                self._write("memory", name, value)
        if "pids" in self._parents:
            self._write("pids", "pids.max", str(processes))

    def attach(self, pid: int) -> None:
        for controller in {parent: controller for controller, parent in self._parents.items()}.values():
            self._write(controller, "cgroup.procs", str(pid))

    def open_files(self) -> GroupFiles:
        """Open the files that the box's pid 1 inherits; closed again by `close_files`."""
        self._files = [
            self._open("memory", self._names.memory_limit, os.O_WRONLY),
            self._open("pids", "pids.max", os.O_WRONLY),
            self._open("memory", self._names.peak_memory, os.O_RDWR),
            self._open("memory", self._names.events, os.O_RDONLY),
        ]
        return GroupFiles(*self._files)

    def open_slot_files(self) -> dict[int, int]:
        """Open the files that a slot is given, by their place in `enum slot_fds` of native/confine.h.

        Closed again by `close_files`, but for the one that tells of exhausted memory.
        """
        tasks = {parent: controller for controller, parent in self._parents.items()}.values()
        opened = [self._open(controller, "cgroup.procs", os.O_WRONLY) for controller in tasks]
        opened += [-1] * (3 - len(opened))
        opened += self.open_files()
        if self._names is _NAMES["v1"]:
            opened += [self._open("cpuacct", f"cpuacct.usage_{kind}", os.O_RDONLY) for kind in ("user", "sys")]
        else:
            opened += [self._open("cpuacct", "cpu.stat", os.O_RDONLY), -1]
        self._files = [fd for fd in opened if fd >= 0]
        return {place: fd for place, fd in enumerate([*opened, self.oom_eventfd], start=2) if fd >= 0}

    def close_files(self) -> None:
        for fd in self._files:
            if fd >= 0:
                os.close(fd)
        self._files = []

    def listen_for_oom(self) -> None:
        """Have `oom_eventfd` become readable when the limit is hit.

        Version 2 kills the whole group by itself (memory.oom.group); version 1 picks one process and lets the
        survivors go on.
        """
        if self._names is not _NAMES["v1"]:
            return
        control = self._open("memory", "memory.oom_control", os.O_RDONLY)
        try:
            self.oom_eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._write("memory", "cgroup.event_control", f"{self.oom_eventfd} {control}")
        finally:
            os.close(control)

    def cpu_ns(self) -> tuple[int, int]:
        """Return the user and the system time of all that ran in the group."""
        if self._names is _NAMES["v1"]:
            if "cpuacct" not in self._parents:
                return 0, 0
            return int(self._read("cpuacct", "cpuacct.usage_user")), int(self._read("cpuacct", "cpuacct.usage_sys"))
        text = self._read("cpuacct", "cpu.stat")
        return parse_field(text, b"user_usec") * 1000, parse_field(text, b"system_usec") * 1000

    def memory_bytes(self) -> int:
        return int(self._read("memory", self._names.memory))

    def peak_memory_bytes(self) -> int:
        try:
            return int(self._read("memory", self._names.peak_memory))
        except FileNotFoundError:  # memory.peak is there since Linux 5.19
            return 0

    def oom_kills(self) -> int:
        return parse_field(self._read("memory", self._names.events), b"oom_kill")

    def remove(self) -> bool:
        """Remove the group; false when the kernel still counts a dead process in it, to be tried again."""
        self.close_files()
        if self.oom_eventfd >= 0:
            os.close(self.oom_eventfd)
            self.oom_eventfd = -1
        try:
            for parent in set(self._parents.values()):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(self._name, dir_fd=parent)
        except OSError:
            return False
        return True

    def _open(self, controller: str, file: str, flags: int) -> int:
        if controller not in self._parents:
            return -1
        path, parent = f"{self._name}/{file}", self._parents[controller]
        try:
            return os.open(path, flags | os.O_CLOEXEC, dir_fd=parent)
        except PermissionError:  # memory.peak is read-only before Linux 6.12
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            return -1

    def _write(self, controller: str, file: str, value: str) -> None:
        fd = os.open(f"{self._name}/{file}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._parents[controller])
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def _read(self, controller: str, file: str) -> bytes:
        fd = os.open(f"{self._name}/{file}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._parents[controller])
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)


def parse_field(text: bytes, name: bytes) -> int:
    """Return the value of line ``name value`` in a flat keyed file; 0 when there is no such line."""
    for line in text.splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    return 0


class Hierarchy:
    """The parent group of one installation, in which its boxes' groups are made."""

    def __init__(self, version: str, parents: Mapping[str, str]) -> None:
        self.version = version
        self._paths = sorted(set(parents.values()))
        fd_of = {path: os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in self._paths}
        self._parents = {controller: fd_of[path] for controller, path in parents.items()}
        # The folders above, to remove the parents themselves in the end, from outside the host's root.
        self._above = [(os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC), path) for path in self._paths]

    def group(self, name: str) -> Group:
        return Group(name, _NAMES[self.version], self._parents)

    def remove(self) -> None:
        for above, path in self._above:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.basename(path), dir_fd=above)


def open_hierarchy(instance: str, lock_fd: int) -> Hierarchy:
    """Sweep what an earlier keeper of `instance` left behind, then make its parent group anew.

    The parents' paths are written to the lock file before they are made.  Raises: Unusable.
    """
    name = f"runtape-{instance}"
    for path in _recorded(lock_fd):
        if os.path.basename(path) == name:
            _sweep(path)
    version, bases = _bases()
    parents = {controller: f"{base}/{name}" for controller, base in bases.items()}
    paths = sorted(set(parents.values()))
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, json.dumps(paths).encode(), 0)
    try:
        for path in paths:
            _sweep(path)
            os.mkdir(path)
        if version == "v2":
            _enable(paths[0])
    except OSError as error:
        raise Unusable(f"cannot make a cgroup: {error}") from error
    return Hierarchy(version, parents)


def _recorded(lock_fd: int) -> Sequence[str]:
    try:
        return [path for path in json.loads(os.pread(lock_fd, 1 << 16, 0)) if isinstance(path, str)]
    except ValueError:  # empty on the first start, half-written if the machine died then
        return []


def _sweep(parent: str) -> None:
    """Kill what lives below `parent` and remove it; leave what cannot be removed in time to the next start."""
    deadline_s = time.monotonic() + _SWEEP_S
    while os.path.isdir(parent):
        for group in [f"{parent}/{entry.name}" for entry in os.scandir(parent) if entry.is_dir()]:
            with contextlib.suppress(OSError), open(f"{group}/cgroup.procs") as file:
                for pid in file.read().split():
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.rmdir(group)
        with contextlib.suppress(OSError):
            os.rmdir(parent)
            return
        if time.monotonic() > deadline_s:
            return
        select.select([], [], [], 0.005)  # a killed process leaves its group a moment later; no event tells


def _bases() -> tuple[str, dict[str, str]]:
    """Return the version to use and the folder of our own group per controller.  Raises: Unusable."""
    with open("/proc/self/cgroup") as groups, open("/proc/self/mountinfo") as mounts:
        bases, unified = located(groups.read(), mounts.read())
    if "memory" in bases:
        if not os.access(bases["memory"], os.W_OK):
            raise Unusable(f"{bases['memory']} is not writable")
        return "v1", {controller: path for controller, path in bases.items() if os.access(path, os.W_OK)}
    if not unified:
        raise Unusable("no cgroup file system is mounted")
    base = os.path.dirname(unified) if os.path.basename(unified) == _LEAF else unified
    delegate(base)
    return "v2", dict.fromkeys(_CONTROLLERS, base)


def located(groups: str, mounts: str) -> tuple[dict[str, str], str]:
    """Return the folder of our own group per controller of version 1, and that of version 2; empty where it is not.

    `groups` and `mounts` are the content of /proc/self/cgroup and /proc/self/mountinfo.
    """
    own = {controllers: path for _, controllers, path in (line.split(":", 2) for line in groups.splitlines())}
    bases: dict[str, str] = {}
    unified = ""
    for fields in map(str.split, mounts.splitlines()):
        root, point, (kind, _, options) = fields[3], fields[4], fields[fields.index("-") + 1 :][:3]
        if kind == "cgroup2":
            unified = unified or _below(point, root, own.get("", "/"))
        elif kind == "cgroup":
            for controllers, path in own.items():
                for controller in set(controllers.split(",")) & set(options.split(",")) & set(_CONTROLLERS):
                    bases.setdefault(controller, _below(point, root, path))
    return bases, unified


def _below(point: str, root: str, path: str) -> str:
    """Return where group `path` lies in a mount at `point` that shows the hierarchy from `root` down."""
    inside = path[len(root) :] if root != "/" and path.startswith(root) else path
    return (point + "/" + inside.strip("/")).rstrip("/")


def delegate(base: str) -> None:
    """Make sure that groups below `base` can have memory and process limits.  Raises: Unusable."""
    with open(f"{base}/cgroup.controllers") as file:
        missing = {"memory", "pids"} - set(file.read().split())
    if missing:
        raise Unusable(f"{' and '.join(sorted(missing))} not delegated to {base}")
    if not os.access(base, os.W_OK):
        raise Unusable(f"{base} is not writable")
    with open(f"{base}/cgroup.subtree_control") as file:
        if {"memory", "pids"} <= set(file.read().split()):
            return
    try:
        if os.path.exists(f"{base}/cgroup.type"):  # not the root group, which may hold processes and delegate
            _vacate(base)
        _enable(base)
    except OSError as error:
        raise Unusable(f"cannot delegate controllers in {base}: {error}") from error


def _vacate(base: str) -> None:
    with open(f"{base}/cgroup.procs") as file:
        members = {int(pid) for pid in file.read().split()}
    if members - {os.getpid(), os.getppid()}:
        raise Unusable(f"{base} holds other processes too")
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{base}/{_LEAF}")
    for pid in members:
        with open(f"{base}/{_LEAF}/cgroup.procs", "w") as file:
            file.write(str(pid))


def _enable(group: str) -> None:
    with open(f"{group}/cgroup.subtree_control", "w") as file:
        file.write("+memory +pids")
