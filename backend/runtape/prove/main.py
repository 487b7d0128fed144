"""Opens the place where the programs are to run, and runs the battery there."""

import asyncio
import platform
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from runtape.prove.battery import Battery, result
from runtape.prove.case import Case, Check, Inside
from runtape.prove.cases import FAMILIES, FAMILIES_OF_PODS
from runtape.prove.errors import ProveError
from runtape.prove.lures import open_lures
from runtape.prove.places import place_of
from runtape.prove.target import Target
from runtape.prove.verdict import CaseResult, Part, Report, Verdict
from runtape.runtime.settings import Settings

Told = Callable[[CaseResult, int, int], None]
"""Called with each result, its number and how many there are."""
Chosen = Sequence[tuple[str, Check]]
"""Cases, each behind its family."""


async def prove(target: Target, settings: Settings, only: Sequence[str], told: Told) -> Report:
    """Run the battery, or the cases that `only` names by id or family, in the sandbox or cluster of `settings`.

    The data folder is not touched, so a server may be running on it.  Raises: ProveError.
    """
    chosen = choose(target, only)
    begun_s = time.monotonic()
    results: list[CaseResult] = []

    def tell(result: CaseResult) -> None:
        results.append(result)
        told(result, len(results), len(chosen) + 2)

    with tempfile.TemporaryDirectory(prefix="runtape-prove-") as outside, open_lures(Path(outside)) as lures:
        async with place_of(target, settings, Path(outside)) as place:
            async with place.open() as runs:
                battery = Battery(target, runs, lures, place.traces, settings.limits.limits())
                tell(await battery.judge_the_watch())
                async for each in _judged(battery, chosen, place.at_once):
                    tell(each)
            tell(await battery.judge_the_end())
            host = await place.traces.host({each.id: _contained(each) for each in results})
    return Report(target=target, host=host, cases=results, took_s=round(time.monotonic() - begun_s, 1))


def choose(target: Target, only: Sequence[str]) -> Chosen:
    """Return the cases that are meant, as `target` has them, in the battery's order; all when `only` is empty.

    Raises: ProveError, naming what is unknown.
    """
    families = FAMILIES_OF_PODS if target is Target.KUBERNETES else FAMILIES
    battery = [(family, check) for family, checks in families.items() for check in checks]
    unknown = set(only) - {name for family, check in battery for name in (family, check.id)}
    if unknown:
        names = ", ".join(families)
        raise ProveError(f'there is no case "{min(unknown)}"; the families are {names}, and A01 is an id')
    return [
        (family, replace(check, **check.in_pods) if target is Target.KUBERNETES else check)
        for family, check in battery
        if (not only or family in only or check.id in only)
        and not (isinstance(check, Case) and check.machines and platform.machine() not in check.machines)
    ]


def _contained(result: CaseResult) -> bool:
    return not any(flaw.part is Part.CONTAINED for flaw in result.flaws)


async def _judged(battery: Battery, chosen: Chosen, at_once: int) -> AsyncIterator[CaseResult]:
    """Yield the results: in order, or as cases end, when so many programs may be there `at_once`."""
    if not at_once:
        for family, check in chosen:
            yield await _judge(battery, family, check)
        return
    room = _Room(at_once)

    async def judge(family: str, check: Check) -> CaseResult:
        async with room.taken(_programs(check)):
            return await _judge(battery, family, check)

    tasks = [asyncio.create_task(judge(*each)) for each in chosen]
    try:
        for task in asyncio.as_completed(tasks):
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _judge(battery: Battery, family: str, check: Check) -> CaseResult:
    if battery.target is Target.KUBERNETES and check.not_in_pods:
        return result(check, family, Verdict.NOT_HERE, check.not_in_pods)
    return await battery.judge(check, family) if isinstance(check, Case) else battery.known_limit(check, family)


def _programs(check: Check) -> int:
    """Return how many programs of a case are there at once: it, a neighbour, a companion, the control."""
    if not isinstance(check, Case) or check.not_in_pods:
        return 0
    return 2 + bool(check.companion) + isinstance(check.control, Inside)


class _Room:
    """Room for so many programs, which cases take for all of theirs at once, lest two wait for each other."""

    def __init__(self, programs: int) -> None:
        self._free = programs
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, programs: int) -> AsyncGenerator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= programs)
            self._free -= programs
        try:
            yield
        finally:
            async with self._changed:
                self._free += programs
                self._changed.notify_all()
