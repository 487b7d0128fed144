"""What a box's process tree uses, read from /proc: the measure where no cgroup can be had.

The tree is pid 1 of the box and all below it; an orphan inside a pid namespace falls to that pid 1, so nothing
leaves the tree.  Memory is the sum of resident sizes, which counts a page as often as it is mapped; only when that
sum exceeds the limit are the proportional sizes read, which cost a walk over the page tables each.  Files in the
work directory are memory too and are added.

A sample can miss what lives shorter than the pause between two; RLIMIT_AS is the backstop then.
"""

import os
from typing import Final

INTERVAL_S: Final = 0.025
"""Pause between two samples of a box: at the 1 GB/s at which a page-faulting program grows, 25 MB of overshoot."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return `pid` and all its descendants; those that end meanwhile may be missing.

    Raises: OSError, when `pid` itself cannot be seen.
    """
    found = [pid]
    for parent in found:  # grows while it is walked
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            if parent == pid:
                raise
            continue
        for thread in threads:
            found.extend(int(child) for child in _read(f"/proc/{parent}/task/{thread}/children").split())
    return found


def memory_bytes(pids: list[int], work_directory_fd: int, limit_bytes: int) -> int:
    """Return what `pids` hold with the files in the work directory; exact only when it is more than the limit."""
    state = os.statvfs(work_directory_fd)
    files = (state.f_blocks - state.f_bfree) * state.f_frsize
    resident = {pid: _resident_bytes(pid) for pid in pids}
    if files + sum(resident.values()) <= limit_bytes:
        return files + sum(resident.values())
    return files + sum(_proportional_bytes(pid, otherwise=resident[pid]) for pid in pids)


def cpu_ns(pids: list[int]) -> tuple[int, int]:
    """Return the user and the system time of `pids` and of the descendants that they have waited for."""
    user_ticks = system_ticks = 0
    for pid in pids:
        # The command's name in field 2 may hold anything, also blanks and brackets; what follows the last bracket is
        # state, ppid, ...; utime, stime, cutime and cstime are fields 14 to 17.
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if fields:
            user, system, waited_user, waited_system = (int(value) for value in fields[11:15])
            user_ticks += user + waited_user
            system_ticks += system + waited_system
    return user_ticks * _TICK_NS, system_ticks * _TICK_NS


def _resident_bytes(pid: int) -> int:
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE_BYTES if fields else 0


def _proportional_bytes(pid: int, otherwise: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return otherwise


def _read(path: str) -> bytes:
    """Return the content of a /proc file, or nothing when its process is gone or hides it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 1 << 16)
        finally:
            os.close(fd)
    except OSError:
        return b""
