"""CPU and memory of a process, and what this machine is, from /proc."""

import os
import platform
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU time of a process's threads, ns, its children's not counted: the loop's (first) thread, and the others."""

    loop_ns: int
    others_ns: int

    def __sub__(self, earlier: "CpuTime") -> "CpuTime":
        return CpuTime(self.loop_ns - earlier.loop_ns, self.others_ns - earlier.others_ns)

    @property
    def total_ns(self) -> int:
        """All threads together."""
        return self.loop_ns + self.others_ns


def cpu_time(pid: int) -> CpuTime:
    """Return the CPU time of the threads that live now."""
    loop_ns = others_ns = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        spent_ns = _thread_ns(f"/proc/{pid}/task/{thread}")
        if int(thread) == pid:
            loop_ns += spent_ns
        else:
            others_ns += spent_ns
    return CpuTime(loop_ns, others_ns)


def _thread_ns(folder: str) -> int:
    try:
        return int(Path(folder, "schedstat").read_text().split()[0])
    except FileNotFoundError:  # a kernel without CONFIG_SCHED_INFO: ticks have to do
        try:
            fields = Path(folder, "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return (int(fields[11]) + int(fields[12])) * _TICK_NS
    except ProcessLookupError:
        return 0


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10 if found else 0


def proportional_bytes(pid: int) -> int:
    """Return the memory of a process, shared pages by their share; 0 when it is gone."""
    try:
        found = re.search(r"Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) << 10 if found else 0


def descendants(pid: int) -> set[int]:
    """Return all processes below `pid` as they are now."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        try:
            tasks = list(Path(f"/proc/{waiting.pop()}/task").iterdir())
            below = {int(child) for task in tasks for child in (task / "children").read_text().split()}
        except (FileNotFoundError, ProcessLookupError):
            continue
        waiting += below - found
        found |= below
    return found


def load_average() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def machine(folder: Path) -> dict[str, object]:
    """Return what the figures were measured on; `folder` is where the servers keep their data."""
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor[1].strip() if processor else platform.machine(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "filesystem": _filesystem(folder),
    }


def _filesystem(folder: Path) -> str:
    """Return the type of the file system that `folder` is on: of the longest mount point above it."""
    path = str(folder.resolve())
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if len(point) >= len(best) and (path == point or path.startswith(point.rstrip("/") + "/")):
            best, kind = point, found
    return kind
