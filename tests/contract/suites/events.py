"""What every `EventStore` does, over events that a `UnitOfWork` has published."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from runtape.domain import execution as executions
from runtape.domain.events import MESSAGE_TYPES, Correlation, Message, PodCreate, PodKill, StoredResult
from runtape.domain.execution import evolve
from runtape.domain.ids import EventId, ExecutionId, ProjectId, UserId
from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from runtape.ports.events import EventFilter, EventPosition, StoredEvent
from tests.builders import EXITED, LEASE_TTL, OWNER, an_execution
from tests.clocks import START
from tests.contract.suites.stores import ARCHIVAL, Stores, StoresBasic, change

FAILED = Outcome(kind=OutcomeKind.MEMORY_LIMIT, message="out of memory")
ALL = EventFilter()


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


async def run(
    stores: Stores, name: str, at: float = 0, outcome: Outcome = EXITED, user: str = "alice", lasts: float = 2
) -> list[Message]:
    """Store an execution that began at that second, with all its messages; return these in order."""
    execution = an_execution(
        name,
        user_id=UserId(f"user-{user}"),
        project_id=ProjectId(f"project-{user}"),
        created_at=after(at),
        correlation=Correlation(f"request-{name}", "00-trace"),
    )
    told: list[Message] = []

    async def step(events: Sequence[Message], *commands: Message) -> None:
        nonlocal execution
        before = execution
        for event in events:
            execution = evolve(execution, event)  # pyright: ignore[reportArgumentType]
        cause = told[-1].id if told else None
        messages = [message.caused(execution.correlation, cause) for message in (*events, *commands)]
        told.extend(messages)
        await stores.unit_of_work.commit([change(execution, before.version, *messages)])

    create = PodCreate(execution_id=execution.id, project_id=execution.project_id, at=after(at), attempt=1)
    await step(executions.request(execution, after(at)), create)
    await step(executions.start(execution, 1, OWNER, after(at + 1), LEASE_TTL))
    await step(executions.finish(execution, 1, outcome, Usage(), 1, after(at + lasts)))
    result = StoredResult(stdout_sha256="", stderr_sha256="")
    await step(executions.store_result(execution, result, after(at + lasts)))
    return told


async def ids(stores: Stores, **conditions: Any) -> list[str]:
    page = await stores.events.browse(EventFilter(**conditions), 1000)
    assert page.next is None
    return [event.id for event in page.events]


def ids_of(events: Sequence[Message | StoredEvent]) -> list[str]:
    return [event.id for event in events]


async def pages(stores: Stores, limit: int, where: EventFilter = ALL) -> list[list[str]]:
    found: list[list[str]] = []
    position: EventPosition | None = None
    while True:
        page = await stores.events.browse(where, limit, position)
        found.append(ids_of(page.events))
        if page.next is None:
            return found
        position = page.next


class EventStoreContract(StoresBasic):
    async def test_an_event_is_told_as_it_was_published(self, stores: Stores) -> None:
        told = await run(stores, "one")
        for message in told:
            event = await stores.events.get(message.id)
            assert event is not None
            assert (event.id, event.type, event.topic) == (message.id, message.type, message.topic)
            assert (event.execution_id, event.project_id, event.user_id) == ("one", "project-alice", "user-alice")
            assert (event.at, event.attempt) == (message.at, message.attempt)
            assert (event.correlation_id, event.causation_id) == ("request-one", message.causation_id)
            assert msgspec.json.decode(event.body, type=type(message)) == message
        assert await stores.events.get(EventId("nobody.1")) is None

    @pytest.mark.parametrize("name", MESSAGE_TYPES)
    async def test_every_type_of_message_is_found_under_its_id(self, stores: Stores, name: str) -> None:
        message = msgspec.convert(
            {
                "execution_id": "one",
                "project_id": "project",
                "at": after(0.25),
                "attempt": 3,
                "version": 7,
                "lang": "python",
                "lang_version": "3.11",
                "priority": "normal",
                "lease": {"owner": "w", "fence": 3, "expires_at": START},
                "reason": "r",
                "by": "somebody",
                "outcome": {"kind": "exited"},
                "usage": {},
                "last_seq": 1,
                "result": {"stdout_sha256": "", "stderr_sha256": ""},
            },
            MESSAGE_TYPES[name],
        )
        await stores.unit_of_work.commit([change(an_execution("one", version=1), 0, message)])
        event = await stores.events.get(message.id)
        assert event is not None
        assert (event.type, event.at, event.correlation_id) == (name, after(0.25), None)

    async def test_a_page_that_begins_at_the_newest_has_all_that_was_committed(self, stores: Stores) -> None:
        expected: list[str] = []
        for number in range(3):
            told = await run(stores, f"e{number}", number * 10)
            expected = ids_of(told)[::-1] + expected
            assert await ids(stores) == expected

    async def test_events_come_by_their_time_and_not_by_their_place(self, stores: Stores) -> None:
        late, early = await run(stores, "late", 100), await run(stores, "early")
        assert await ids(stores) == ids_of(late)[::-1] + ids_of(early)[::-1]

    @pytest.mark.parametrize("limit", [1, 3, 7, 200])
    async def test_pages_have_no_gap_and_no_duplicate(self, stores: Stores, limit: int) -> None:
        for number in range(3):
            await run(stores, f"e{number}", number)
        everything = await ids(stores)
        found = await pages(stores, limit)
        assert [each for page in found for each in page] == everything
        assert all(len(page) == limit for page in found[:-1])
        assert found[-1] != []

    async def test_what_is_published_meanwhile_changes_no_later_page(self, stores: Stores) -> None:
        told = await run(stores, "one")
        page = await stores.events.browse(ALL, 2)
        await run(stores, "two", 50)
        rest = await stores.events.browse(ALL, 100, page.next)
        assert ids_of(page.events) + ids_of(rest.events) == ids_of(told)[::-1]

    async def test_conditions_hold_together(self, stores: Stores) -> None:
        a = await run(stores, "a", user="alice")
        b = await run(stores, "b", 10, FAILED, user="bob")
        c = await run(stores, "c", 20, user="bob")
        assert await ids(stores, execution_id=ExecutionId("b")) == ids_of(b)[::-1]
        assert await ids(stores, user_id=UserId("user-bob")) == ids_of([*b, *c])[::-1]
        assert await ids(stores, project_id=ProjectId("project-alice")) == ids_of(a)[::-1]
        assert await ids(stores, correlation_id="request-c") == ids_of(c)[::-1]
        ends = frozenset({"execution.completed", "execution.failed"})
        assert await ids(stores, types=ends) == ["c.3", "b.3", "a.3"]
        assert await ids(stores, types=frozenset({"execution.failed"})) == ["b.3"]
        assert await ids(stores, types=ends, user_id=UserId("user-bob")) == ["c.3", "b.3"]
        assert await ids(stores, types=ends, execution_id=ExecutionId("a")) == ["a.3"]
        assert await ids(stores, user_id=UserId("user-bob"), project_id=ProjectId("project-alice")) == []
        assert await ids(stores, user_id=UserId("user-bob"), correlation_id="request-c") == ids_of(c)[::-1]

    async def test_an_id_that_another_begins_with_is_another(self, stores: Stores) -> None:
        await run(stores, "e1")
        told = await run(stores, "e")
        assert await ids(stores, execution_id=ExecutionId("e")) == ids_of(told)[::-1]

    async def test_times_bound_from_below_and_before(self, stores: Stores) -> None:
        await run(stores, "a", 0)
        b = await run(stores, "b", 10)
        bound = {"happened_from": after(10), "happened_before": after(12)}
        assert await ids(stores, **bound) == ids_of(b)[2::-1]
        assert await ids(stores, **bound, types=frozenset({"execution.started"})) == ["b.2"]
        assert await ids(stores, **bound, user_id=UserId("user-alice")) == ids_of(b)[2::-1]
        assert await ids(stores, happened_from=after(13)) == []

    async def test_text_is_looked_for_in_values_only(self, stores: Stores) -> None:
        await run(stores, "a")
        await run(stores, "b", 10, replace(FAILED, message='"100 %" of Ärger_\\n'), user="bob")
        found = ["b.4", "b.3"]
        for text in ("100 %", '"100 %"', "OF Ärger_", "r_\\n", "memory_limit"):
            assert await ids(stores, text=text) == found, text
        for text in ("exit_code", "last_seq", "100 _", "r%", '\\"100', "nowhere"):
            assert await ids(stores, text=text) == [], text
        assert await ids(stores, text="memory_limit", types=frozenset({"execution.failed"})) == ["b.3"]
        assert await ids(stores, text="memory_limit", user_id=UserId("user-alice")) == []

    async def test_a_search_without_matches_comes_to_its_end(self, stores: Stores) -> None:
        messages = [
            PodKill(
                execution_id=ExecutionId("many"), project_id=ProjectId("p"), at=after(number / 1000), attempt=number
            )
            for number in range(6_000)
        ]
        await stores.unit_of_work.commit([change(an_execution("many", version=1), 0, *messages)])
        assert await pages(stores, 10, EventFilter(text="nowhere")) == [[]]
        assert (await pages(stores, 10, EventFilter(text="nowhere", user_id=UserId("user-alice")))) == [[]]
        kills = EventFilter(types=frozenset({"pod.kill", "pod.create"}))
        found = await pages(stores, 1_000, kills)
        assert [len(page) for page in found] == [1_000] * 6
        assert len({each for page in found for each in page}) == 6_000

    async def test_statistics_count_what_happened_in_their_time(self, stores: Stores) -> None:
        await run(stores, "before", -10)
        for number in range(3):
            await run(stores, f"e{number}", number * 3600, lasts=4 + number)
        await run(stores, "failed", 60, FAILED, "bob", lasts=1)
        timeout = Outcome(kind=OutcomeKind.WALL_LIMIT)
        await run(stores, "timeout", 70, timeout, "bob", lasts=1)
        await run(stores, "later", 9000)
        found = await stores.events.statistics(START, after(9000))
        assert found.total == 25
        assert found.by_type["execution.requested"] == found.by_type["pod.create"] == 5
        assert (found.by_type["execution.completed"], found.by_type["execution.failed"]) == (3, 1)
        assert (found.ended, found.failed) == (5, 2)
        half = timedelta(minutes=30)  # the first of them begins at half past
        assert found.by_hour == {START - half: 15, START + half: 5, START + 3 * half: 5}
        assert found.by_user == {"user-alice": 15, "user-bob": 10}
        assert found.mean_duration == timedelta(seconds=(4 + 5 + 6 + 1 + 1) / 5)

    async def test_statistics_of_no_events(self, stores: Stores) -> None:
        found = await stores.events.statistics(START, after(3600))
        assert (found.total, found.by_type, found.by_hour, found.ended) == (0, {}, {}, 0)
        assert found.mean_duration is None

    async def test_the_index_made_anew_says_the_same(self) -> None:
        async with self.open() as stores:
            digests = [await stores.events.digest()]
            for number in range(60):
                await run(stores, f"e{number}", number)
                if number % 20 == 7:
                    await stores.events.index()
                if number % 20 == 13:
                    await stores.executions.delete(ExecutionId(f"e{number}"), ARCHIVAL)
            await stores.events.archive(EventId("e3.2"), ARCHIVAL)
            digests.append(await stores.events.digest())
            everything = await ids(stores)
            await stores.events.rebuild()
            assert await ids(stores) == everything
            assert await stores.events.digest() == digests[1] != digests[0]
        async with self.open() as stores:
            assert await stores.events.digest() == digests[1]
            await run(stores, "new", 100)
            assert await stores.events.digest() != digests[1]

    async def test_whose_an_event_is_stays_known_when_its_execution_is_no_longer_kept(self, stores: Stores) -> None:
        told = await run(stores, "old")
        digest = await stores.events.digest()
        assert await stores.expirable["executions"].prune(after(3600), 100) == 1
        await stores.events.rebuild()
        assert await stores.events.digest() == digest
        assert await ids(stores, user_id=UserId("user-alice")) == ids_of(told)[::-1]
        await stores.events.archive(told[0].id, ARCHIVAL)
        assert [each.event.user_id for each in await stores.events.archived(10)] == ["user-alice"]


class ArchiveContract(StoresBasic):
    @pytest.mark.parametrize("indexed", [True, False])
    async def test_a_deleted_execution_leaves_its_events_in_the_archive(self, stores: Stores, indexed: bool) -> None:
        gone, stays = await run(stores, "gone"), await run(stores, "stays", 10, user="bob")
        told = {event.id: event for event in (await stores.events.browse(ALL, 100)).events} if indexed else {}
        for _ in range(2):
            await stores.executions.delete(ExecutionId("gone"), ARCHIVAL)
        assert await ids(stores) == ids_of(stays)[::-1]
        assert await stores.events.get(gone[0].id) is None
        archived = await stores.events.archived(100)
        assert ids_of([each.event for each in archived]) == ids_of(gone)[::-1]
        assert {each.archival for each in archived} == {ARCHIVAL}
        for each, message in zip(archived[::-1], gone, strict=True):
            assert (each.event.at, each.event.user_id, each.event.topic) == (message.at, "user-alice", message.topic)
            assert msgspec.json.decode(each.event.body, type=type(message)) == message
            assert not indexed or each.event == told[message.id]

    async def test_the_newest_execution_is_archived_like_any_other(self) -> None:
        async with self.open() as stores:
            gone = await run(stores, "gone")
            await stores.executions.delete(ExecutionId("gone"), ARCHIVAL)
            assert await ids(stores) == []
        async with self.open() as stores:
            assert await ids(stores) == []
            await stores.events.rebuild()
            assert await ids(stores) == []
            assert ids_of([each.event for each in await stores.events.archived(100)]) == ids_of(gone)[::-1]

    async def test_one_event_is_archived(self, stores: Stores) -> None:
        told = await run(stores, "one")
        for event_id in ("one.2", "one.2", "one.4", "nobody.1"):
            await stores.events.archive(EventId(event_id), ARCHIVAL)
        assert await ids(stores) == ["one.3", *ids_of(told)[1::-1]]
        assert ids_of([each.event for each in await stores.events.archived(100)]) == ["one.4", "one.2"]

    async def test_the_archive_is_listed_in_pages_and_by_execution(self, stores: Stores) -> None:
        for number, name in enumerate(("a", "b", "c")):
            await run(stores, name)
            archival = replace(ARCHIVAL, at=after(number // 2))
            await stores.executions.delete(ExecutionId(name), archival)
        everything = await stores.events.archived(100)
        assert [each.event.execution_id for each in everything] == ["c"] * 5 + ["b"] * 5 + ["a"] * 5
        found = []
        position = None
        while page := await stores.events.archived(4, position):
            found += page
            position = EventPosition(page[-1].archival.at, page[-1].event.offset)
        assert found == everything
        of_b = await stores.events.archived(100, execution_id=ExecutionId("b"))
        assert of_b == [each for each in everything if each.event.execution_id == "b"]

    async def test_pruning_forgets_the_oldest_for_good(self, stores: Stores) -> None:
        for number, name in enumerate(("a", "b", "c")):
            await run(stores, name)
            await stores.executions.delete(ExecutionId(name), replace(ARCHIVAL, at=after(number)))
        await run(stores, "last")
        assert await stores.events.prune(after(0), 100) == 0
        assert await stores.events.prune(after(2), 3) == 3
        assert [each.event.execution_id for each in await stores.events.archived(100)] == ["c"] * 5 + ["b"] * 5 + [
            "a"
        ] * 2
        assert await stores.events.prune(after(2), 100) == 7
        assert await stores.events.prune(after(2), 100) == 0
        assert {each.event.execution_id for each in await stores.events.archived(100)} == {"c"}
        await stores.events.rebuild()
        assert {event.execution_id for event in (await stores.events.browse(ALL, 100)).events} == {"last"}

    async def test_pruning_brings_no_event_back_and_gives_no_offset_again(self, stores: Stores) -> None:
        await run(stores, "gone")
        await stores.executions.delete(ExecutionId("gone"), ARCHIVAL)
        newest = max(each.event.offset for each in await stores.events.archived(100))
        await stores.events.prune(after(10), 100)
        assert await ids(stores) == []
        await run(stores, "last")
        assert min(event.offset for event in (await stores.events.browse(ALL, 100)).events) > newest
        await stores.events.prune(after(10), 100)
        await stores.events.rebuild()
        assert {event.execution_id for event in (await stores.events.browse(ALL, 100)).events} == {"last"}
        assert list(await stores.events.archived(100)) == []
