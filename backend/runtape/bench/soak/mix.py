"""Lanes of programs side by side, and how long the good ones among them take.

Theory of operation.  A lane runs one program after another.  In a *calm* slice there are only the lanes of good
programs; in a *hostile* one as many lanes of hostile programs run beside them, and are all up before the first good
program starts and until the last has ended.  So both kinds of slice measure the same good programs, in the same order,
from as many lanes; what differs is the company.  Slices alternate, so that what else goes on at the machine meets both.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from runtape.bench.soak.latencies import Latencies
from runtape.bench.soak.programs import Tested
from runtape.ports.errors import InfrastructureError
from runtape.prove.runs import Running, Runs


@dataclass(slots=True)
class Mix:
    """Runs good and hostile programs by `runs`, and remembers what went wrong and how long good ones took."""

    runs: Runs
    wrong: Counter[str] = field(default_factory=Counter[str])
    """What was wrong, with how often."""
    ran: Counter[str] = field(default_factory=Counter[str])
    """How many ended, by name."""

    async def carry(self, tested: Tested) -> float:
        """Run one program and judge it; return its seconds from submission to removal."""
        begun_s = time.perf_counter()
        try:
            running = await self.runs.start(tested.program)
            ran = await running.end()
        except InfrastructureError as error:
            self.wrong[f"{tested.name}: {error}"] += 1
            return time.perf_counter() - begun_s
        elapsed_s = time.perf_counter() - begun_s
        self.ran[tested.name] += 1
        if wrong := tested.judge(ran):
            self.wrong[f"{tested.name}: {wrong}"] += 1
        return elapsed_s

    async def all_of(self, programs: Iterator[Tested], lanes: int) -> None:
        """Run all programs, `lanes` at a time."""

        async def lane() -> None:
            for tested in programs:
                await self.carry(tested)

        await asyncio.gather(*(lane() for _ in range(lanes)))

    async def slice(
        self, seconds: float, good: "Lanes", hostile: "Lanes | None" = None, into: Latencies | None = None
    ) -> None:
        """Run the lanes of good programs for `seconds`, with those of `hostile` beside them."""
        company = _Company(self, hostile) if hostile is not None else None
        if company is not None:
            await company.up()
        due_s = time.perf_counter() + seconds

        async def lane(programs: Iterator[Tested]) -> None:
            while time.perf_counter() < due_s:
                tested = next(programs)
                elapsed_s = await self.carry(tested)
                if into is not None:
                    into.add(tested.name, elapsed_s)

        try:
            await asyncio.gather(*map(lane, good.lanes))
        finally:
            if company is not None:
                await company.leave()


class Lanes:
    """Endless rows of programs, each beginning elsewhere in the same order."""

    def __init__(self, programs: Sequence[Tested], count: int) -> None:
        shift = max(1, len(programs) // count)
        rows = [[*programs[at:], *programs[:at]] for at in (lane * shift % len(programs) for lane in range(count))]
        self.lanes = [itertools.cycle(row) for row in rows]


class _Company:
    """Hostile programs that run until they are sent away; those that run then are killed."""

    def __init__(self, mix: Mix, lanes: Lanes) -> None:
        self._mix = mix
        self._leaving = False
        self._running: set[Running] = set()
        self._begun = asyncio.Barrier(len(lanes.lanes) + 1)
        self._tasks = [asyncio.create_task(self._lane(lane)) for lane in lanes.lanes]

    async def up(self) -> None:
        """Return when each lane has a program running."""
        await self._begun.wait()

    async def _lane(self, programs: Iterator[Tested]) -> None:
        first = True
        while not self._leaving:
            tested = next(programs)
            running = await self._mix.runs.start(tested.program)
            self._running.add(running)
            if first:
                first = False
                await self._begun.wait()
            ran = await running.end()
            self._running.discard(running)
            if self._leaving:
                return  # it was killed, or might have been
            self._mix.ran[tested.name] += 1
            if wrong := tested.judge(ran):
                self._mix.wrong[f"{tested.name}: {wrong}"] += 1

    async def leave(self) -> None:
        self._leaving = True
        for running in self._running:
            await self._mix.runs.pods.kill(running.key)
        await asyncio.gather(*self._tasks)
