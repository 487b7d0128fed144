"""Runs the battery and judges each case.

A case is judged in five parts.  Contained: no leak was reported by the program, seen in the bait folder or in what it
used, and it ended when due.  Attributed: the outcome is the one that fits.  Cleaned up: `traces` finds nothing.
Neighbours: a good program that ran beside it gave the right answer.  Control: the same program was run where its
success is certain, and reported it; else silence would prove nothing.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind
from runtape.prove.case import Case, Check, Inside, Layer
from runtape.prove.lures import Bait, Lures
from runtape.prove.ran import MARK, Ran
from runtape.prove.runs import Program, Running, Runs, last_words, run_outside
from runtape.prove.target import Target, Traces
from runtape.prove.verdict import CaseResult, Flaw, Part, Verdict

_SPARE_MEMORY_BYTES: Final = 128 << 20
"""By how much a peak may exceed the limit: where no cgroup is exact, a watchdog samples."""
_MOST_LEAKS: Final = 5
_INPUT_BYTES: Final = 50_000
"""What a neighbour is given to read: too much for the small pipes of a user who has used up the large ones."""
_LAYERS: Final = {
    Part.CLEANED_UP: Layer.TEARDOWN,
    Part.CONTROL: Layer.PROBE,
}
"""The layer that such a flaw speaks of, whatever the case is about."""
_NEIGHBOUR: Final = """
import hashlib, os, sys
import inside

data = sys.stdin.buffer.read()
with open("mine", "wb") as file:
    file.write(data)
read_end, write_end = os.pipe()
if os.fork() == 0:
    os.write(write_end, hashlib.sha256(open("mine", "rb").read()).hexdigest().encode())
    os._exit(0)
os.wait()
print("answer", os.read(read_end, 64).decode(), len(os.listdir(".")))
"""
_WATCH: Final = Check(
    id="C01",
    title="what is looked for is seen",
    tries="runs a program that stays, and looks for it as for a leftover",
    holds="its process and its files are found while they are there, and nothing is found afterwards",
    layer=Layer.TEARDOWN,
)
_END: Final = Check(
    id="C02",
    title="nothing is left after the last program",
    tries="closes the sandbox after all programs",
    holds="no process, control group, file or descriptor is left of it",
    layer=Layer.TEARDOWN,
)
_SLEEPER: Final = "import inside, time\nprint('up')\ntime.sleep(60)\n"


class Battery:
    """Judges cases against one target."""

    def __init__(self, target: Target, runs: Runs, lures: Lures, traces: Traces, limits: Limits) -> None:
        self.target = target
        self._runs = runs
        self._lures = lures
        self._traces = traces
        self._limits = replace(limits, wall_s=20.0, cpu_s=20.0)

    async def judge_the_watch(self) -> CaseResult:
        """Show that what a program might leave behind would be seen, by looking while one still runs."""
        begun_s = time.monotonic()
        before = self._traces.before()
        running = await self._runs.start(Program(script=_SLEEPER, limits=self._limits))
        await running.printed(b"up")
        unseen = await self._traces.sees(running.key, running.namespace)
        flaws = [Flaw(Part.CONTROL, what) for what in unseen]
        self._lures.tell(await self._traces.addresses())
        ran = await running.kill()
        flaws += await self._cleaned_up(before, [ran])
        return self._result(_WATCH, "cleanup", flaws, ran.outcome, time.monotonic() - begun_s)

    async def judge(self, case: Case, family: str) -> CaseResult:
        """Run one case with its control and a neighbour, and judge it."""
        begun_s = time.monotonic()
        before = self._traces.before()
        flaws: list[Flaw] = []
        rans: list[Ran] = []
        outcome: Outcome | None = None
        control = asyncio.create_task(self._control(case))
        try:
            if case.control_first:
                await control
            with self._lures.bait() as bait:
                companion = await self._start_companion(case)
                if companion is not None:
                    status = (await self._traces.manifest_of(companion.key)).get("status", {})
                    bait = bait.also({"companion_address": status.get("podIP", "127.0.0.1")})
                for _ in range(case.times):
                    hostile = await self._runs.start(self._program(case, bait), twice=case.started_twice)
                    await hostile.printed(MARK)
                    flaws += await self._neighbour(rans)
                    ran = await hostile.end()
                    rans.append(ran)
                    outcome = ran.outcome
                    flaws += [Flaw(Part.CONTAINED, leak) for leak in _leaks(case, ran, bait)]
                    flaws += _attributed(case, ran)
                if companion is not None:
                    rans.append(await companion.kill() if case.companion_stays else await companion.end())
            flaws += await control
        finally:
            control.cancel()
        flaws += await self._cleaned_up(before, rans)
        reached = dict.fromkeys(what for ran in rans for what in ran.reached)
        answered = f"the kernel itself answers to {', '.join(reached)}" if reached else ""
        guards = dict.fromkeys(what for ran in rans for what in ran.guarded)
        guarded = f"{', '.join(guards)}; {self._fix(case)}" if guards else ""
        took_s = time.monotonic() - begun_s
        return self._result(case, family, flaws, outcome, took_s, answered=answered, guarded=guarded)

    async def judge_the_end(self) -> CaseResult:
        """Look for what is left after the sandbox was closed."""
        begun_s = time.monotonic()
        flaws = [Flaw(Part.CLEANED_UP, f"{what} is left") for what in await self._traces.left_after_closing()]
        return self._result(_END, "cleanup", flaws, None, time.monotonic() - begun_s)

    def known_limit(self, check: Check, family: str) -> CaseResult:
        """Return the row of a limit that is known and not closed."""
        return self._result(check, family, [], None, 0.0)

    def _program(self, case: Case, bait: Bait, control: Inside | None = None) -> Program:
        limits = {**case.limits, **(control.limits if control else {})}
        if "wall_s" in limits:  # an interpreter that starts late is to come to what it is about
            limits["wall_s"] += self._traces.slack_s
        args = case.args if control is None or control.args is None else control.args
        due_s = case.due_s + self._traces.slack_s if control is None or control.due_s is None else control.due_s
        return Program(
            script=case.program,
            limits=replace(self._limits, **limits),
            args=tuple(map(bait.fill, args)),
            env=case.env,
            stdin=case.stdin,
            files={bait.fill(path): content for path, content in case.files.items()},
            requirements=case.requirements,
            due_s=due_s + self._traces.slack_s,
        )

    async def _control(self, case: Case) -> list[Flaw]:
        with self._lures.bait() as bait:
            if isinstance(case.control, Inside):
                program = self._program(case, bait, case.control)
                ran = await (await self._runs.start(program)).end()
            else:
                args = tuple(map(bait.fill, case.control.args))
                program = replace(self._program(case, bait), args=args, env=case.control.env)
                ran = await run_outside(program, inherits=case.control.inherits)
            if ran.reached or ran.guarded or [*_leaks(case, ran, bait)]:
                return []
        what = f"the control reports no leak, so the case proves nothing: {last_words(ran)}"
        return [Flaw(Part.CONTROL, what)]

    async def _start_companion(self, case: Case) -> Running | None:
        if not case.companion:
            return None
        running = await self._runs.start(Program(script=case.companion, limits=self._limits, due_s=60.0))
        if case.companion_stays:
            await running.printed(b"up")
        else:
            await self._runs.ended(running.key)
        return running

    async def _neighbour(self, rans: list[Ran]) -> list[Flaw]:
        given = os.urandom(_INPUT_BYTES)
        running = await self._runs.start(Program(script=_NEIGHBOUR, limits=self._limits, stdin=given))
        ran = await running.end()
        rans.append(ran)
        answer = f"answer {hashlib.sha256(given).hexdigest()} "
        if ran.outcome is not None and ran.outcome.exit_code == 0 and answer.encode() in ran.stdout:
            return []
        ended = ran.outcome.kind if ran.outcome else "not at all"
        what = f"a good program that ran beside it ended {ended}, and said: {last_words(ran)}"
        return [Flaw(Part.NEIGHBOURS, what)]

    async def _cleaned_up(self, before: Any, rans: Sequence[Ran]) -> list[Flaw]:
        left = await self._traces.left(before, rans)
        return [Flaw(Part.CLEANED_UP, f"{what} is left") for what in left]

    def _fix(self, check: Check, layer: Layer | None = None) -> str:
        """Return what to change where `layer`, or that of the case, does not hold."""
        if layer in (None, check.layer) and check.fix:
            return check.fix
        return (layer or check.layer).fix_in(self.target)

    def _result(
        self,
        check: Check,
        family: str,
        flaws: Sequence[Flaw],
        outcome: Outcome | None,
        took_s: float,
        *,
        answered: str = "",
        guarded: str = "",
    ) -> CaseResult:
        kernel = answered or check.kernel or ("" if os.geteuid() == 0 else check.kernel_without_root)
        layer = check.layer
        if flaws:
            layer = _LAYERS.get(flaws[0].part, check.layer)
            verdict, because = Verdict.FAILED, self._fix(check, layer)
        elif guarded:
            verdict, because = Verdict.CLUSTER, guarded
        else:
            verdict, because = (Verdict.KERNEL, kernel) if kernel else (Verdict.HELD, "")
        return result(check, family, verdict, because, flaws, outcome, took_s, layer)


def _leaks(case: Case, ran: Ran, bait: Bait) -> Iterator[str]:
    """Yield what a program got that it must not get."""
    leaks = ran.leaks
    yield from leaks[:_MOST_LEAKS]
    if len(leaks) > _MOST_LEAKS:
        yield f"and {len(leaks) - _MOST_LEAKS} more"
    yield from bait.touched()
    yield from case.judge(ran)
    if ran.overdue:
        yield f"it still ran after {ran.wall_s:.1f} s"
    if ran.usage.peak_memory_bytes > (ran.limits.memory_mb << 20) + _SPARE_MEMORY_BYTES:
        yield f"it held {ran.usage.peak_memory_bytes >> 20} MiB, the limit is {ran.limits.memory_mb}"


def _attributed(case: Case, ran: Ran) -> Iterator[Flaw]:
    outcome = ran.outcome
    if outcome is None:
        return  # it is not contained, which says more
    if not case.ends.allows(outcome):
        got = " ".join(str(part) for part in (outcome.kind, outcome.reason, outcome.exit_code, outcome.signal) if part)
        what = f"it ended {got}, and should have {case.ends}; it said last: {last_words(ran)}"
        yield Flaw(Part.ATTRIBUTED, what)
    elif outcome.kind is OutcomeKind.EXITED and not ran.tried:
        yield Flaw(Part.CONTROL, f"the program did not come to its end, so the case proves nothing: {last_words(ran)}")


def result(
    check: Check,
    family: str,
    verdict: Verdict,
    because: str,
    flaws: Sequence[Flaw] = (),
    outcome: Outcome | None = None,
    took_s: float = 0.0,
    layer: Layer | None = None,
) -> CaseResult:
    """Return the row of a case."""
    return CaseResult(
        id=check.id,
        title=check.title,
        family=family,
        tries=check.tries,
        holds=check.holds,
        layer=(layer or check.layer).title,
        verdict=verdict,
        flaws=tuple(dict.fromkeys(flaws)),
        because=because,
        outcome=str(outcome.kind) if outcome else "",
        took_s=round(took_s, 3),
    )
