"""The index of the log over rows that no unit of work has written, and over many."""

import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from runtape.adapters.embedded import event_index, event_store
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.event_store import SqliteEventStore
from runtape.adapters.embedded.schema import STORE_SCHEMA
from runtape.domain.ids import EventId, ExecutionId
from runtape.ports.events import EventFilter, EventPosition
from tests.clocks import START
from tests.contract.embedded.basic import quick_place
from tests.contract.suites.stores import ARCHIVAL

ALL = EventFilter()

MANY = """with recursive n(i) as (select 1 union all select i + 1 from n where i < ?)
    insert into log (topic, key, type, body)
    select 'execution.events.v1', 'e' || i, 'execution.requested', json_object(
        'execution_id', 'e' || i, 'project_id', 'p', 'version', 1, 'attempt', 0,
        'lang', case i % 1000 when 0 then 'rare' else 'python' end, 'lang_version', '3', 'priority', 'normal',
        'at', strftime('%Y-%m-%dT%H:%M:%SZ', 1767605400 + i, 'unixepoch'),
        'correlation', json_object('id', 'r' || i, 'traceparent', '')
    ) from n"""


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    with quick_place() as folder:
        database = Database(folder / "runtape.db", STORE_SCHEMA, wal_bytes=1 << 16)
        await database.open()
        yield database
        await database.close()


async def planted(database: Database, *rows: tuple[str, bytes]) -> None:
    """Append rows with these types and bodies to the log."""
    await database.write(
        lambda c: c.executemany("insert into log (topic, key, type, body) values ('t', 'one', ?, ?)", rows).rowcount
    )


@pytest.mark.parametrize("body", [b"", b"no json", b'{"version": 1', b"\xff\x00\xfe", b"[1]", b'"text"', b"null"])
async def test_a_body_that_cannot_be_read_hides_no_other(database: Database, body: bytes) -> None:
    good = b'{"version":1,"attempt":0,"project_id":"p","at":"2026-01-05T09:30:00Z"}'
    await planted(database, ("execution.requested", good), ("execution.started", body), ("pod.kill", good))
    store = SqliteEventStore(database)
    found = {event.offset: event for event in (await store.browse(ALL, 10)).events}
    assert [found[offset].id for offset in (1, 2, 3)] == ["one.1", "one.offset.2", "one.1"]
    assert (found[2].type, found[2].project_id, found[2].body) == ("execution.started", None, body)
    assert [event.offset for event in (await store.browse(EventFilter(text="9:30"), 10)).events] == [3, 1]
    await store.archive(EventId("one.offset.2"), ARCHIVAL)
    assert [each.event.body for each in await store.archived(10)] == [body]


async def test_text_is_found_in_a_body_that_is_no_json(database: Database) -> None:
    await planted(database, ("execution.requested", b"broken HERE"))
    found = await SqliteEventStore(database).browse(EventFilter(text="here"), 10)
    assert [event.offset for event in found.events] == [1]


async def test_a_search_that_finds_little_says_where_to_go_on(database: Database) -> None:
    rows = event_store.CANDIDATES * event_store.READS + 4_000
    await database.write(lambda c: c.execute(MANY, (rows,)).rowcount)
    store = SqliteEventStore(database)
    first = await store.browse(EventFilter(text="rare"), 100)
    assert first.next is not None
    assert len(first.events) == event_store.CANDIDATES * event_store.READS // 1000
    second = await store.browse(EventFilter(text="rare"), 100, first.next)
    assert (len(second.events), second.next) == (4, None)
    empty = await store.browse(EventFilter(text="nowhere"), 100)
    assert (list(empty.events), empty.next) == ([], EventPosition(START + timedelta(seconds=4_001), 4_001))


async def test_every_row_is_counted_once_over_many_reads(database: Database) -> None:
    rows = 3 * event_store.STATISTICS_ROWS
    await database.write(lambda c: c.execute(MANY, (rows,)).rowcount)
    found = await SqliteEventStore(database).statistics(START, START + timedelta(days=30))
    assert (found.total, sum(found.by_hour.values())) == (rows, rows)
    within = await SqliteEventStore(database).statistics(START + timedelta(seconds=5), START + timedelta(seconds=9))
    assert within.total == 4


async def test_an_index_that_is_wrong_is_made_right(database: Database) -> None:
    await database.write(lambda c: c.execute(MANY, (1_000,)).rowcount)
    store = SqliteEventStore(database)
    right = await store.digest()
    for damage in (
        "delete from event_index",
        "delete from event_index where offset % 7 = 3",
        "update event_index set project_id = 'another' where offset = 400",
        "update event_index set offset = 5000 where offset = 1000",
    ):
        await database.write(lambda c, damage=damage: c.execute(damage).rowcount)
        await store.rebuild()
        assert await store.digest() == right, damage


async def test_finding_the_events_of_an_execution_reads_no_log_that_is_indexed(database: Database) -> None:
    def plan(c: sqlite3.Connection) -> list[str]:
        statements: list[str] = []
        c.set_trace_callback(statements.append)
        event_index.offsets_of_execution(c, ExecutionId("e1"))
        c.set_trace_callback(None)
        return [step for *_, step in c.execute(f"explain query plan {statements[-1]}")]

    steps = await database.read(plan)
    assert any("event_index_by_id" in step for step in steps)
    assert not any(step.startswith("SCAN log") for step in steps), steps
