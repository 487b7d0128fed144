"""The reaper: pods without an execution, executions without a pod, and ends that nobody else tells."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runtape.application import retrying
from runtape.application.reaping import GRACE_S, LIST_S, LOOK_S, STUCK_S, Reaper, Verdict, judge, partition_of
from runtape.application.running import LEASE_TTL
from runtape.domain.execution import LEASE_GRACE, Execution, OnInterrupt
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from runtape.ports.placed_pods import PlacedPod, PodState, Told
from runtape.ports.pod_runtime import PodEnded, PodKey
from tests.application.world import World, a_world
from tests.builders import EXITED, ended, requested, started
from tests.clocks import ManualClock
from tests.contract.embedded.basic import quick_place

OOM = Outcome(kind=OutcomeKind.MEMORY_LIMIT, reason="oom")
IMAGE = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="image_pull_failed")
DEAD = LEASE_TTL + LEASE_GRACE
USED = Usage(wall_ns=7)


def a_pod(key: PodKey, **changes: Any) -> PlacedPod:
    pod = PlacedPod(name=f"pod-{key.attempt}", version="1", key=key, state=PodState.RUNNING, ran=True, leaving=False)
    return replace(pod, **changes)


def telling(key: PodKey, last_seq: int, outcome: Outcome = EXITED, *, left_files: bool = False) -> dict[str, Any]:
    def told(limits: Limits) -> Told:
        return Told(PodEnded(key=key, outcome=outcome, usage=USED, last_seq=last_seq), left_files)

    return {"state": PodState.ENDED, "told": told}


KEY = PodKey(started().id, 1)
GONE = a_pod(KEY, state=PodState.ENDED, outcome=OOM)
PULLING = a_pod(KEY, state=PodState.PENDING, ran=False, outcome=IMAGE)


@pytest.mark.parametrize(
    ("pod", "execution", "still", "verdict"),
    [
        (a_pod(KEY), None, 0.0, Verdict.DELETE),
        (a_pod(KEY), ended(started()), 0.0, Verdict.DELETE),
        (a_pod(KEY), requested(), 0.0, Verdict.LEAVE),
        (None, None, 100.0, Verdict.LEAVE),
        (None, ended(started()), 100.0, Verdict.LEAVE),
        (a_pod(KEY), started(), 100.0, Verdict.LEAVE),
        (a_pod(KEY, state=PodState.PENDING), started(), 100.0, Verdict.LEAVE),
        (GONE, started(), 14.9, Verdict.LEAVE),
        (GONE, started(), 15.0, Verdict.LOSE),
        (PULLING, started(), 34.9, Verdict.LEAVE),
        (PULLING, started(), 35.0, Verdict.LOSE),
        (a_pod(KEY, leaving=True), started(), 34.9, Verdict.LEAVE),
        (a_pod(KEY, leaving=True), started(), 35.0, Verdict.LOSE),
        (None, started(), 34.9, Verdict.LEAVE),
        (None, started(), 35.0, Verdict.LOSE),
    ],
)
def test_what_is_done_about_a_pod(
    pod: PlacedPod | None, execution: Execution | None, still: float, verdict: Verdict
) -> None:
    def judged(*, overdue: bool) -> Verdict:
        seconds = timedelta(seconds=still)
        return judge(pod, KEY, execution, complete=False, still=seconds, overdue=overdue, lease_ttl=LEASE_TTL)

    assert judged(overdue=True) is verdict
    assert judged(overdue=False) is (Verdict.LEAVE if verdict is Verdict.LOSE else verdict)


@dataclass
class Placed:
    """A cluster's pods, as a test says that they are."""

    pods: list[PlacedPod] = field(default_factory=list)
    known: bool = True
    hidden: bool = False
    ours: bool = True
    deleted: list[tuple[str, bool]] = field(default_factory=list)

    def seen(self) -> Sequence[PlacedPod] | None:
        return ([] if self.hidden else [*self.pods]) if self.known else None

    async def find(self, key: PodKey) -> Sequence[PlacedPod]:
        return [pod for pod in self.pods if pod.key == key]

    async def delete(self, pod: PlacedPod, *, force: bool = False) -> None:
        self.deleted.append((pod.name, force))


class ElsewhereExtended:
    """Executions whose leases another process extends: the embedded store knows of none."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.expires_at: datetime | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def get(self, execution_id: ExecutionId) -> Execution | None:
        found = await self._inner.get(execution_id)
        if self.expires_at is None or found is None or found.lease is None:
            return found
        return replace(found, lease=replace(found.lease, expires_at=self.expires_at))


@dataclass
class Left:
    """What a worker has left that was killed while its program ran, and a monitor that comes upon it."""

    world: World
    executions: ElsewhereExtended
    reaper: Reaper
    placed: Placed
    key: PodKey
    clock: ManualClock

    async def execution(self) -> Execution:
        return await self.world.get(self.key.execution_id)

    async def pass_time(self, seconds: float, *, extended: bool = False) -> None:
        """Let the reaper go round for so long, while the worker extends its lease or does not."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
            if extended:
                self.extend()
            await self.reaper.round()

    def extend(self) -> None:
        self.executions.expires_at = self.clock.now() + LEASE_TTL

    def place(self, **changes: Any) -> None:
        self.placed.pods = [a_pod(self.key, **changes)]


@pytest.fixture
async def left(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Left]:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.0)
    with quick_place() as folder:
        async with a_left(folder, **getattr(request, "param", {})) as found:
            yield found


@asynccontextmanager
async def a_left(folder: Path, **changes: Any) -> AsyncIterator[Left]:
    clock = ManualClock()
    async with a_world(folder, clock=clock, fused=False) as world:
        await world.start()
        execution_id = await world.submit("print a\nwait never", **changes)
        key = PodKey(execution_id, 1)
        await world.until_started(key)
        await world.until(lambda: _has_printed(world, execution_id))
    extended = ElsewhereExtended(None)

    def wrap(stores: Any) -> Any:
        extended._inner = stores.executions
        return replace(stores, executions=extended)

    async with a_world(folder, clock=clock, fused=False, owner="monitor", wrap=wrap) as world:
        placed = Placed()
        reaper = Reaper(
            pods=placed,
            executions=world.stores.executions,
            tape=world.stores.tape,
            monitor=world.monitor,
            clock=clock,
            concerns=lambda execution_id: placed.ours,
        )
        yield Left(world, extended, reaper, placed, key, clock)


async def _has_printed(world: World, execution_id: ExecutionId) -> bool:
    return await world.printed(execution_id) == b"a\n"


async def test_an_end_of_which_nothing_is_missing_is_recorded_for_the_worker(left: Left) -> None:
    left.place(**telling(left.key, 1))
    await left.pass_time(GRACE_S, extended=True)
    assert (await left.execution()).live, "the worker has that long"
    await left.pass_time(1, extended=True)
    execution = await left.execution()
    assert (execution.outcome, execution.usage, execution.last_seq) == (EXITED, USED, 1)


@pytest.mark.parametrize(
    ("left", "last_seq", "left_files", "reason"),
    [
        ({}, 2, False, "output_lost"),
        ({}, 1, True, "worker_lost"),
        ({"timeline": True}, 1, False, "worker_lost"),
    ],
    indirect=["left"],
)
async def test_an_end_of_which_something_is_missing_is_left_to_the_worker_for_as_long_as_it_lives(
    left: Left, last_seq: int, left_files: bool, reason: str
) -> None:
    left.place(**telling(left.key, last_seq, left_files=left_files))
    await left.pass_time(120, extended=True)
    assert (await left.execution()).live
    await left.pass_time(34)
    assert (await left.execution()).live, "its lease has not run out, or not for long"
    assert left.placed.deleted == []
    await left.pass_time(2)
    execution = await left.execution()
    assert (execution.status, execution.history[-1].reason) == ("queued", reason)
    assert left.placed.deleted == [("pod-1", False)]


async def test_a_pod_that_ended_without_a_word_gives_its_outcome_once_the_worker_is_gone(left: Left) -> None:
    left.place(state=PodState.ENDED, outcome=OOM)
    await left.pass_time(60, extended=True)
    assert (await left.execution()).live
    await left.pass_time(36)
    execution = await left.execution()
    assert (execution.outcome, execution.last_seq) == (OOM, 1)
    summary = await left.world.stores.tape.summary(left.key)
    assert summary.last_seq == 1


@pytest.mark.parametrize("left", [{"on_interrupt": OnInterrupt.FAIL}], indirect=True)
@pytest.mark.parametrize(("ran", "status"), [(True, "failed"), (False, "queued")])
async def test_a_program_that_was_never_started_is_started_again_whatever_was_asked_for(
    left: Left, ran: bool, status: str
) -> None:
    left.place(state=PodState.ENDED, outcome=IMAGE, ran=ran)
    await left.pass_time(60)
    assert (await left.execution()).status == status


async def test_a_clock_that_is_ahead_takes_no_living_worker_for_dead(left: Left) -> None:
    left.place(state=PodState.ENDED, outcome=OOM)
    left.clock.jump(3600)
    for _ in range(12):
        left.clock.jump(-3600)
        left.extend()
        left.clock.jump(3600)
        await left.pass_time(10)
    assert (await left.execution()).live


async def test_an_execution_without_a_pod_is_lost_when_no_program_of_it_can_run_any_more(left: Left) -> None:
    await left.pass_time(60, extended=True)
    assert (await left.execution()).live
    await left.pass_time(DEAD.total_seconds() - 1)
    assert (await left.execution()).live
    await left.pass_time(3)
    assert (await left.execution()).history[-1].reason == "pod_lost"


async def test_a_pod_that_is_not_seen_yet_and_is_there_counts(left: Left) -> None:
    left.place()
    left.placed.hidden = True
    await left.pass_time(120)
    assert (await left.execution()).live


async def test_what_another_looks_after_is_left_to_it_from_then_on(left: Left) -> None:
    await left.pass_time(30)
    left.placed.ours = False
    await left.pass_time(120)
    assert (await left.execution()).live
    left.placed.ours = True
    await left.pass_time(DEAD.total_seconds() + LIST_S + 1)
    assert not (await left.execution()).live


async def test_nothing_is_decided_while_the_pods_are_not_known(left: Left) -> None:
    left.placed.known = False
    await left.pass_time(120)
    assert (await left.execution()).live


async def test_pods_of_nothing_are_deleted_and_by_force_when_they_do_not_go(left: Left) -> None:
    other = PodKey(ExecutionId("unknown"), 1)
    left.placed.pods = [a_pod(other)]
    await left.pass_time(LOOK_S)
    assert left.placed.deleted == []
    await left.pass_time(1)
    assert left.placed.deleted == [("pod-1", False)]
    left.placed.pods = [a_pod(other, leaving=True)]
    await left.pass_time(STUCK_S)
    assert left.placed.deleted == [("pod-1", False)]
    await left.pass_time(1)
    assert left.placed.deleted[1] == ("pod-1", True)


async def test_a_pod_that_runs_is_left_to_the_lease_of_its_execution(left: Left) -> None:
    left.place()
    await left.pass_time(200)
    assert (await left.execution()).live
    assert left.placed.deleted == []


def test_executions_are_spread_over_all_partitions() -> None:
    found = [partition_of(ExecutionId(f"019ab-{number}"), 8) for number in range(800)]
    assert set(found) == set(range(8))
    assert all(60 < found.count(number) < 140 for number in range(8))
