"""What the sandbox holds on this machine at rest: processes, descriptors, threads, mounts, control groups, files.

Theory of operation.  A census is taken when nothing runs, and compared with an earlier one.  Boxes in stock are the
same number each time, while their processes are others, so that processes are told apart by their *kind*, and it is
counted per kind.  Kinds are known by where a process stands: the keeper shares our pid namespace, the nursery and its
children (slots, zygotes) have the next, whatever lives in a box has one of its own below that.

The number of slots follows the greatest number of boxes at once; so what is there once for every slot may grow with
them, and nothing else may grow.  A process that has left the tree is known by its pid namespace, whose ancestors the
kernel tells: one of them is the nursery's (or, where the keeper makes boxes itself, it is that of a box).
"""

import fcntl
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from runtape.bench.procfs import descendants

_NS_GET_PARENT: Final = 0xB702
_PUBLIC_FOLDERS: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - looked into
_IPC: Final = ("shm", "sem", "msg")


class Kind(StrEnum):
    """The part that a process has."""

    SERVICE = "service"
    KEEPER = "keeper"
    NURSERY = "nursery"
    ZYGOTE = "zygote"
    SLOT = "slot"
    BOX = "box"


@dataclass(frozen=True, slots=True)
class Census:
    """What is there at one moment."""

    processes: Mapping[Kind, int]
    descriptors: Mapping[tuple[Kind, str], int]
    """By what they are open on: the most that one process of the kind has."""
    threads: Mapping[Kind, int]
    mounts: Mapping[Kind, frozenset[str]]
    groups: int
    """Control groups of boxes."""
    strays: frozenset[str]
    """Processes in namespaces of this sandbox that have no ancestor in it."""
    files: frozenset[str]
    """Files of the data folder, and what any box's user owns in the folders that are open to all."""
    ipc: frozenset[str]
    """SysV shared memory, semaphores and queues of users of boxes."""

    def grown(self, before: "Census") -> list[str]:
        """Return what is here and was not in `before`, in words."""
        slots = max(0, self.processes.get(Kind.SLOT, 0) - before.processes.get(Kind.SLOT, 0))
        found = [f"the process {stray} has left the sandbox's tree" for stray in sorted(self.strays)]
        found += [
            f"{number - before.processes.get(kind, 0)} more processes: {kind}"
            for kind, number in self.processes.items()
            if kind is not Kind.SLOT and number > before.processes.get(kind, 0)
        ]
        found += [
            f"{number - before.descriptors.get(place, 0)} more descriptors of a {place[0]}: {place[1]}"
            for place, number in self.descriptors.items()
            if number > before.descriptors.get(place, 0) + (slots if place[0] is Kind.KEEPER else 0)
        ]
        found += [
            f"{number - before.threads.get(kind, 0)} more threads of a {kind}"
            for kind, number in self.threads.items()
            if number > before.threads.get(kind, number)
        ]
        for kind, mounts in self.mounts.items():
            found += [f"the mount {mount} of a {kind}" for mount in sorted(mounts - before.mounts.get(kind, mounts))]
        if self.groups > before.groups + slots:
            found.append(f"{self.groups - before.groups} more control groups, and {slots} more slots")
        found += [f"the file {path}" for path in sorted(self.files - before.files)]
        return found + [f"the System V object {each}" for each in sorted(self.ipc - before.ipc)]


def take(data: Path, groups: int) -> Census:
    """Take the census of the sandbox of this process, with its `data` folder and the number of its control groups."""
    kinds = kinds_of_processes()
    descriptors: dict[tuple[Kind, str], int] = {}
    threads: dict[Kind, int] = {}
    mounts: dict[Kind, frozenset[str]] = {}
    users: set[int] = set()
    for pid, kind in kinds.items():
        try:
            for name, number in _descriptors(pid).items():
                place = (kind, name)
                descriptors[place] = max(number, descriptors.get(place, 0))
            threads[kind] = max(len(os.listdir(f"/proc/{pid}/task")), threads.get(kind, 0))
            if kind is not Kind.BOX:
                mounts[kind] = mounts.get(kind, frozenset()) | _mounts(pid)
            users.add(os.stat(f"/proc/{pid}").st_uid)
        except OSError:  # it has ended, or it does not let us look
            continue
    return Census(
        processes=Counter(kinds.values()),
        descriptors=descriptors,
        threads=threads,
        mounts=mounts,
        groups=groups,
        strays=frozenset(_strays(kinds)),
        files=frozenset(_files(data, users - {os.geteuid()})),
        ipc=frozenset(_ipc(users)),
    )


def kinds_of_processes() -> dict[int, Kind]:
    """Return the processes of this sandbox with their kinds, as they are now."""
    ours = os.getpid()
    found = {ours: Kind.SERVICE}
    depth = _depth_and_name(ours)[0]
    for pid in sorted(descendants(ours)):
        try:
            below, name = _depth_and_name(pid)
        except OSError:
            continue
        below -= depth
        if below == 0:
            found[pid] = Kind.KEEPER
        elif below == 1 and name == "nursery":
            # The first in its namespace is the nursery itself; it begets all others.
            found[pid] = Kind.SLOT if _number_inside(pid) != 1 else Kind.NURSERY
        elif below == 1 and _number_inside(pid) != 1:
            found[pid] = Kind.ZYGOTE
        else:
            found[pid] = Kind.BOX
    return found


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _depth_and_name(pid: int) -> tuple[int, str]:
    status = _status(pid)
    return len(status["NSpid"].split()), status["Name"].strip()


def _number_inside(pid: int) -> int:
    """Return its number in its own pid namespace."""
    try:
        return int(_status(pid)["NSpid"].split()[-1])
    except OSError:
        return 0


def _descriptors(pid: int) -> Counter[str]:
    """Count the open descriptors of a process by what they are open on, numbers left out."""
    found: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[re.sub(r":?\[?\d+\]?", "", os.readlink(f"/proc/{pid}/fd/{fd}"))] += 1
        except FileNotFoundError:  # the one that the folder is read by
            continue
    return found


def _mounts(pid: int) -> frozenset[str]:
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return frozenset(" on ".join(line.split()[3:5]) for line in lines)


def _strays(kinds: Mapping[int, Kind]) -> Iterator[str]:
    """Yield the processes outside the tree whose pid namespace lies in one of ours."""
    # That of the nursery, in which those of all boxes lie; of these the numbers are soon somebody else's.
    ours = {_namespace(pid) for pid, kind in kinds.items() if kind in (Kind.NURSERY, Kind.SLOT, Kind.ZYGOTE)} - {None}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in kinds and ours & set(_namespaces(int(name))):
            try:
                status = _status(int(name))
                parent = int(status["PPid"])
                while parent > 1 and parent not in kinds:
                    parent = int(_status(parent)["PPid"])
            except OSError:
                continue
            if parent not in kinds:  # else it is younger than our list
                yield f"{name} ({status['Name'].strip()})"


def _namespace(pid: int) -> int | None:
    return next(iter(_namespaces(pid)), None)


def _namespaces(pid: int) -> list[int]:
    """Return the pid namespace of a process and its ancestors, as far as we may look."""
    found: list[int] = []
    fds: list[int] = []
    try:
        fds.append(os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC))
        while True:
            found.append(os.fstat(fds[-1]).st_ino)
            fds.append(fcntl.ioctl(fds[-1], _NS_GET_PARENT))
    except OSError:  # it is gone, or not ours, or the last one that we may see
        return found
    finally:
        for fd in fds:
            os.close(fd)


def _files(data: Path, users: Iterable[int]) -> Iterator[str]:
    for folder, folders, names in os.walk(data):
        yield from (f"{folder}/{name}" for name in (*folders, *names))
    owners = set(users)
    for folder in {*_PUBLIC_FOLDERS, tempfile.gettempdir()}:
        try:
            with os.scandir(folder) as entries:
                yield from (entry.path for entry in entries if entry.stat(follow_symlinks=False).st_uid in owners)
        except OSError:  # not here, or gone meanwhile
            continue


def _ipc(users: Iterable[int]) -> Iterator[str]:
    """Yield the objects of System V in our own namespace that belong to `users`."""
    owners = {str(user) for user in users}
    for kind in _IPC:
        try:
            head, *rows = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()
        except OSError:
            continue
        for row in rows:
            fields = dict(zip(head.split(), row.split(), strict=False))
            if fields.get("uid") in owners:
                yield f"{kind} {fields.get(f'{kind}id')}"
