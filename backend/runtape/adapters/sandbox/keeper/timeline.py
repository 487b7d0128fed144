"""When to look at a box whose run asked for a timeline, and what is seen.

The pause between two looks is doubled as often as the points that are kept are halved: so the points of a
run of any length are evenly spaced, and never more than `MOST_POINTS`.
"""

import time
from typing import Final

from . import watchdog
from .box import Box

MOST_POINTS: Final = 200
FIRST_PAUSE_S: Final = 0.1


def begin(box: Box) -> None:
    """Have the first look at once."""
    box.point_pause_s = FIRST_PAUSE_S


def passed(box: Box, now_s: float) -> None:
    """Count a look at `now_s` and set the time of the next."""
    box.points += 1
    if box.points == MOST_POINTS - 1:  # one place is left for the end
        box.points = (box.points + 1) // 2
        box.point_pause_s *= 2
    box.point_due_s = now_s + box.point_pause_s


def look(box: Box) -> tuple[int, int, int]:
    """Return the monotonic clock, ns; what the tree of `box` holds, bytes; the CPU time that it has used, ns.

    Raises: OSError, when it dies just now.
    """
    if box.group is not None:
        held_bytes, cpu_ns = box.group.memory_bytes(), box.group.cpu_ns()
    else:
        pids = watchdog.tree(box.pid())
        held_bytes = watchdog.memory_bytes(pids[1:], box.work_directory_fd, box.memory_limit_bytes)
        cpu_ns = watchdog.cpu_ns(pids)
    return time.monotonic_ns(), held_bytes, max(0, sum(cpu_ns) - sum(box.arming_cpu_ns))
