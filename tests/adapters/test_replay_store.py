"""What the embedded replay adapters keep in the file, beyond their contracts."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runtape.domain.ids import ExecutionId
from runtape.domain.replay import Selection
from tests.clocks import ManualClock
from tests.contract.embedded.basic import quick_place, sqlite_stores
from tests.contract.suites.events import after, run
from tests.contract.suites.replay import published, walked
from tests.contract.suites.stores import ARCHIVAL, Stores


@pytest.fixture
def path() -> Iterator[Path]:
    with quick_place() as folder:
        yield folder / "runtape.db"


@pytest.fixture
async def stores(path: Path) -> AsyncIterator[Stores]:
    async with sqlite_stores(path, ManualClock()) as stores:
        yield stores


def asked(path: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(query, values).fetchall()


async def test_no_mark_outlives_its_row(stores: Stores, path: Path) -> None:
    """It would make another message with that offset look like a copy, which nobody handles."""
    await published(stores, *(await run(stores, "one")), name="session-1")
    await published(stores, *(await run(stores, "two", 10)), name="session-2")
    await run(stores, "three", 20)
    assert asked(path, "select count(*) from log_replay") == [(10,)]
    await stores.executions.delete(ExecutionId("one"), ARCHIVAL)
    assert asked(path, "select distinct session_id from log_replay") == [("session-2",)]
    asked(path, "insert or replace into consumer_offset values ('group', 1000)")
    while await stores.expirable["events"].prune(after(19), 100):
        pass
    assert asked(path, "select count(*) from log_replay") == [(0,)]


async def test_a_copy_has_the_bytes_of_the_original(stores: Stores, path: Path) -> None:
    await published(stores, *(await run(stores, "one")))
    rows = asked(path, "select topic, key, type, body from log order by offset")
    assert rows[:5] == rows[5:]


async def test_a_log_of_many_copies_is_not_searched_for_ever(stores: Stores) -> None:
    told = await run(stores, "one")
    for number in range(3):
        await published(stores, *told, name=f"session-{number}")
    await stores.events.index()
    assert await walked(stores, Selection(), 2) == [each.id for each in told]


@pytest.mark.parametrize(
    ("table", "column", "what"), [("execution", "id", "the execution"), ("saga", "execution_id", "the saga")]
)
async def test_a_document_that_is_none_is_told_and_stops_nobody(
    stores: Stores, path: Path, table: str, column: str, what: str
) -> None:
    for name in ("one", "two"):
        await run(stores, name)
        asked(path, "insert into saga select id, 1, null, 0, cast('{}' as blob) from execution where id = ?", name)
    asked(path, f"update {table} set doc = cast('[1, 2]' as blob) where {column} = 'one'")
    first, second = await stores.replay.histories.read("", "two", 10)
    assert first.unreadable is not None
    assert first.unreadable.startswith(what)
    assert second.unreadable is None or second.unreadable.startswith("the saga")


async def test_an_event_that_is_none_is_told(stores: Stores, path: Path) -> None:
    await run(stores, "one")
    await stores.events.index()
    asked(path, "update log set body = cast('no JSON' as blob) where type = 'execution.started'")
    (history,) = await stores.replay.histories.read("", "one", 10)
    assert history.unreadable is not None
    assert history.unreadable.startswith("an event of the type execution.started cannot be read")
    assert len(history.messages) == 4
