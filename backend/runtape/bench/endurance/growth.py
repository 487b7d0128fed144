"""What a server holds at a moment, what a tenth of the runs took, and what of it grows."""

import os
import sqlite3
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from runtape.bench.figures import Figures, rounded
from runtape.bench.load import Sample
from runtape.bench.procfs import descendants, resident_bytes
from runtape.bench.soak.latencies import Latencies

TENTHS: Final = 10
MOST_GROWTH: Final = 1.10
"""By how much the last tenth may exceed an earlier one: the first in time, in what is held the second, since caches
fill during the first."""

_FEWEST_TENTHS: Final = 3
_FEWEST_RUNS: Final = 1000
"""Runs in a tenth below which how fast they were is no finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a server and its children hold: bytes, descriptors, executions that have not ended, unread messages."""

    memory_bytes: int
    children_bytes: int
    open_files: int
    unfinished: int
    lag_messages: int
    database_bytes: int
    log_bytes: int


def look(pid: int, database: Path) -> Holding:
    """Look at a server; the store is read through a connection of its own, which is closed again."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        unfinished, lag = connection.execute(
            "select (select count(*) from execution where due_at is not null),"
            " (select coalesce(max(offset), 0) from log) - (select coalesce(min(offset), 0) from consumer_offset)"
        ).fetchone()
    log = database.with_name(database.name + "-wal")
    return Holding(
        memory_bytes=resident_bytes(pid),
        children_bytes=sum(_resident(child) for child in descendants(pid)),
        open_files=len(os.listdir(f"/proc/{pid}/fd")),
        unfinished=unfinished,
        lag_messages=max(lag, 0),
        database_bytes=database.stat().st_size,
        log_bytes=log.stat().st_size if log.exists() else 0,
    )


def _resident(pid: int) -> int:
    try:
        return resident_bytes(pid)
    except OSError:  # it has ended
        return 0


_RUN: Final = "run"


@dataclass(slots=True)
class Pace:
    """How fast some runs were."""

    runs: int = 0
    elapsed_s: float = 0.0
    cpu_ns: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def add(self, sample: Sample) -> None:
        """Count the runs of one load."""
        self.runs += len(sample.latencies_s)
        self.elapsed_s += sample.elapsed_s
        self.cpu_ns += sample.cpu.total_ns
        for seconds in sample.latencies_s:
            self.latencies.add(_RUN, seconds)

    @property
    def p50_s(self) -> float:
        """The median."""
        return self.latencies.percentile_s(0.5)

    @property
    def cpu_s(self) -> float:
        """CPU of the server's own threads for one run."""
        return self.cpu_ns / self.runs / 1e9


@dataclass(slots=True)
class Tenth:
    """A tenth of the runs, and those on a server that has had few, in turns with them."""

    ours: Pace = field(default_factory=Pace)
    young: Pace = field(default_factory=Pace)
    seen: list[Holding] = field(default_factory=list[Holding])
    ratios: list[float] = field(default_factory=list[float])
    """The median of each load as a multiple of that of the young server's right behind it."""

    def add(self, ours: Sample, young: Sample, holding: Holding) -> None:
        """Count a load, the one on the young server behind it, and what is held then."""
        self.ours.add(ours)
        self.young.add(young)
        self.seen.append(holding)
        self.ratios.append(statistics.median(ours.latencies_s) / statistics.median(young.latencies_s))

    def most(self, name: str) -> int:
        """Return the most that was held of something."""
        return max(getattr(holding, name) for holding in self.seen)

    def figures(self) -> Figures:
        """Return what the report says of it; sizes are the greatest that were seen."""
        return {
            "runs": self.ours.runs,
            "per_s": rounded(self.ours.runs / self.ours.elapsed_s),
            "p50_ms": rounded(self.ours.p50_s * 1e3),
            "p99_ms": rounded(self.ours.latencies.percentile_s(0.99) * 1e3),
            "cpu_ms": rounded(self.ours.cpu_s * 1e3),
            "young_p50_ms": rounded(self.young.p50_s * 1e3),
            "young_cpu_ms": rounded(self.young.cpu_s * 1e3),
            "memory_mib": rounded(self.most("memory_bytes") / 2**20),
            "children_mib": rounded(self.most("children_bytes") / 2**20),
            "open_files": self.most("open_files"),
            "unfinished": self.most("unfinished"),
            "lag_messages": self.most("lag_messages"),
            "database_mib": rounded(self.most("database_bytes") / 2**20),
            "log_mib": rounded(self.most("log_bytes") / 2**20),
        }


_HELD: Final = {
    # What is held, and what of it counts as no growth in any case.
    "memory_bytes": ("memory of the server, bytes", 2 << 20),
    "children_bytes": ("memory of its children, bytes", 8 << 20),
    "open_files": ("open files", 8),
    "unfinished": ("executions that have not ended", 8),
    "lag_messages": ("messages that were not noted as read", 2000),
    "log_bytes": ("size of the store's log, bytes", 1 << 20),
}


def grown(tenths: Sequence[Tenth]) -> list[str]:
    """Return, in words, what the last tenth has more of than it may; nothing when there are too few to tell."""
    if len(tenths) < _FEWEST_TENTHS:
        return []
    first, second, last = tenths[0], tenths[1], tenths[-1]
    found: list[str] = []
    for name, (words, grain) in _HELD.items():
        before, after = second.most(name), last.most(name)
        if after > before * MOST_GROWTH and after - before > grain:
            found.append(f"{words}: {before} in the second tenth, {after} in the last")
    if min(first.ours.runs, last.ours.runs) >= _FEWEST_RUNS:
        for words, ratio in slowdown(first, last).items():
            if ratio > MOST_GROWTH:
                found.append(f"{words} of the last tenth is {ratio:.2f} times that of the first")
    return found


def slowdown(first: Tenth, last: Tenth) -> dict[str, float]:
    """Return how the last tenth compares with the first, each as a multiple of the young server beside it.

    The machine is faster and slower by itself; that meets both servers.
    """
    return {
        "p50": rounded(statistics.median(last.ratios) / statistics.median(first.ratios)),
        "CPU a run": rounded((last.ours.cpu_s / last.young.cpu_s) / (first.ours.cpu_s / first.young.cpu_s)),
    }
