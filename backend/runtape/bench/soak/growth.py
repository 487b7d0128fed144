"""Memory over time: how much each kind of process holds, and whether that stays."""

import asyncio
import statistics
import time
from array import array
from collections import defaultdict
from typing import Final

from runtape.bench.figures import rounded
from runtape.bench.procfs import resident_bytes
from runtape.bench.soak.census import Kind, kinds_of_processes

FLAT: Final = 0.10
"""By how much the last quarter may exceed the second; the first is when caches and stocks fill."""
_FEWEST: Final = 8
"""Samples below which there is nothing to compare."""
_SHORTEST_S: Final = 10.0
"""Time below which caches that fill look like growth."""
_GRAIN_BYTES: Final = 64 << 10
"""What counts as no growth in any case: the smallest of our processes hold less than ten times this."""


class Growth:
    """Samples the resident memory of every kind of process, boxes left out: they hold what the programs do."""

    def __init__(self) -> None:
        self.lag_s = 0.0
        """By how much the event loop was late at worst: what stalls it stalls every run."""
        self._begun_s = time.monotonic()
        self._held: defaultdict[Kind, array[float]] = defaultdict(lambda: array("d"))

    async def watch(self, interval_s: float) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.to_thread(self.sample)
            due_s = time.monotonic() + interval_s
            await asyncio.sleep(interval_s)
            self.lag_s = max(self.lag_s, time.monotonic() - due_s)

    def sample(self) -> None:
        """Take one sample: the mean over the processes of a kind."""
        held: defaultdict[Kind, list[int]] = defaultdict(list)
        for pid, kind in kinds_of_processes().items():
            if kind is not Kind.BOX:
                try:
                    held[kind].append(resident_bytes(pid))
                except OSError:  # it has ended
                    continue
        for kind, sizes in held.items():
            self._held[kind].append(statistics.fmean(sizes))

    def figures(self) -> dict[str, dict[str, float]]:
        """Return, for each kind with enough samples, MiB in the second and in the last quarter, and the growth."""
        found: dict[str, dict[str, float]] = {}
        for kind, held in self._held.items():
            if len(held) >= _FEWEST:
                second, last = self._quarters(held)
                found[kind.value] = {
                    "second_quarter_mib": rounded(second / 2**20),
                    "last_quarter_mib": rounded(last / 2**20),
                    "growth_percent": rounded((last / second - 1) * 100),
                }
        return found

    def grown(self) -> list[str]:
        """Return the kinds whose memory does not stay, in words; none after a time that is too short to tell."""
        found: list[str] = []
        if time.monotonic() < self._begun_s + _SHORTEST_S:
            return found
        for kind, held in self._held.items():
            if len(held) >= _FEWEST:
                second, last = self._quarters(held)
                if last > second * (1 + FLAT) and last - second > _GRAIN_BYTES:
                    found.append(
                        f"a {kind} holds {last / second - 1:+.0%}: {second / 2**20:.1f} -> {last / 2**20:.1f} MiB"
                    )
        return found

    @staticmethod
    def _quarters(held: "array[float]") -> tuple[float, float]:
        quarter = len(held) // 4
        return statistics.median(held[quarter : 2 * quarter]), statistics.median(held[-quarter:])
