"""What a run leaves behind, looked for from outside: processes, mounts, control groups and files.

Theory of operation.  A program tells its pid namespace first of all.  A process of it is known by that namespace's
number; the number is given out again when the namespace is gone, so only processes that began before the run's end
count, by more than the tick in which the kernel tells such times.  Mounts are compared in every process of the service
that lived before and lives after, but for boxes, which make theirs meanwhile.  The control groups are found by looking
at a program that runs: where its groups lie, the others of this installation do.  A group that is new and empty is left
over.  Files are known by a mark in their name.

Boxes in stock come and go meanwhile, so that only what stays is counted: everything is looked at again, for a while.
"""

import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtape.ports.pod_runtime import PodKey
from runtape.prove.ran import Ran

_GRACE_S: Final = 3.0
"""How long it may take to bury a run after its end is told."""
_LOOK_AGAIN_S: Final = 0.01
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PUBLIC_FOLDERS: Final = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass(frozen=True, slots=True)
class Before:
    """How things were before a run."""

    groups: frozenset[Path]
    mounts: dict[tuple[int, int], frozenset[str]]
    """(pid, start) -> the mounts that the process saw."""
    data: frozenset[str]


class LocalTraces:
    """Looks for what runs of the service in this process leave behind; `data` is its data folder."""

    slack_s = 0.0

    def __init__(self, data: Path) -> None:
        """Remember what is there before the sandbox is opened."""
        self._data = data
        self.mark = f"runtape-prove-{os.getpid()}.mark"
        self._family = frozenset(family())
        self._descriptors = len(os.listdir("/proc/self/fd"))
        self._parents: frozenset[Path] = frozenset()
        self.group_version = ""
        """``v1`` or ``v2`` when runs have control groups, as far as was learned."""

    def learn_groups(self, pid: int) -> None:
        """Learn from a program that runs as `pid` where the control groups of this installation are made."""
        ours, theirs = _groups_of(os.getpid()), _groups_of(pid)
        self._parents = frozenset(path.parent for path in theirs - ours if path.parent not in _mount_points())
        if self._parents:
            is_first = any((parent / "memory.limit_in_bytes").exists() for parent in self._parents)
            self.group_version = "v1" if is_first else "v2"

    async def sees(self, key: PodKey, namespace: int) -> list[str]:
        """Return what is not seen of a program that runs; learns where its control groups are made."""
        found: list[str] = []
        if pids := self.processes(namespace) if namespace else []:
            self.learn_groups(pids[-1])
        else:
            found.append("a program that runs is not seen from outside by its pid namespace")
        if not self._sees_files():
            found.append("a file with the mark is not seen")
        return found

    def processes(self, namespace: int, begun_before_s: float = float("inf")) -> list[int]:
        """Return the processes in a pid namespace that began earlier than that on the boot clock."""
        found: list[int] = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    if os.stat(f"/proc/{name}/ns/pid").st_ino == namespace and _start_s(int(name)) < begun_before_s:
                        found.append(int(name))
                except OSError:  # it is gone, or not ours
                    continue
        return found

    def marked_files(self) -> list[str]:
        """Return the files outside of boxes that bear the mark."""
        folders = {*_PUBLIC_FOLDERS, tempfile.gettempdir(), str(self._data)}
        paths = (f"{folder}/{self.mark}" for folder in sorted(folders))
        return [path for path in paths if os.path.lexists(path)]

    def _sees_files(self) -> bool:
        """Whether a marked file is found, shown by making one."""
        made = Path(tempfile.gettempdir(), self.mark)
        made.touch()
        try:
            return str(made) in self.marked_files()
        finally:
            made.unlink()

    def before(self) -> Before:
        """Return how things are now."""
        return Before(self.groups(), mounts_of(family()), frozenset(os.listdir(self._data)))

    async def left(self, before: Before, rans: Iterable[Ran]) -> list[str]:
        """Return what is still there of programs that have ended."""
        ended = [(ran.namespace, ran.ended_s - 1 / _TICKS_PER_S) for ran in rans if ran.namespace]
        found = await that_stays(
            lambda: [f"process {pid} ({_name(pid)})" for run in ended for pid in self.processes(*run)]
        )
        found += await that_stays(lambda: [f"the control group {path}" for path in self._empty_groups(before.groups)])
        mounts = mounts_of(before.mounts.keys() & mounts_of(family()).keys())
        for process, now in mounts.items():
            found += [f"the mount {mount} in process {process[0]}" for mount in sorted(now - before.mounts[process])]
        found += [f"the file {path}" for path in self.marked_files()]
        found += [f"the file {self._data / name}" for name in sorted(set(os.listdir(self._data)) - before.data)]
        return found

    async def left_after_closing(self) -> list[str]:
        """Return what is still there after the sandbox was closed."""
        found = await that_stays(
            lambda: [f"process {pid} ({_name(pid)})" for pid, start in family() if (pid, start) not in self._family]
        )
        found += await that_stays(lambda: [f"the control group {path}" for path in self._parents if path.exists()])
        found += [f"the file {path}" for path in self.marked_files()]
        if (more := len(os.listdir("/proc/self/fd")) - self._descriptors) > 0:
            found.append(f"{more} open descriptors")
        return found

    async def manifest_of(self, key: PodKey) -> Mapping[str, Any]:
        """Return nothing: boxes are written down nowhere."""
        return {}

    async def addresses(self) -> Mapping[str, str]:
        """Return none: what can be reached from here is known to the lures."""
        return {}

    async def host(self, contained: Mapping[str, bool]) -> dict[str, str]:
        """Return what this machine is, and how it bounds memory."""
        return {
            "kernel": platform.release(),
            "machine": platform.machine(),
            "user": "root" if os.geteuid() == 0 else f"user {os.geteuid()}",
            "memory_limit": f"cgroup {self.group_version}" if self.group_version else "watchdog",
        }

    def groups(self) -> frozenset[Path]:
        """Return the control groups of this installation's boxes; none before `learn_groups`."""
        found: set[Path] = set()
        for parent in self._parents:
            try:
                found |= {path for path in parent.iterdir() if path.is_dir()}
            except OSError:  # the parent is gone, and all in it
                continue
        return frozenset(found)

    def _empty_groups(self, before: frozenset[Path]) -> list[Path]:
        def is_empty(group: Path) -> bool:
            try:
                return not (group / "cgroup.procs").read_text()
            except OSError:
                return False

        return sorted(group for group in self.groups() - before if is_empty(group))


def boot_clock_s() -> float:
    """Return the time by which the kernel tells when processes began."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def that_stays(look: Callable[[], list[str]]) -> list[str]:
    """Return what `look` finds and still finds after the grace: what is on its way when a run has ended goes by."""
    deadline_s = time.monotonic() + _GRACE_S
    while found := look():
        if time.monotonic() > deadline_s:
            return found
        await asyncio.sleep(_LOOK_AGAIN_S)  # a box is buried by other processes: nothing tells us when
    return []


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat behind the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _start_s(pid: int) -> float:
    return int(_stat_fields(pid)[19]) / _TICKS_PER_S


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"


def family() -> list[tuple[int, int]]:
    """Return (pid, start) of this process and of all below it."""
    parent_of: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = _stat_fields(int(name))
            except OSError:
                continue
            if fields[0] != "Z":
                parent_of[int(name)] = (int(fields[1]), int(fields[19]))
    found = {os.getpid()}
    while more := {pid for pid, (parent, _) in parent_of.items() if parent in found} - found:
        found |= more
    return [(pid, parent_of[pid][1]) for pid in found if pid in parent_of]


def mounts_of(processes: Iterable[tuple[int, int]]) -> dict[tuple[int, int], frozenset[str]]:
    """Return the mounts that processes of our own pid namespace see."""
    found: dict[tuple[int, int], frozenset[str]] = {}
    for process in processes:
        try:
            if _depth(process[0]) == _depth(os.getpid()):
                lines = Path(f"/proc/{process[0]}/mountinfo").read_text().splitlines()
                found[process] = frozenset(" ".join(line.split()[3:5]) for line in lines)
        except OSError:  # it has ended
            continue
    return found


def _depth(pid: int) -> int:
    """Return in how many pid namespaces a process has a number."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(len(line.split()) - 1 for line in lines if line.startswith("NSpid:"))


def _mount_points() -> frozenset[Path]:
    return frozenset(Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _groups_of(pid: int) -> frozenset[Path]:
    """Return the folders of the control groups that a process is in, of every hierarchy that is mounted here."""
    own = [line.rstrip("\n").split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    found: set[Path] = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        if not kind.startswith("cgroup"):
            continue
        for _, controllers, path in own:
            same = set(controllers.split(",")) & set(options.split(",")) if kind == "cgroup" else not controllers
            if same:
                found.add(Path(fields[4], path.removeprefix(fields[3]).lstrip("/")))
    return frozenset(found)
