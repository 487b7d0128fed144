"""Memory and CPU time of a run over time, gathered while it runs from what the keeper sees of its box."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from runtape.domain.outcome import TimelinePoint, Usage

from .keeper.timeline import MOST_POINTS

_LAST: Final = 1
"""The place that is left for the point of the end."""


class Timeline:
    """The points of one box; with too many, every second one is dropped, and the keeper looks half as often."""

    def __init__(self, started_ns: int) -> None:
        """Begin at `started_ns` of the monotonic clock."""
        self._started_ns = started_ns
        self._points: list[TimelinePoint] = []

    def add(self, at_ns: int, memory_bytes: int, cpu_ns: int) -> None:
        """Take what was seen at `at_ns`; CPU time does not fall, whatever part of a tree a look has missed."""
        before_ns = self._points[-1].cpu_ns if self._points else 0
        self._points.append(TimelinePoint(max(0, at_ns - self._started_ns), memory_bytes, max(before_ns, cpu_ns)))
        if len(self._points) == MOST_POINTS - _LAST:
            self._points = self._points[::2]

    def ended(self, usage: Usage) -> tuple[TimelinePoint, ...]:
        """Return all points, the last of them at the end with the run's totals.

        Its memory is what was held when last looked at; a run that was over before that tells its peak.
        """
        total_ns = usage.cpu_user_ns + usage.cpu_system_ns
        held = self._points[-1].memory_bytes if self._points else usage.peak_memory_bytes
        # A look counts what our own processes did on the account of the box as well; the total does not.
        seen = (replace(each, cpu_ns=min(each.cpu_ns, total_ns)) for each in self._points if each.t_ns < usage.wall_ns)
        return (*seen, TimelinePoint(usage.wall_ns, held, total_ns))


def joined(
    first: Sequence[TimelinePoint], second: Sequence[TimelinePoint], spent_cpu_ns: int
) -> tuple[TimelinePoint, ...]:
    """Return the points of a run in two boxes; `spent_cpu_ns` is what the first has used."""
    later = (replace(each, cpu_ns=each.cpu_ns + spent_cpu_ns) for each in second)
    points = [*first, *later]
    while len(points) > MOST_POINTS:
        points = [*points[:-1:2], points[-1]]
    return tuple(points)
