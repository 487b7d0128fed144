"""What the stores of replay sessions do, whoever carries them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from runtape.domain import replay
from runtape.domain.events import ExecutionEvent, Message, PodCreate
from runtape.domain.execution import Idempotency
from runtape.domain.ids import EventId, ExecutionId, ProjectId, UserId
from runtape.domain.outcome import Status
from runtape.domain.replay import (
    Advance,
    Fault,
    Pace,
    Preview,
    ReplaySession,
    ReplaySessionId,
    Selection,
    SessionStatus,
    Target,
    evolve_all,
)
from runtape.ports.errors import Transient, VersionConflict
from runtape.ports.events import EventFilter
from runtape.ports.log import Delivery
from runtape.ports.replay import ReplayedMessage
from tests.builders import an_execution, requested
from tests.clocks import START
from tests.contract.suites.events import after, run
from tests.contract.suites.log import TOPICS, Reader
from tests.contract.suites.stores import ARCHIVAL, Stores, StoresBasic, acceptance, over, saga_of, stored

EVERYTHING = Selection()
FAR = "1000000"


def a_session(name: str = "session-1", target: Target = Target.LOG, **changes: Any) -> ReplaySession:
    session = ReplaySession(
        id=ReplaySessionId(name),
        target=target,
        created_by="admin",
        created_at=START,
        preview=Preview(
            total=4, by_type={"execution.requested": 4}, sample=(EventId("one.1"),), first_at=START, last_at=START
        ),
        until="100",
        selection=Selection(types=("execution.requested",), happened_from=START, max_events=7),
        pace=Pace(2.5, preserve_timestamps=True),
    )
    return replace(session, **changes)


def running(name: str = "session-1", target: Target = Target.LOG) -> ReplaySession:
    session = a_session(name, target)
    return evolve_all(session, replay.start(session, START))


def ended_after(name: str, seconds: float) -> ReplaySession:
    session = running(name)
    return evolve_all(session, replay.fail(session, after(seconds), "why"))


async def copies(stores: Stores, *messages: Message) -> list[ReplayedMessage]:
    """Return the messages as they stand in the log."""
    found: list[ReplayedMessage] = []
    for message in messages:
        event = await stores.events.get(message.id)
        assert event is not None
        found.append(ReplayedMessage(message, event.body))
    return found


async def published(stores: Stores, *messages: Message, name: str = "session-1") -> ReplaySession:
    """Publish copies with a session of that name."""
    session = running(name)
    await stores.replay.sessions.create(session)
    step = evolve_all(session, replay.advance(session, Advance(position="4", replayed=len(messages))))
    await stores.replay.sessions.commit(step, session.version, await copies(stores, *messages))
    return step


async def walked(stores: Stores, selection: Selection, limit: int = 1000, until: str = FAR) -> list[str]:
    """Return the ids of all events that are selected, read in slices of up to `limit`."""
    found: list[str] = []
    position = ""
    await stores.replay.source.newest()
    while True:
        part = await stores.replay.source.read(selection, position, until, limit)
        found += [event.id for event in part.events]
        assert int(part.position) >= int(position or 0)
        position = part.position
        if part.complete:
            return found
        assert len(part.events) <= limit


async def all_of(reader: Reader, messages: Sequence[Message]) -> None:
    """Wait until the reader has all of these, and with them what stands before them in their topics."""
    for message in messages:
        await reader.until(message.id)


def ids_of(messages: Sequence[Message]) -> list[str]:
    return [message.id for message in messages]


class ReplaySessionStoreContract(StoresBasic):
    async def test_a_session_is_read_as_it_was_written(self, stores: Stores) -> None:
        sessions = stores.replay.sessions
        session = a_session()
        await sessions.create(session)
        assert await sessions.get(session.id) == session
        assert await sessions.get(ReplaySessionId("nobody")) is None

    async def test_what_was_committed_is_there_after_a_restart(self) -> None:
        async with self.open() as stores:
            sessions = stores.replay.sessions
            session = running()
            await sessions.create(session)
            step = Advance(
                position="17", replayed=1, failed=1, faults=(Fault("one.1", "why"),), file_bytes=9, last_at=after(3)
            )
            moved = evolve_all(session, replay.advance(session, step))
            await sessions.commit(moved, session.version)
        async with self.open() as stores:
            assert await stores.replay.sessions.get(session.id) == moved
            assert await stores.replay.sessions.running() == [moved]

    async def test_only_the_version_that_was_read_is_replaced(self, stores: Stores) -> None:
        sessions = stores.replay.sessions
        session = running()
        await sessions.create(session)
        paused = evolve_all(session, replay.pause(session, START))
        await sessions.commit(paused, session.version)
        stale = evolve_all(session, replay.advance(session, Advance(position="9")))
        told = await run(stores, "one")
        with pytest.raises(VersionConflict):
            await sessions.commit(stale, session.version, await copies(stores, *told))
        with pytest.raises(VersionConflict):
            await sessions.commit(running("nobody"), 1)
        assert await sessions.get(session.id) == paused

    async def test_a_step_that_is_refused_publishes_nothing(self, stores: Stores) -> None:
        told = await run(stores, "one")
        session = running()
        await stores.replay.sessions.create(session)
        reader = Reader(stores)
        await reader.until(told[-1].id)
        with pytest.raises(VersionConflict):
            await stores.replay.sessions.commit(session, 77, await copies(stores, *told))
        last = await run(stores, "two", 10)
        await reader.until(last[-1].id)
        await reader.stop()
        assert [each.replayed_by for each in reader.deliveries] == [None] * len(reader.deliveries)

    async def test_copies_come_in_order_live_with_their_mark(self, stores: Stores) -> None:
        told = await run(stores, "one")
        reader = Reader(stores)
        await reader.until(told[-1].id)
        await published(stores, *told)
        last = await run(stores, "two", 10)
        await all_of(reader, last)
        await reader.stop()
        self._are_copies(reader.deliveries, told, last)

    async def test_copies_come_with_their_mark_to_who_reads_later(self) -> None:
        async with self.open() as stores:
            told = await run(stores, "one")
            await published(stores, *told)
            last = await run(stores, "two", 10)
        async with self.open() as stores:
            reader = Reader(stores)
            await all_of(reader, last)
            await reader.stop()
            self._are_copies(reader.deliveries, told, last)

    def _are_copies(self, deliveries: Sequence[Delivery], told: Sequence[Message], last: Sequence[Message]) -> None:
        expected = [(message, None) for message in told]
        expected += [(message, "session-1") for message in told]
        expected += [(message, None) for message in last]
        for topic in TOPICS:
            found = [(each.message, each.replayed_by) for each in deliveries if each.message.topic == topic]
            assert found == [each for each in expected if each[0].topic == topic]

    async def test_copies_that_were_acknowledged_do_not_come_again(self) -> None:
        async with self.open() as stores:
            told = await run(stores, "one")
            await published(stores, told[0])
            last = await run(stores, "two", 10)
            reader = Reader(stores)
            await all_of(reader, last)
            for delivery in reader.deliveries:
                stores.log.acknowledge("group", delivery)
            await reader.stop()
        async with self.open() as stores:
            more = await run(stores, "three", 20)
            reader = Reader(stores)
            await all_of(reader, more)
            assert set(reader.ids()) == {message.id for message in more}
            await reader.stop()

    async def test_lists_are_newest_first_with_filters_and_pages(self, stores: Stores) -> None:
        sessions = stores.replay.sessions
        for number in range(6):
            session = a_session(f"session-{number}", Target.FILE if number % 2 else Target.LOG)
            await sessions.create(running(session.id, session.target) if number >= 4 else session)

        async def names(**more: Any) -> list[str]:
            wanted: dict[str, Any] = {"status": None, "target": None, "limit": 10, "before": None, **more}
            return [session.id[-1] for session in await sessions.list(**wanted)]

        assert await names() == ["5", "4", "3", "2", "1", "0"]
        assert await names(limit=2) == ["5", "4"]
        assert await names(limit=2, before="session-4") == ["3", "2"]
        assert await names(status=SessionStatus.RUNNING) == ["5", "4"]
        assert await names(target=Target.FILE) == ["5", "3", "1"]
        assert await names(target=Target.FILE, status=SessionStatus.CREATED, before="session-3") == ["1"]

    async def test_those_that_ended_come_oldest_first(self, stores: Stores) -> None:
        sessions = stores.replay.sessions
        for name, seconds in (("b", 20), ("a", 10), ("c", 30)):
            await sessions.create(running(name))
            await sessions.commit(ended_after(name, seconds), 2)
        await sessions.create(running("live"))
        assert [each.id for each in await sessions.ended(after(30), 10)] == ["a", "b"]
        assert [each.id for each in await sessions.ended(after(31), 1)] == ["a"]
        assert [each.id for each in await sessions.running()] == ["live"]

    async def test_what_was_published_outlives_its_session(self, stores: Stores) -> None:
        told = await run(stores, "one")
        session = await published(stores, *told)
        await stores.replay.sessions.delete(session.id)
        await stores.replay.sessions.delete(session.id)
        assert await stores.replay.sessions.get(session.id) is None
        last = await run(stores, "two", 10)
        reader = Reader(stores)
        await reader.until(last[-1].id)
        await reader.stop()
        assert [each.replayed_by for each in reader.deliveries].count(session.id) == len(told)


class ReplayedCopiesContract(StoresBasic):
    """Copies in the log are nothing that has happened."""

    async def test_they_are_in_no_search_and_no_count(self, stores: Stores) -> None:
        told = await run(stores, "one")
        before = await stores.events.statistics(START, after(100))
        await published(stores, *told)
        page = await stores.events.browse(EventFilter(), 100)
        assert [event.id for event in page.events] == ids_of(told)[::-1]
        assert await stores.events.statistics(START, after(100)) == before
        assert await walked(stores, EVERYTHING) == ids_of(told)
        last = await run(stores, "two", 10)
        assert await walked(stores, EVERYTHING) == ids_of([*told, *last])
        newest = await stores.replay.source.newest()
        assert await stores.replay.index.count(newest) == len(told) + len(last)


class CopiesInOneStoreContract(StoresBasic):
    """What becomes of copies where the log is in one store with the documents."""

    async def test_they_go_when_their_execution_is_deleted(self, stores: Stores) -> None:
        told = await run(stores, "one")
        await published(stores, *told)
        last = await run(stores, "two", 10)
        await stores.executions.delete(ExecutionId("one"), ARCHIVAL)
        reader = Reader(stores)
        assert await reader.until(last[-1].id) == ids_of(last)
        await reader.stop()
        assert len(await stores.events.archived(100)) == len(told)

    async def test_they_go_when_their_event_is_archived(self, stores: Stores) -> None:
        told = await run(stores, "one")
        await published(stores, *told)
        last = await run(stores, "two", 10)
        await stores.events.archive(told[0].id, ARCHIVAL)
        reader = Reader(stores)
        await reader.until(last[-1].id)
        await reader.stop()
        assert [each.message.id for each in reader.deliveries] == ids_of([*told[1:], *told[1:], *last])

    async def test_they_go_with_their_age(self, stores: Stores) -> None:
        told = await run(stores, "one")
        await published(stores, *told)
        reader = Reader(stores)
        await reader.until(told[-1].id)
        last = await run(stores, "two", 10)
        await reader.until(last[-1].id)
        for delivery in reader.deliveries:
            stores.log.acknowledge("group", delivery)
        await reader.stop()
        pruned = 0
        async with asyncio.timeout(5):  # what was acknowledged is noted a little later
            while pruned < 2 * len(told):
                pruned += await stores.expirable["events"].prune(after(9), 100)
        reader = Reader(stores, "another")
        assert await reader.until(last[-1].id) == ids_of(last)
        await reader.stop()
        assert [each.replayed_by for each in reader.deliveries] == [None] * len(last)


class EventSourceContract(StoresBasic):
    async def test_events_come_in_the_order_of_the_log(self, stores: Stores) -> None:
        late, early = await run(stores, "late", 100), await run(stores, "early")
        assert await walked(stores, EVERYTHING) == ids_of([*late, *early])

    @pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
    async def test_slices_have_no_gap_and_no_duplicate(self, stores: Stores, limit: int) -> None:
        told = [message for number in range(3) for message in await run(stores, f"e{number}", number)]
        assert await walked(stores, EVERYTHING, limit) == ids_of(told)
        started = Selection(types=("execution.started",))
        assert await walked(stores, started, limit) == [f"e{number}.2" for number in range(3)]

    async def test_it_ends_where_it_is_told(self, stores: Stores) -> None:
        told = await run(stores, "one")
        until = await stores.replay.source.newest()
        await run(stores, "two", 10)
        assert await walked(stores, EVERYTHING, until=until) == ids_of(told)
        assert await walked(stores, EVERYTHING, until="") == []

    async def test_conditions_hold_together(self, stores: Stores) -> None:
        one = await run(stores, "one")
        two = await run(stores, "two", 10, user="bob")
        both = [*one, *two]

        async def selected(**conditions: Any) -> list[str]:
            return await walked(stores, Selection(**conditions), 2)

        assert await selected(execution_id=ExecutionId("two")) == ids_of(two)
        assert await selected(user_id=UserId("user-bob")) == ids_of(two)
        assert await selected(project_id=ProjectId("project-alice")) == ids_of(one)
        assert await selected(correlation_id="request-two") == ids_of(two)
        assert await selected(event_ids=(two[2].id, one[0].id)) == [one[0].id, two[2].id]
        assert await selected(event_ids=(two[2].id, one[0].id), user_id=UserId("user-bob")) == [two[2].id]
        assert await selected(happened_from=after(10)) == ids_of(two)
        assert await selected(happened_before=after(10)) == ids_of(one)
        commands = ids_of([message for message in both if isinstance(message, PodCreate)])
        assert await selected(types=("pod.create",)) == commands
        assert await selected(excluded_types=("pod.create",)) == [each for each in ids_of(both) if each not in commands]
        assert await selected(types=("pod.create",), excluded_types=("pod.create",)) == []
        assert await selected(text="EXITED", execution_id=ExecutionId("one")) == ["one.3", "one.4"]
        assert await selected(text="exit_code") == []

    async def test_a_long_log_is_read_in_bounded_parts(self, stores: Stores) -> None:
        told = [message for number in range(30) for message in await run(stores, f"e{number:02}", number)]
        await stores.replay.source.newest()
        part = await stores.replay.source.read(EVERYTHING, "", FAR, 7)
        assert [event.id for event in part.events] == ids_of(told[:7])
        assert part.position == str(part.events[-1].offset)
        assert not part.complete


class EventIndexContract(StoresBasic):
    async def remade(self, stores: Stores, until: str) -> int:
        rows, position = 0, ""
        while True:
            part = await stores.replay.index.remake(position, until)
            rows, position = rows + part.rows, part.position
            if part.complete:
                return rows

    async def test_made_anew_it_says_the_same(self, stores: Stores) -> None:
        told = [message for number in range(80) for message in await run(stores, f"e{number}", number)]
        until = await stores.replay.source.newest()
        before = await stores.replay.index.digest(until)
        assert await self.remade(stores, until) == await stores.replay.index.count(until) == len(told)
        assert await stores.replay.index.digest(until) == before

    async def test_the_digest_tells_what_lies_up_to_its_bound(self, stores: Stores) -> None:
        await run(stores, "one")
        until = await stores.replay.source.newest()
        before = await stores.replay.index.digest(until)
        await run(stores, "two", 10)
        later = await stores.replay.source.newest()
        assert await stores.replay.index.digest(until) == before
        assert await stores.replay.index.digest(later) != before


class DocumentHistoriesContract(StoresBasic):
    async def test_documents_come_with_their_messages(self, stores: Stores) -> None:
        one, two = await run(stores, "one"), await run(stores, "two", 10)
        execution = await stores.executions.get(ExecutionId("one"))
        assert execution is not None
        await stored(stores, saga_of(execution))
        newest = await stores.replay.histories.newest()
        first, second = await stores.replay.histories.read("", newest, 10)
        assert (first.execution_id, first.execution) == ("one", execution)
        assert (first.saga, second.saga) == (saga_of(execution), None)
        assert (list(first.messages), list(second.messages)) == (one, two)
        assert ids_of(first.events) == [each.id for each in one if isinstance(each, ExecutionEvent)]
        assert first.unreadable is None
        assert first.columns["status"] == Status.COMPLETED

    async def test_pages_follow_the_ids(self, stores: Stores) -> None:
        for name in ("c", "a", "b"):
            await run(stores, name)
        histories = stores.replay.histories
        assert (await histories.count(), await histories.newest()) == (3, "c")
        assert [each.execution_id for each in await histories.read("", "c", 2)] == ["a", "b"]
        assert [each.execution_id for each in await histories.read("b", "c", 2)] == ["c"]
        assert [each.execution_id for each in await histories.read("", "b", 9)] == ["a", "b"]

    async def test_without_executions_there_is_nothing(self, stores: Stores) -> None:
        histories = stores.replay.histories
        assert (await histories.count(), await histories.newest(), await histories.read("", "", 9)) == (0, "", [])

    async def test_copies_are_no_messages_of_it(self, stores: Stores) -> None:
        told = await run(stores, "one")
        await stores.events.index()
        await published(stores, *told)
        (history,) = await stores.replay.histories.read("", "one", 1)
        assert list(history.messages) == told

    async def test_an_expired_key_is_told_as_it_is_stored(self, stores: Stores) -> None:
        execution = over(requested(an_execution(key="k")))
        assert isinstance(execution.idempotency, Idempotency)
        await stores.unit_of_work.commit([acceptance(an_execution("other"))])
        await stored(stores, execution)
        await stores.executions.release_idempotency_key(execution)
        histories = await stores.replay.histories.read("", await stores.replay.histories.newest(), 10)
        assert {each.execution_id for each in histories} == {"other", execution.id}


class ReplayFilesContract(StoresBasic):
    async def whole(self, stores: Stores, name: str, start: int, end: int) -> bytes:
        return b"".join([part async for part in stores.replay.files.read(ReplaySessionId(name), start, end)])

    async def test_what_was_written_is_read_in_parts(self, stores: Stores) -> None:
        files, name = stores.replay.files, ReplaySessionId("session-1")
        await files.write(name, 0, b"one\n")
        await files.write(name, 4, b"two\n" * 200_000)
        assert await self.whole(stores, name, 0, 8) == b"one\ntwo\n"
        assert await self.whole(stores, name, 4, 800_004) == b"two\n" * 200_000
        assert await self.whole(stores, name, 3, 3) == b""

    async def test_a_step_that_is_done_again_leaves_no_trace_of_the_first(self, stores: Stores) -> None:
        files, name = stores.replay.files, ReplaySessionId("session-1")
        await files.write(name, 0, b"one\n")
        await files.write(name, 4, b"much more than that\n")
        await files.write(name, 4, b"two\n")
        assert await self.whole(stores, name, 0, 8) == b"one\ntwo\n"
        with pytest.raises(Transient):
            await self.whole(stores, name, 0, 9)

    async def test_what_is_removed_is_gone(self, stores: Stores) -> None:
        files, name = stores.replay.files, ReplaySessionId("session-1")
        await files.write(name, 0, b"one\n")
        await files.write(ReplaySessionId("session-2"), 0, b"two\n")
        await files.remove(name)
        await files.remove(name)
        with pytest.raises(Transient):
            await self.whole(stores, name, 0, 4)
        assert await self.whole(stores, "session-2", 0, 4) == b"two\n"

    @pytest.mark.parametrize("name", ["../escape", "a/b", "", "a\0b", "a.b"])
    async def test_a_name_that_is_no_id_is_refused(self, stores: Stores, name: str) -> None:
        with pytest.raises(ValueError, match="no id"):
            await stores.replay.files.write(ReplaySessionId(name), 0, b"")
