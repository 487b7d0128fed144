"""`runtape bench soak`: options, the order of things, and the exit code.

It drives the sandbox through its port, in this process, and no server: what could be left behind is the sandbox's, a
server between would add its own descriptors and caches to what is counted, and `runtape bench` has measured the memory
of a server over many runs.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runtape.adapters.sandbox import LocalSandbox
from runtape.bench.errors import BenchError
from runtape.bench.figures import rounded
from runtape.bench.procfs import load_average, machine
from runtape.bench.soak import census, report
from runtape.bench.soak.census import Census, Kind
from runtape.bench.soak.growth import Growth
from runtape.bench.soak.latencies import Latencies
from runtape.bench.soak.mix import Lanes, Mix
from runtape.bench.soak.programs import good_programs, hostile_programs, plain_program
from runtape.domain.limits import Limits
from runtape.ports.errors import InfrastructureError
from runtape.prove.errors import ProveError
from runtape.prove.runs import Runs
from runtape.prove.traces import LocalTraces, that_stays
from runtape.runtime.logging import configure_logging

_SLICE_S: Final = 5.0
_SAMPLES: Final = 120
"""Samples of memory in each part, at most one a second."""
_THREADS: Final = 2
_REST_S: Final = 1.0
_REST_TIMEOUT_S: Final = 20.0
_TOLD_EVERY_S: Final = 10.0
_MOST_FINDINGS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long, and beside how many."""

    runs: int
    seconds: float
    concurrency: int = 8


@dataclass(slots=True, kw_only=True)
class Part:
    """What came of one part."""

    figures: dict[str, Any]
    findings: list[str] = field(default_factory=list[str])


def main(arguments: Sequence[str]) -> int:
    """Soak and report; return 0 when nothing was found, 1 when something was or it could not be done."""
    parser = argparse.ArgumentParser(
        prog="runtape bench soak",
        description="Run good and hostile programs side by side for long; look for what they leave and whom they slow.",
    )
    parser.add_argument("--runs", type=int, default=10_000, metavar="N", help="plain runs in the first part (10000)")
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="length of the mixed part (120)")
    parser.add_argument("--concurrency", type=int, default=8, metavar="C", help="programs at once (8)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(arguments)
    plan = Plan(
        runs=max(options.runs, 0), seconds=max(options.seconds, 0.0), concurrency=max(options.concurrency // 2 * 2, 2)
    )
    begun_s = time.monotonic()

    def told(said: str) -> None:
        print(f"[{time.monotonic() - begun_s:6.1f} s] {said}", file=sys.stderr, flush=True)

    configure_logging("warning")
    try:
        found = asyncio.run(soak(plan, told))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found) if options.json else report.page(found))
    return 1 if found["findings"] else 0


async def soak(plan: Plan, told: Callable[[str], None]) -> dict[str, Any]:
    """Carry out the plan in a sandbox of its own; return figures and findings.  Raises: BenchError."""
    begun_s = time.monotonic()
    # Threads that come with the load would look like a leak; these are there from the start.
    executor = ThreadPoolExecutor(_THREADS)
    asyncio.get_running_loop().set_default_executor(executor)
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(_THREADS)))
    with tempfile.TemporaryDirectory(prefix="runtape-soak-") as folder:
        data = Path(folder)
        facts, load_before = machine(data), load_average()
        traces = LocalTraces(data)
        try:
            async with LocalSandbox(data) as sandbox:
                runs = Runs(sandbox, traces)
                await runs.open()
                try:
                    found, findings = await _Soak(plan, told, runs, traces, data).carry_out()
                finally:
                    await runs.close()
        except (InfrastructureError, ProveError) as error:
            raise BenchError(f"code cannot be run here: {error}") from error
        findings += [f"after closing: {what}" for what in await traces.left_after_closing()]
        closed = census.take(data, 0)
        if closed.processes[Kind.SERVICE] != sum(closed.processes.values()):
            findings.append(f"after closing: processes are left: {dict(closed.processes)}")
        told("closed")
    return {
        "findings": findings,
        "machine": {**facts, "load_before": load_before, "load_after": load_average()},
        "memory_limit": f"cgroup {traces.group_version}" if traces.group_version else "watchdog",
        "concurrency": plan.concurrency,
        **found,
        "took_s": round(time.monotonic() - begun_s, 1),
    }


class _Soak:
    """The parts, one after another, in an open sandbox."""

    def __init__(self, plan: Plan, told: Callable[[str], None], runs: Runs, traces: LocalTraces, data: Path) -> None:
        self._plan = plan
        self._told = told
        self._runs = runs
        self._traces = traces
        self._data = data
        self._mix = Mix(runs)
        self._calm, self._hostile = Latencies(), Latencies()

    async def carry_out(self) -> tuple[dict[str, Any], list[str]]:
        """Return the figures and what was found."""
        installed = await self._runs.pods.runtimes()
        python = next(each for each in installed if each.lang == "python")
        good = good_programs(installed)
        hostile = hostile_programs(Limits(wall_s=20.0, cpu_s=20.0))
        self._told(f"{len(good)} good programs, {len(hostile)} hostile ones")
        # Whatever is made at first use is made now: stocks, zygotes, slots, compiled programs.
        await self._mix.all_of(iter([*good, *hostile, *good]), self._plan.concurrency)
        self._learn_groups()
        rest = await self._at_rest()
        self._told("warm")

        numbers = iter(range(self._plan.runs))
        plain = await self._part(
            "plain",
            rest,
            lambda: self._mix.all_of((plain_program(python, number) for number in numbers), self._plan.concurrency),
        )
        seconds = plain.figures["took_s"]
        plain.figures |= {"runs": self._plan.runs, "per_s": rounded(self._plan.runs / max(seconds, 1e-9))}
        lanes = self._plan.concurrency // 2

        before = self._mix.ran.copy()
        mixed = await self._part("mixed", rest, lambda: self._alternate(Lanes(good, lanes), Lanes(hostile, lanes)))
        counts = self._mix.ran - before
        mixed.figures |= {
            "good_runs": sum(counts[each.name] for each in good),
            "hostile_runs": sum(counts[each.name] for each in hostile),
        }
        findings = [*plain.findings, *mixed.findings]
        findings += [f"{count} times: {what}" for what, count in self._mix.wrong.most_common(_MOST_FINDINGS)]
        neighbours: dict[str, Any] = {}
        if min(self._calm.count(), self._hostile.count()):
            neighbours = report.neighbours(self._calm, self._hostile)
            ratio = neighbours["slowdown"]["p99_ratio"]
            enough = min(self._calm.count(), self._hostile.count()) >= report.FEWEST_RUNS
            if enough and ratio > report.NEIGHBOURS_P99_BROKEN:
                findings.append(f"neighbours' p99 is {ratio} times that without hostile company")
        return {"plain": plain.figures, "mixed": mixed.figures, "neighbours": neighbours}, findings

    async def _alternate(self, good: Lanes, hostile: Lanes) -> None:
        """Run calm and hostile slices in turns until the time is over; an equal number of each."""
        due_s = time.monotonic() + self._plan.seconds
        while time.monotonic() < due_s:
            slice_s = min(_SLICE_S, self._plan.seconds / 2)
            await self._mix.slice(slice_s, good, None, self._calm)
            await self._mix.slice(slice_s, good, hostile, self._hostile)

    async def _part(self, name: str, rest: Census, work: Callable[[], Awaitable[None]]) -> Part:
        """Do the work of a part while memory is watched; then compare what is left with the census at rest."""
        growth = Growth()
        expected_s = self._plan.seconds if name == "mixed" else self._plan.runs / 200
        watching = asyncio.create_task(growth.watch(max(0.1, min(1.0, expected_s / _SAMPLES))))
        telling = asyncio.create_task(self._tell(name))
        begun_s = time.monotonic()
        try:
            await work()
        finally:
            took_s = time.monotonic() - begun_s
            for task in (watching, telling):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        left = await self._left(rest)
        self._told(f"{name} part: {sum(self._mix.ran.values())} runs so far, {len(left)} things left")
        findings = [f"after the {name} part: {what}" for what in left]
        findings += [f"in the {name} part {what}" for what in growth.grown()]
        return Part(
            figures={"took_s": rounded(took_s), "loop_lag_s": rounded(growth.lag_s), "memory": growth.figures()},
            findings=findings,
        )

    async def _left(self, rest: Census) -> list[str]:
        return await that_stays(lambda: self._census().grown(rest))

    async def _tell(self, name: str) -> None:
        while True:
            await asyncio.sleep(_TOLD_EVERY_S)
            self._told(f"{name}: {sum(self._mix.ran.values())} runs, {sum(self._mix.wrong.values())} wrong")

    async def _at_rest(self) -> Census:
        """Return the census once the stock of boxes is filled up: when it does not change any more."""
        deadline_s = time.monotonic() + _REST_TIMEOUT_S
        latest = self._census()
        while True:
            await asyncio.sleep(_REST_S)
            before, latest = latest, self._census()
            if not [*latest.grown(before), *before.grown(latest)] or time.monotonic() > deadline_s:
                return latest

    def _census(self) -> Census:
        return census.take(self._data, len({path.name for path in self._traces.groups()}))

    def _learn_groups(self) -> None:
        """Learn where control groups are, from a process that is in one."""
        for pid, kind in census.kinds_of_processes().items():
            if kind in (Kind.SLOT, Kind.BOX):
                with suppress(OSError):
                    self._traces.learn_groups(pid)
                    return
