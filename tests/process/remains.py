"""What a server has of the machine, and what is left of it: processes, control groups, mounts and files."""

import hashlib
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.server import Server

DEATH_S = 10.0


def descendants(pid: int) -> set[int]:
    """Return the processes below `pid`, without it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def keeper_of(server: Server) -> int:
    """Return the process that holds the server's boxes: its only child."""
    (keeper,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    assert b"keeper/boot.py" in Path(f"/proc/{keeper}/cmdline").read_bytes()
    return int(keeper)


class Doomed:
    """Processes that have to die; they are held by descriptors, so that no other one is taken for them."""

    def __init__(self, pids: set[int]) -> None:
        self._fds: list[int] = []
        for pid in pids:
            try:
                self._fds.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue

    def __len__(self) -> int:
        return len(self._fds)

    def died(self) -> None:
        """Wait until all are dead."""
        deadline_s = time.monotonic() + DEATH_S
        for fd in self._fds:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            ready = poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
            os.close(fd)
            assert ready, f"a process of the sandbox lives {DEATH_S:g} s after its server"
        self._fds = []


def cgroups(data: Path) -> list[Path]:
    """Return the control groups of the boxes over this data folder."""
    instance = hashlib.sha256(os.fsencode(os.path.realpath(data))).hexdigest()[:12]
    # Of others', which come and go meanwhile, the walk does not mind.
    return [Path(folder) / name for folder, names, _ in os.walk("/sys/fs/cgroup") for name in names if instance in name]


class Remains:
    """What there is of an installation beside its data; made before its server starts."""

    KEPT = frozenset(
        ("runtape.db", "runtape.db-wal", "runtape.db-shm", "local.key", "lock", "packages", "sandbox.lock")
    )

    def __init__(self, data: Path, temporary: Path) -> None:
        self._data = data
        self._temporary = temporary
        self._mounts = _ours(Path("/proc/self/mountinfo").read_text())

    def left(self) -> list[str]:
        """Return what should not be there once no server and no program of it lives."""
        mounts = _ours(Path("/proc/self/mountinfo").read_text())
        return [
            *(f"the control group {path}" for path in cgroups(self._data)),
            *(f"the mount {line}" for line in mounts if line not in self._mounts),
            *(f"the file {path}" for path in self._temporary.iterdir()),
            *(f"the file {path}" for path in self._data.iterdir() if path.name not in self.KEPT),
        ]


@contextmanager
def nothing_left(data: Path, temporary: Path) -> Iterator[None]:
    """Check that what comes between leaves no mount, group or file behind, but for the data itself."""
    remains = Remains(data, temporary)
    yield
    assert remains.left() == []


def _ours(mounts: str) -> list[str]:
    return sorted(line for line in mounts.splitlines() if "runtape" in line)
