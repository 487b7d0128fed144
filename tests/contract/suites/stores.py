"""What every `ExecutionStore`, `SagaStore` and `UnitOfWork` does."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from runtape.domain import execution as executions
from runtape.domain import saga as sagas
from runtape.domain.events import ExecutionEvent, ExecutionRequested, Message, StoredResult
from runtape.domain.execution import LEASE_GRACE, Execution, Idempotency, evolve_all
from runtape.domain.ids import ExecutionId, ProjectId, UserId
from runtape.domain.outcome import Status, TimelinePoint
from runtape.domain.saga import Saga, SagaStep
from runtape.ports.admission import GateStore
from runtape.ports.dead_letters import DeadLetterStore
from runtape.ports.errors import VersionConflict
from runtape.ports.events import Archival, EventStore
from runtape.ports.identity import IdentityStore
from runtape.ports.log import Delivery, EventLog
from runtape.ports.notifications import NotificationStore
from runtape.ports.pod_runtime import PodKey
from runtape.ports.replay import DocumentHistories, EventIndex, EventSource, ReplayFiles, ReplaySessionStore
from runtape.ports.retention import Expirable
from runtape.ports.stores import (
    BlobStore,
    Change,
    Durability,
    ExecutionFilter,
    ExecutionStore,
    IdempotencyKeyTaken,
    SagaStore,
    TapeStore,
    UnitOfWork,
)
from tests.builders import ALICE, OWNER, PROJECT, an_execution, ended, requested, started
from tests.clocks import START, ManualClock


@dataclass(frozen=True)
class Stores:
    """One adapter's stores over the same data."""

    executions: ExecutionStore
    sagas: SagaStore
    unit_of_work: UnitOfWork
    tape: TapeStore
    blobs: BlobStore
    log: EventLog
    events: EventStore
    gates: GateStore
    identity: IdentityStore
    dead_letters: DeadLetterStore
    notifications: NotificationStore
    replay: "ReplayStores"
    clock: ManualClock
    expirable: Mapping[str, Expirable]


@dataclass(frozen=True)
class ReplayStores:
    """What replay sessions need."""

    sessions: ReplaySessionStore
    source: EventSource
    index: EventIndex
    histories: DocumentHistories
    files: ReplayFiles


class StoresBasic(ABC):
    """The seam: an adapter's `basic.py` says how its stores are made."""

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[Stores]:
        """Open the stores over what the previous ones of this test left behind, as a new process would."""

    @pytest.fixture
    async def stores(self) -> AsyncIterator[Stores]:
        async with self.open() as stores:
            yield stores


ARCHIVAL = Archival("admin", START, "nobody needs it")


def change(document: Execution | Saga, expected_version: int, *messages: Message) -> Change:
    return Change(
        document=document, expected_version=expected_version, messages=messages, durability=Durability.PROCESS
    )


def acceptance(execution: Execution) -> Change:
    """Return the change that accepts `execution`, with its event."""
    return change(requested(execution), 0, *executions.request(execution, START))


async def stored(stores: Stores, *documents: Execution | Saga) -> None:
    """Store new documents as they are."""
    await stores.unit_of_work.commit([change(document, 0) for document in documents])


async def moved(stores: Stores, before: Execution, after: Execution) -> Execution:
    await stores.unit_of_work.commit([change(after, before.version)])
    return after


def saga_of(execution: Execution) -> Saga:
    (event,) = executions.request(execution, START)
    assert isinstance(event, ExecutionRequested)
    return sagas.begin(event)


def over(execution: Execution) -> Execution:
    """Return the execution with its result stored: nothing is left to do."""
    if execution.outcome is None:
        execution = ended(execution if execution.live else started(execution))
    result = StoredResult(stdout_sha256="", stderr_sha256="")
    return evolve_all(execution, executions.store_result(execution, result, START))


def ids(found: Sequence[Execution]) -> list[str]:
    return [execution.id for execution in found]


class UnitOfWorkContract(StoresBasic):
    async def test_a_new_document_is_read_as_it_was_written(self, stores: Stores) -> None:
        execution = over(started(requested(an_execution(key="k"))))
        await stored(stores, execution)
        assert await stores.executions.get(execution.id) == execution

    async def test_a_timeline_is_read_as_it_was_written(self, stores: Stores) -> None:
        points = (TimelinePoint(1, 2, 3), TimelinePoint(4, 5, 6))
        execution = replace(over(started(requested(an_execution()))), timeline=points)
        await stored(stores, replace(execution, spec=replace(execution.spec, timeline=True)))
        found = await stores.executions.get(execution.id)
        assert found is not None
        assert (found.timeline, found.spec.timeline) == (points, True)

    async def test_every_state_of_an_execution_outlives_the_process(self) -> None:
        states = [
            replace(make(requested(an_execution(f"execution-{number}"))), version=number)
            for number, make in enumerate((lambda e: e, started, lambda e: ended(started(e)), over), 1)
        ]
        saga = saga_of(an_execution())
        async with self.open() as stores:
            await stored(stores, *states, saga)
        async with self.open() as stores:
            assert [await stores.executions.get(state.id) for state in states] == states
            assert await stores.sagas.get(saga.execution_id) == saga

    async def test_what_is_not_there_is_none(self, stores: Stores) -> None:
        assert await stores.executions.get(ExecutionId("nobody")) is None
        assert await stores.sagas.get(ExecutionId("nobody")) is None

    async def test_a_change_of_another_version_is_refused_and_changes_nothing(self, stores: Stores) -> None:
        execution = requested()
        await stored(stores, execution)
        for expected in (0, 2, 7):
            with pytest.raises(VersionConflict):
                await stores.unit_of_work.commit([change(started(execution), expected)])
        assert await stores.executions.get(execution.id) == execution

    async def test_a_new_saga_is_refused_when_there_is_one(self, stores: Stores) -> None:
        saga = saga_of(an_execution())
        await stored(stores, saga)
        with pytest.raises(VersionConflict):
            await stored(stores, saga)
        with pytest.raises(VersionConflict):
            await stores.unit_of_work.commit([change(replace(saga, version=5), 4)])

    async def test_of_two_changes_of_one_version_one_wins(self, stores: Stores) -> None:
        execution = started()
        await stored(stores, execution)
        rivals = [replace(ended(execution), last_seq=number) for number in range(5)]
        answers = await asyncio.gather(*(moved(stores, execution, rival) for rival in rivals), return_exceptions=True)
        winners = [answer for answer in answers if isinstance(answer, Execution)]
        assert len(winners) == 1
        assert [type(answer) for answer in answers if answer not in winners] == [VersionConflict] * 4
        assert await stores.executions.get(execution.id) == winners[0]

    async def test_successive_changes_of_one_document_commit_together(self, stores: Stores) -> None:
        first = requested()
        second = started(first)
        await stores.unit_of_work.commit([change(first, 0), change(second, 1), change(ended(second), 2)])
        assert await stores.executions.get(first.id) == ended(second)

    async def test_a_cancelled_caller_leaves_no_stale_document_behind(self, stores: Stores) -> None:
        execution = requested()
        await stored(stores, execution)
        for _ in range(3):  # wherever the cancellation hits, what is read is what is stored
            task = asyncio.create_task(moved(stores, execution, started(execution)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await stored(stores, requested(an_execution("barrier")))
        read = await stores.executions.get(execution.id)
        assert read is not None
        await moved(stores, read, replace(read, version=read.version + 1))


class AtomicCommitContract(StoresBasic):
    """What a `UnitOfWork` does that can write several documents, and the log, in one step."""

    async def test_a_change_that_is_refused_takes_the_whole_commit_with_it(self, stores: Stores) -> None:
        held = requested(an_execution("held"))
        await stored(stores, held)
        fresh = acceptance(an_execution("fresh"))
        with pytest.raises(VersionConflict):
            await stores.unit_of_work.commit([fresh, change(started(held), 9)])
        assert await stores.executions.get(ExecutionId("fresh")) is None
        await stores.unit_of_work.commit([acceptance(an_execution("later"))])
        async for delivery in stores.log.consume("group", [fresh.messages[0].topic]):
            assert isinstance(delivery, Delivery)
            assert delivery.message.execution_id == "later"
            return


class IdempotencyContract(StoresBasic):
    async def test_a_key_is_held_by_one_execution_of_the_user(self, stores: Stores) -> None:
        await stored(stores, requested(an_execution("first", key="k")))
        with pytest.raises(IdempotencyKeyTaken):
            await stored(stores, requested(an_execution("second", key="k")))
        assert await stores.executions.get(ExecutionId("second")) is None
        holder = await stores.executions.by_idempotency_key(ALICE, "k")
        assert holder is not None
        assert holder.id == "first"

    async def test_users_do_not_share_keys(self, stores: Stores) -> None:
        await stored(stores, requested(an_execution("first", key="k")))
        await stored(stores, requested(an_execution("second", key="k", user_id=UserId("bob"))))
        holder = await stores.executions.by_idempotency_key(UserId("bob"), "k")
        assert holder is not None
        assert holder.id == "second"
        assert await stores.executions.by_idempotency_key(UserId("carol"), "k") is None

    async def test_of_many_with_one_key_exactly_one_is_stored(self, stores: Stores) -> None:
        answers = await asyncio.gather(
            *(stored(stores, requested(an_execution(f"e{number}", key="k"))) for number in range(8)),
            return_exceptions=True,
        )
        assert sum(answer is None for answer in answers) == 1
        assert sum(isinstance(answer, IdempotencyKeyTaken) for answer in answers) == 7
        assert len(await stores.executions.list(ExecutionFilter(), 10, None)) == 1

    async def test_a_released_key_is_free_and_the_version_stays(self, stores: Stores) -> None:
        first = requested(an_execution("first", key="k"))
        await stored(stores, first)
        await stores.executions.release_idempotency_key(first)
        assert await stores.executions.by_idempotency_key(ALICE, "k") is None
        await stored(stores, requested(an_execution("second", key="k")))
        await moved(stores, first, started(first))

    async def test_releasing_again_does_not_take_the_key_from_the_next_holder(self, stores: Stores) -> None:
        first = requested(an_execution("first", key="k"))
        await stored(stores, first)
        await stores.executions.release_idempotency_key(first)
        await stored(stores, requested(an_execution("second", key="k")))
        await stores.executions.release_idempotency_key(first)
        holder = await stores.executions.by_idempotency_key(ALICE, "k")
        assert holder is not None
        assert holder.id == "second"

    async def test_later_changes_keep_the_key(self, stores: Stores) -> None:
        first = requested(an_execution("first", key="k"))
        await stored(stores, first)
        await moved(stores, first, over(started(first)))
        holder = await stores.executions.by_idempotency_key(ALICE, "k")
        assert holder is not None
        assert holder.status is Status.COMPLETED
        assert holder.idempotency == Idempotency("k", "digest", START + timedelta(hours=24))


class LeaseContract(StoresBasic):
    async def test_an_extension_moves_the_lease_and_not_the_version(self) -> None:
        execution = started()
        key = PodKey(execution.id, 1)
        expires_at = START + timedelta(seconds=99)
        async with self.open() as stores:
            await stored(stores, execution)
            assert list(await stores.executions.extend_lease([key], OWNER, expires_at)) == [key]
            await self.is_extended(stores, execution, expires_at)
        async with self.open() as stores:
            await self.is_extended(stores, execution, expires_at)

    async def is_extended(self, stores: Stores, execution: Execution, expires_at: object) -> None:
        found = await stores.executions.get(execution.id)
        assert found is not None
        assert found.lease is not None
        assert (found.version, found.lease.expires_at) == (execution.version, expires_at)
        assert found.due_at == found.lease.expires_at + LEASE_GRACE

    @pytest.mark.parametrize(
        ("execution", "attempt", "owner"),
        [(started(), 1, "worker-2"), (started(), 2, OWNER), (ended(), 1, OWNER), (requested(), 0, OWNER)],
    )
    async def test_only_the_live_attempts_owner_extends(
        self, stores: Stores, execution: Execution, attempt: int, owner: str
    ) -> None:
        await stored(stores, execution)
        key = PodKey(execution.id, attempt)
        assert list(await stores.executions.extend_lease([key], owner, START + timedelta(hours=1))) == []
        assert await stores.executions.get(execution.id) == execution

    async def test_a_change_made_from_an_older_document_does_not_shorten_the_lease(self) -> None:
        execution = started()
        cancelling = evolve_all(
            execution,
            [m for m in executions.cancel(execution, "alice", None, START) if isinstance(m, ExecutionEvent)],
        )
        expires_at = START + timedelta(seconds=99)
        async with self.open() as stores:
            await stored(stores, execution)
            await stores.executions.extend_lease([PodKey(execution.id, 1)], OWNER, expires_at)
            await moved(stores, execution, cancelling)
            await self.is_extended(stores, cancelling, expires_at)
        async with self.open() as stores:
            await self.is_extended(stores, cancelling, expires_at)

    async def test_an_end_made_from_an_older_document_ends_the_lease(self) -> None:
        execution = started()
        async with self.open() as stores:
            await stored(stores, execution)
            await stores.executions.extend_lease([PodKey(execution.id, 1)], OWNER, START + timedelta(seconds=99))
            await moved(stores, execution, ended(execution))
            assert await stores.executions.get(execution.id) == ended(execution)
        async with self.open() as stores:
            assert await stores.executions.get(execution.id) == ended(execution)

    async def test_a_later_attempt_has_its_own_lease(self, stores: Stores) -> None:
        first = started()
        await stored(stores, first)
        await stores.executions.extend_lease([PodKey(first.id, 1)], OWNER, START + timedelta(seconds=99))
        lost = executions.interrupt(first, 1, "worker_lost", 0, START)
        waiting = await moved(stores, first, evolve_all(first, lost))
        second = await moved(stores, waiting, started(waiting, seconds=2))
        assert await stores.executions.get(first.id) == second


class DueContract(StoresBasic):
    async def test_the_longest_overdue_come_first_and_the_others_not(self, stores: Stores) -> None:
        for name, seconds in (("c", 3), ("a", 1), ("d", 9), ("b", 2)):
            await stored(stores, replace(requested(an_execution(name)), due_at=START + timedelta(seconds=seconds)))
        await stored(stores, over(requested(an_execution("over"))))
        assert ids(await stores.executions.due(START + timedelta(seconds=3), 10)) == ["a", "b", "c"]
        assert ids(await stores.executions.due(START + timedelta(seconds=3), 2)) == ["a", "b"]

    async def test_what_is_due_too_late_to_be_right_comes_last(self, stores: Stores) -> None:
        for name, seconds in (("far", 9999), ("b", 2), ("later", 99)):
            due_at = START + timedelta(seconds=seconds)
            execution = replace(requested(an_execution(name)), due_at=due_at)
            await stored(stores, execution, replace(saga_of(execution), execution_id=execution.id, due_at=due_at))
        now, beyond = START + timedelta(seconds=3), START + timedelta(seconds=600)
        assert ids(await stores.executions.due(now, 10, beyond)) == ["b", "far"]
        assert [saga.execution_id for saga in await stores.sagas.due(now, 10, beyond)] == ["b", "far"]

    async def test_what_was_deferred_is_due_later(self) -> None:
        execution = requested()
        async with self.open() as stores:
            await stored(stores, execution)
            await stores.executions.defer(execution, START + timedelta(hours=2))
            await self.is_due_after_two_hours(stores, execution)
        async with self.open() as stores:
            await self.is_due_after_two_hours(stores, execution)

    async def is_due_after_two_hours(self, stores: Stores, execution: Execution) -> None:
        assert await stores.executions.due(START + timedelta(hours=1), 10) == []
        (found,) = await stores.executions.due(START + timedelta(hours=2), 10)
        assert found == replace(execution, due_at=START + timedelta(hours=2))

    async def test_deferring_an_older_version_has_no_effect(self) -> None:
        execution = requested()
        live = started(execution)
        async with self.open() as stores:
            await stored(stores, execution)
            await moved(stores, execution, live)
            await stores.executions.defer(execution, START + timedelta(seconds=1))
            assert await stores.executions.get(execution.id) == live
            assert await stores.executions.due(START + timedelta(seconds=30), 10) == []
        async with self.open() as stores:
            assert await stores.executions.get(execution.id) == live
            assert await stores.executions.due(START + timedelta(seconds=30), 10) == []

    async def test_deferring_what_is_over_has_no_effect(self, stores: Stores) -> None:
        execution = over(requested())
        await stored(stores, execution)
        await stores.executions.defer(execution, START)
        assert await stores.executions.get(execution.id) == execution
        assert await stores.executions.due(START + timedelta(days=9), 10) == []

    async def test_a_change_that_races_a_deferral_wins(self, stores: Stores) -> None:
        execution = ended()
        await stored(stores, execution)
        await asyncio.gather(
            stores.executions.defer(execution, START + timedelta(hours=1)), moved(stores, execution, over(execution))
        )
        assert await stores.executions.get(execution.id) == over(execution)
        assert await stores.executions.due(START + timedelta(days=9), 10) == []

    async def test_all_unfinished_ones_are_found_after_a_restart(self) -> None:
        count = 1203  # more than two pages of any adapter so far
        async with self.open() as stores:
            await stored(stores, *(requested(an_execution(f"e{number:05d}")) for number in range(count)))
            await stored(stores, over(requested(an_execution("over"))))
        async with self.open() as stores:
            found = [execution.id async for execution in stores.executions.unfinished()]
            assert sorted(found) == [f"e{number:05d}" for number in range(count)]

    async def test_every_unfinished_one_is_found_although_others_change_meanwhile(self, stores: Stores) -> None:
        names = [f"e{number:04d}" for number in range(40)]
        await stored(stores, *(requested(an_execution(name)) for name in names))
        found: set[str] = set()
        async for execution in stores.executions.unfinished():
            found.add(execution.id)
            await stores.executions.defer(execution, START + timedelta(hours=1))
        assert found == set(names)


class ListContract(StoresBasic):
    @pytest.fixture
    async def three(self, stores: Stores) -> Stores:
        await stored(
            stores,
            requested(an_execution("e1", created_at=START)),
            over(started(requested(an_execution("e2", created_at=START + timedelta(hours=1))))),
            requested(an_execution("e3", created_at=START + timedelta(hours=2), user_id=UserId("bob"))),
        )
        return stores

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            (ExecutionFilter(), ["e3", "e2", "e1"]),
            (ExecutionFilter(user_id=ALICE), ["e2", "e1"]),
            (ExecutionFilter(user_id=ALICE, status=Status.COMPLETED), ["e2"]),
            (ExecutionFilter(project_id=PROJECT), ["e3", "e2", "e1"]),
            (ExecutionFilter(project_id=ProjectId("other")), []),
            (ExecutionFilter(lang="python"), ["e3", "e2", "e1"]),
            (ExecutionFilter(lang="perl"), []),
            (ExecutionFilter(created_from=START + timedelta(hours=1)), ["e3", "e2"]),
            (ExecutionFilter(created_before=START + timedelta(hours=1)), ["e1"]),
        ],
    )
    async def test_all_conditions_hold_and_the_newest_comes_first(
        self, three: Stores, where: ExecutionFilter, expected: list[str]
    ) -> None:
        assert ids(await three.executions.list(where, 10, None)) == expected

    async def test_pages_follow_one_another(self, three: Stores) -> None:
        assert ids(await three.executions.list(ExecutionFilter(), 2, None)) == ["e3", "e2"]
        assert ids(await three.executions.list(ExecutionFilter(), 2, ExecutionId("e2"))) == ["e1"]

    async def test_a_quote_in_a_filter_is_only_a_quote(self, three: Stores) -> None:
        assert await three.executions.list(ExecutionFilter(lang="' or 1 --"), 10, None) == []


class DeleteContract(StoresBasic):
    async def test_everything_of_the_execution_is_gone_and_nothing_else(self, stores: Stores) -> None:
        gone, stays = over(requested(an_execution("gone", key="k"))), over(requested(an_execution("stays")))
        await stored(stores, gone, stays, saga_of(gone), saga_of(stays))
        for execution in (gone, stays):
            await stores.tape.append(PodKey(execution.id, 1), [])
        for _ in range(2):
            await stores.executions.delete(gone.id, ARCHIVAL)
            assert await stores.executions.get(gone.id) is None
            assert await stores.sagas.get(gone.id) is None
            assert await stores.executions.by_idempotency_key(ALICE, "k") is None
        assert await stores.executions.get(stays.id) == stays
        assert await stores.sagas.get(stays.id) == saga_of(stays)


class SagaStoreContract(StoresBasic):
    async def test_unfinished_ones_come_oldest_first(self) -> None:
        async with self.open() as stores:
            for name in ("b", "a", "c", "d"):
                saga = saga_of(an_execution(name))
                await stored(stores, replace(saga, step=SagaStep.DONE) if name == "c" else saga)
        async with self.open() as stores:
            assert [saga.execution_id async for saga in stores.sagas.unfinished()] == ["a", "b", "d"]

    async def test_only_overdue_ones_are_due(self, stores: Stores) -> None:
        waiting = saga_of(an_execution("waiting"))
        await stored(stores, waiting)
        for name, seconds in (("late", 5), ("later", 7)):
            await stored(
                stores, replace(saga_of(an_execution(name)), step=SagaStep.CREATE, due_at=START + timedelta(0, seconds))
            )
        assert [saga.execution_id for saga in await stores.sagas.due(START + timedelta(seconds=6), 5)] == ["late"]
        assert [saga.execution_id for saga in await stores.sagas.due(START + timedelta(hours=6), 1)] == ["late"]

    async def test_the_newest_version_is_read_and_a_done_one_rests(self, stores: Stores) -> None:
        saga = saga_of(an_execution())
        await stored(stores, saga)
        admitted, _ = sagas.admit(saga, START)
        await stores.unit_of_work.commit([change(admitted, saga.version)])
        assert await stores.sagas.get(saga.execution_id) == admitted
        done = replace(admitted, version=3, step=SagaStep.DONE, due_at=None)
        await stores.unit_of_work.commit([change(done, 2)])
        assert await stores.sagas.get(saga.execution_id) == done
        assert [saga async for saga in stores.sagas.unfinished()] == []
        assert await stores.sagas.due(START + timedelta(days=1), 5) == []
