"""Each thing that a crash or a lost message can leave, and how it comes to its one end."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from runtape.application import sweeping
from runtape.domain import execution as executions
from runtape.domain.events import ExecutionEvent, Priority, StoredResult
from runtape.domain.execution import LEASE_GRACE, Execution, OnInterrupt, evolve_all
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import Status
from runtape.domain.saga import Saga, SagaStep
from runtape.ports.admission import Entry
from runtape.ports.errors import Transient
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import NEVER, ExecutionStore, TapeSealed
from tests.application.world import CAPACITY, World, a_world
from tests.builders import EXECUTION, LOST, OWNER, an_execution, ended, records, requested, started
from tests.clocks import START, CountingIds
from tests.contract.embedded.basic import quick_place
from tests.contract.suites.stores import change, over, saga_of

SCRIPT = "print again"
KEY = PodKey(EXECUTION, 1)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture(params=[True, False], ids=["fused", "stepwise"])
def fused(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
async def world(folder: Path, fused: bool) -> AsyncIterator[World]:
    """A process that is running, with nothing to do."""
    async with a_world(folder, fused=fused) as world:
        await world.start()
        yield world


def waiting(**changes: Any) -> Execution:
    return requested(an_execution(script=SCRIPT, **changes))


def cancelling() -> Execution:
    execution = started(waiting())
    asked = executions.cancel(execution, "alice", None, START)
    return evolve_all(execution, [each for each in asked if isinstance(each, ExecutionEvent)])


def saga_at(step: SagaStep, attempt: int = 1) -> Saga:
    due_at = START + timedelta(seconds=30)
    saga = saga_of(waiting())
    if step is SagaStep.QUEUE:
        return saga
    return replace(saga, version=3, step=step, attempt=attempt, due_at=None if step is SagaStep.DONE else due_at)


def third(execution: Execution) -> Execution:
    for _ in range(2):
        execution = started(ended(execution, LOST))
    return execution


async def leave(world: World, *documents: Execution | Saga, printed: Sequence[str] = ()) -> None:
    """Store documents without a word to anybody, and a tape of the first attempt."""
    await world.stores.unit_of_work.commit([change(document, 0) for document in documents])
    if printed:
        await world.stores.tape.append(KEY, records(*printed))


AGAIN = ("completed", "exited", None)

CRASHES: dict[str, tuple[list[Execution | Saga], Sequence[str], tuple[str, str, str | None], int]] = {
    "accepted": ([waiting()], (), AGAIN, 1),
    "waiting in line": ([waiting(), saga_at(SagaStep.QUEUE)], (), AGAIN, 1),
    "admitted": ([waiting(), saga_at(SagaStep.CREATE)], (), AGAIN, 1),
    "leased, the saga not told": ([started(waiting()), saga_at(SagaStep.CREATE)], (), AGAIN, 2),
    "running": ([started(waiting()), saga_at(SagaStep.MONITOR)], ["a", "b"], AGAIN, 2),
    "running without a saga": ([started(waiting())], ["a"], AGAIN, 2),
    "running, not to be run again": (
        [started(waiting(on_interrupt=OnInterrupt.FAIL)), saga_at(SagaStep.MONITOR)],
        ["a"],
        ("failed", "sandbox_error", "worker_lost"),
        1,
    ),
    "running for the last time": (
        [third(started(waiting())), saga_at(SagaStep.MONITOR, 3)],
        (),
        ("failed", "sandbox_error", "worker_lost"),
        3,
    ),
    "being cancelled": ([cancelling(), saga_at(SagaStep.MONITOR)], ["a"], ("cancelled", "cancelled", "cancelled"), 1),
    "restarted, the saga not told": (
        [ended(started(waiting()), LOST), saga_at(SagaStep.MONITOR)],
        (),
        AGAIN,
        2,
    ),
    "restarted, the saga told": ([ended(started(waiting()), LOST), saga_at(SagaStep.CREATE, 2)], (), AGAIN, 2),
    "ended": ([ended(started(waiting()), last_seq=2), saga_at(SagaStep.MONITOR)], ["a", "b"], AGAIN, 1),
    "ended, the saga told": ([ended(started(waiting()), last_seq=1), saga_at(SagaStep.STORE)], ["a"], AGAIN, 1),
    "ended before its tape was": (
        [ended(started(waiting()), last_seq=3), saga_at(SagaStep.STORE)],
        ["a", "b"],
        ("failed", "sandbox_error", "output_lost"),
        1,
    ),
    "stored, the saga not told": ([over(started(waiting())), saga_at(SagaStep.STORE)], (), AGAIN, 1),
}


async def assert_over(world: World, expected: tuple[str, str, str | None], attempt: int) -> Execution:
    execution = await world.until_stored(EXECUTION)
    assert execution.outcome is not None
    assert (execution.status, execution.outcome.kind, execution.outcome.reason) == expected
    assert execution.attempt == attempt

    async def saga_done() -> bool:
        saga = await world.stores.sagas.get(EXECUTION)
        return saga is None or saga.step is SagaStep.DONE

    await world.until(saga_done)
    await world.until_quiet()
    assert await world.pods.list() == []
    terminal = {"execution.completed", "execution.failed", "execution.timeout", "execution.cancelled"}
    assert sum(step.type in terminal for step in execution.history) == 1
    return execution


async def assert_places_are_free(world: World) -> None:
    ids = [await world.submit("wait go") for _ in range(CAPACITY.running)]
    for each in ids:
        await world.until_status(each, "running")
    world.pods.let("go")
    for each in ids:
        await world.until_stored(each)


@pytest.mark.parametrize("name", CRASHES)
async def test_the_next_process_takes_up_what_a_dead_one_left(name: str, folder: Path, fused: bool) -> None:
    documents, printed, expected, attempt = CRASHES[name]
    async with a_world(folder, owner="dead") as dead:
        await leave(dead, *documents, printed=printed)
    async with a_world(folder, fused=fused, owner="worker-2") as world:
        await world.start()
        execution = await assert_over(world, expected, attempt)
        if expected is AGAIN and PodKey(EXECUTION, attempt) in world.pods.started:
            assert await world.printed(EXECUTION, attempt) == b"again\n"
        else:
            assert await world.printed(EXECUTION) == "".join(printed).encode()
        assert [key.execution_id for key in world.pods.started].count(EXECUTION) <= 1
        await assert_places_are_free(world)
    async with a_world(folder, fused=fused, owner="worker-3", ids=CountingIds()) as world:
        await world.start()
        await world.until_quiet()
        assert await world.get(EXECUTION) == execution, "a third process finds nothing to do"
        assert world.pods.started == []


async def test_a_saga_whose_execution_is_gone_ends(folder: Path, fused: bool) -> None:
    async with a_world(folder, fused=fused) as world:
        await leave(world, saga_at(SagaStep.CREATE), replace(saga_at(SagaStep.QUEUE), execution_id=ExecutionId("two")))
        await world.start()
        await world.until_quiet()
        world.clock.advance(3600)
        for _ in range(3):
            await world.sweeper.sweep()
            world.clock.advance(61)
        saga = await world.stores.sagas.get(EXECUTION)
        assert saga is not None
        assert saga.step is SagaStep.DONE
        await assert_places_are_free(world)


async def test_recovery_is_idempotent_and_takes_more_than_a_page(folder: Path, fused: bool) -> None:
    count = 450
    async with a_world(folder, owner="dead") as dead:
        for number in range(count):
            name = f"e{number:04d}"
            execution = requested(an_execution(name, script=SCRIPT))
            saga = replace(saga_at(SagaStep.CREATE), execution_id=execution.id)
            await leave(dead, started(execution) if number % 2 else execution, saga)
    async with a_world(folder, fused=fused, owner="worker-2") as world:
        await world.sweeper.recover(world.owner)
        await world.start()
        for number in range(count):
            execution = await world.until_stored(ExecutionId(f"e{number:04d}"))
            assert (execution.status, execution.attempt) == ("completed", 1 + number % 2)
        assert len(world.pods.started) == len(set(world.pods.started)) == count


LOSSES: dict[str, tuple[list[Execution | Saga], float, tuple[str, str, str | None], int]] = {
    "the request": ([waiting()], 31, AGAIN, 1),
    "the place in line": ([waiting(), saga_at(SagaStep.QUEUE)], 31, AGAIN, 1),
    "the command to create": ([waiting(), saga_at(SagaStep.CREATE)], 31, AGAIN, 1),
    "the start of the program": ([started(waiting()), saga_at(SagaStep.MONITOR)], 37, AGAIN, 2),
    "the restart": ([ended(started(waiting()), LOST), saga_at(SagaStep.MONITOR)], 33, AGAIN, 2),
    "the second command to create": ([ended(started(waiting()), LOST), saga_at(SagaStep.CREATE, 2)], 33, AGAIN, 2),
    "the end": ([ended(started(waiting())), saga_at(SagaStep.MONITOR)], 18, AGAIN, 1),
    "the kill": ([cancelling(), saga_at(SagaStep.MONITOR)], 37, ("cancelled", "cancelled", "cancelled"), 1),
}


@pytest.mark.parametrize("name", LOSSES)
async def test_a_lost_message_costs_delay_and_nothing_else(name: str, world: World) -> None:
    documents, seconds, expected, attempt = LOSSES[name]
    await leave(world, *documents)
    before = next(document for document in documents if isinstance(document, Execution))
    world.clock.advance(seconds - 5)
    await world.sweeper.sweep()
    await world.until_quiet()
    assert await world.get(EXECUTION) == before, "not yet"
    world.clock.advance(5)
    await world.sweeper.sweep()
    await world.until_quiet()
    world.clock.advance(61)  # the saga's own time, where the event was lost on its way to it
    await world.sweeper.sweep()
    await world.sweeper.sweep()
    await assert_over(world, expected, attempt)
    await assert_places_are_free(world)


async def test_the_end_of_a_saga_that_was_never_told_frees_the_place(world: World) -> None:
    """Only ``result.stored`` arrives: the event of the end was lost."""
    held = replace(saga_at(SagaStep.MONITOR), execution_id=EXECUTION)
    await world.queue.restore([Entry(EXECUTION, held.project_id, held.lang, held.priority, START)], admitted=True)
    await leave(world, over(started(waiting())), held)
    result = StoredResult(stdout_sha256="", stderr_sha256="")
    (told,) = executions.store_result(ended(started(waiting())), result, START)
    await world.flow.handle(world.admission.on_event, told)
    await world.until_quiet()
    await assert_places_are_free(world)


async def test_a_saga_that_waits_and_was_told_of_no_end_is_over_once_its_turn_comes(world: World) -> None:
    cancelled = waiting()
    asked = executions.cancel(cancelled, "alice", None, START)
    cancelled = evolve_all(cancelled, [each for each in asked if isinstance(each, ExecutionEvent)])
    saga = saga_at(SagaStep.QUEUE)
    await leave(world, over(cancelled), saga)
    await world.queue.enqueue(Entry(EXECUTION, saga.project_id, saga.lang, saga.priority, START))
    await world.admission.admit_waiting()
    await world.until_quiet()
    world.clock.advance(61)
    await world.sweeper.sweep()
    found = await world.stores.sagas.get(EXECUTION)
    assert found is not None
    assert found.step is SagaStep.DONE
    await assert_places_are_free(world)


async def test_a_place_is_kept_while_nobody_can_tell_whether_its_saga_was_stored(folder: Path) -> None:
    """The commit fails, and so does the look at what it did."""

    class Failing(Stale):
        async def commit(self, changes: Any, handled_by: Any = frozenset()) -> None:
            await self._inner.commit(changes, handled_by)  # pyright: ignore[reportAttributeAccessIssue]
            sagas.fails = True
            raise Transient("no answer")

        async def get(self, execution_id: ExecutionId) -> Any:
            if self.fails:
                self.fails = False
                raise Transient("no answer")
            return await self._inner.get(execution_id)

        fails = False

    def wrap(stores: Any) -> Any:
        nonlocal sagas
        sagas = Failing(stores.sagas)
        return replace(stores, sagas=sagas, unit_of_work=Failing(stores.unit_of_work))

    sagas: Any = None
    async with a_world(folder, wrap=wrap) as world:
        with pytest.raises(Transient):
            await world.submit()
        assert len(await world.queue.held(-1)) == 1


class Stale:
    """An `ExecutionStore` whose ``due`` answers with what it was told, as a slow read would."""

    def __init__(self, inner: ExecutionStore) -> None:
        self._inner = inner
        self.answers: list[Execution] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def due(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Sequence[Execution]:
        answers, self.answers = self.answers, []
        return answers or await self._inner.due(before, limit, beyond)


@pytest.fixture
async def slow(folder: Path, fused: bool) -> AsyncIterator[tuple[World, Stale]]:
    made: list[Stale] = []

    def wrap(stores: Any) -> Any:
        made.append(Stale(stores.executions))
        return replace(stores, executions=made[0])

    async with a_world(folder, fused=fused, wrap=wrap) as world:
        await world.start()
        yield world, made[0]


async def test_an_attempt_whose_lease_was_extended_meanwhile_is_left_alone(slow: tuple[World, Stale]) -> None:
    world, stale = slow
    execution_id = await world.submit("wait go\nprint done")
    running = await world.until_status(execution_id, "running")
    await world.until_started(PodKey(execution_id, 1))
    world.clock.advance(40)
    await world.stores.executions.extend_lease([PodKey(execution_id, 1)], world.owner, world.clock.now() + LEASE_GRACE)
    for _ in range(2):
        stale.answers = [running]
        await world.sweeper.sweep()
        world.clock.advance(40)
    world.pods.let("go")
    assert (await world.until_stored(execution_id)).attempt == 1


@pytest.mark.parametrize("seconds", [3600, -3600])
async def test_an_attempt_whose_lease_is_extended_outlives_any_jump_of_the_wall_clock(
    world: World, seconds: float
) -> None:
    execution_id = await world.submit("wait go\nprint done")
    await world.until_started(PodKey(execution_id, 1))
    world.clock.jump(seconds)
    for _ in range(12):
        await world.sweeper.sweep()
        world.clock.advance(10)
        await world.stores.executions.extend_lease([PodKey(execution_id, 1)], world.owner, world.clock.now())
    world.pods.let("go")
    assert (await world.until_stored(execution_id)).attempt == 1


async def test_a_lease_that_nobody_extends_ends_in_its_own_time_wherever_its_end_was_written(world: World) -> None:
    world.clock.jump(3600)
    await leave(world, started(waiting()), saga_at(SagaStep.MONITOR))
    await world.stores.executions.extend_lease([KEY], OWNER, world.clock.now() + timedelta(hours=1))
    world.clock.jump(-3600)
    await world.sweeper.sweep()
    world.clock.advance(34)
    await world.sweeper.sweep()
    assert (await world.get(EXECUTION)).attempt == 1, "it may be alive"
    world.clock.advance(1)
    await world.sweeper.sweep()
    await assert_over(world, AGAIN, 2)


async def test_a_process_that_is_not_alone_leaves_the_attempts_of_others_to_their_leases(folder: Path) -> None:
    async with a_world(folder) as world:
        await leave(world, started(waiting()), saga_at(SagaStep.MONITOR))
        await world.sweeper.recover("worker-2", alone=False)
        assert (await world.get(EXECUTION)).version == 2


async def test_who_follows_a_worker_takes_what_it_ran_for_lost_at_once(folder: Path) -> None:
    async with a_world(folder, owner="dead") as dead:
        await leave(dead, started(waiting()), saga_at(SagaStep.MONITOR))
    async with a_world(folder, owner="worker-2") as world:
        await world.sweeper.succeed(["another"])
        assert (await world.get(EXECUTION)).version == 2, "it is another's"
        await world.sweeper.succeed(["another", "worker-1"])
        taken = await world.get(EXECUTION)
        assert taken.version > 2
        assert taken.lease is None or taken.lease.owner == "worker-2"
        await world.sweeper.succeed(["another", "worker-1"])
        assert await world.get(EXECUTION) == taken


async def test_what_a_lost_attempt_prints_later_is_on_no_tape_and_in_no_stream(world: World) -> None:
    """Its recorder stood still while its lease ran out, and goes on after the next attempt has begun."""
    execution_id = await world.submit("print a\nwait go\nprint b")
    execution = await world.until_status(execution_id, "running")
    key = PodKey(execution_id, 1)

    async def recorded() -> bool:
        return await world.printed(execution_id) == b"a\n"

    await world.until(recorded)
    assert execution.lease is not None
    await world.monitor.interrupt(execution_id, 1, "lease_expired")
    with pytest.raises(TapeSealed):
        await world.stores.tape.append(key, records("late", first_seq=2))
    world.pods.let("go")
    assert (await world.until_stored(execution_id)).attempt == 2
    assert await world.printed(execution_id) == b"a\n"


async def test_places_that_nobody_gave_back_are_free_again(world: World) -> None:
    """The effects that would have released them were lost with an answer, and one grant before it was stored."""
    await leave(world, over(started(waiting())), saga_at(SagaStep.DONE))
    waits = ExecutionId("two")
    await leave(
        world, requested(an_execution(waits, script=SCRIPT)), replace(saga_at(SagaStep.QUEUE), execution_id=waits)
    )
    project_id = saga_at(SagaStep.QUEUE).project_id
    held = [Entry(each, project_id, "python", Priority.NORMAL, START) for each in (EXECUTION, waits)]
    await world.queue.restore(held, admitted=True)
    await world.sweeper.sweep()
    assert len(await world.queue.held(-1)) == 2, "their sagas may be on their way"
    world.clock.advance(11)
    await world.sweeper.sweep()
    await world.until_stored(waits)
    await world.until_quiet()
    await assert_places_are_free(world)


async def test_an_execution_that_started_since_it_was_found_overdue_is_left_alone(slow: tuple[World, Stale]) -> None:
    world, stale = slow
    execution_id = await world.submit("wait go\nprint done")
    running = await world.until_status(execution_id, "running")
    stale.answers = [running, requested(replace(running, version=0, history=(), status=Status.QUEUED))]
    await world.sweeper.sweep()
    world.pods.let("go")
    execution = await world.until_stored(execution_id)
    assert execution.attempt == 1
    assert world.pods.started == [PodKey(execution_id, 1)]


@pytest.mark.parametrize("count", [1, sweeping.PAGE, 2 * sweeping.PAGE])
async def test_documents_that_cannot_be_looked_after_do_not_hold_up_the_others(folder: Path, count: int) -> None:
    class Broken(Stale):
        async def defer(self, execution: Execution, due_at: datetime) -> None:
            if execution.id.startswith("bad"):
                raise RuntimeError("broken")
            await self._inner.defer(execution, due_at)

    async with a_world(folder, wrap=lambda s: replace(s, executions=Broken(s.executions))) as world:
        await world.start()
        await leave(world, *(requested(an_execution(f"bad-{number}")) for number in range(count)))
        await leave(world, replace(waiting(), due_at=START + timedelta(seconds=31)))
        world.clock.advance(32)
        with capture_logs() as logged:  # a printed traceback takes a third of a second
            await world.sweeper.sweep()
        assert [entry["event"] for entry in logged].count("sweep.document_failed") == count
        await assert_over(world, AGAIN, 1)


async def test_a_long_line_is_looked_at_more_and_more_rarely_and_never_swamps_the_sweeper(
    folder: Path, fused: bool
) -> None:
    looked: list[int] = []

    class Counted(Stale):
        async def defer(self, execution: Execution, due_at: datetime) -> None:
            looked[-1] += 1
            await self._inner.defer(execution, due_at)

    capacity = replace(CAPACITY, running=1, queued=2000, queued_per_project=2000)
    async with a_world(
        folder, fused=fused, capacity=capacity, wrap=lambda s: replace(s, executions=Counted(s.executions))
    ) as world:
        await world.start()
        first = await world.submit("wait go")
        await world.until_status(first, "running")
        line = [f"e{number:05d}" for number in range(600)]
        await world.stores.unit_of_work.commit(
            [change(document, 0) for name in line for document in in_line(requested(an_execution(name)))]
        )
        for _ in range(12):
            looked.append(0)
            world.clock.advance(31)
            await extend(world, first)
            await world.sweeper.sweep()
        assert looked[0] == 600, "all of them in one sweep"
        assert sum(looked) <= 5 * 600
        assert len(await world.queue.front(1000)) == 600
        assert (await world.get(first)).attempt == 1


def in_line(execution: Execution) -> list[Execution | Saga]:
    return [execution, replace(saga_of(execution), execution_id=execution.id)]


async def extend(world: World, execution_id: ExecutionId) -> None:
    await world.stores.executions.extend_lease(
        [PodKey(execution_id, 1)], world.owner, world.clock.now() + timedelta(seconds=90)
    )


async def test_blobs_of_nobody_are_swept_and_those_in_use_stay(world: World) -> None:
    used = await world.submit("print 1\n" + "# " + "x" * 5000 + "\nwait go")
    await world.until_status(used, "running")
    orphan = await world.stores.blobs.put(b"orphan")
    world.clock.advance(7200)
    assert await world.stores.blobs.sweep(world.clock.now() - timedelta(hours=1)) == 1
    assert await world.stores.blobs.get(orphan) is None
    assert (await world.get(used)).source.blob_sha256 is not None


def test_every_step_of_a_saga_is_left_behind_above() -> None:
    left = [document for documents, *_ in CRASHES.values() for document in documents]
    assert {document.step for document in left if isinstance(document, Saga)} == set(SagaStep) - {
        SagaStep.ALLOCATE,  # no saga rests there
        SagaStep.DONE,
    }
