"""The task that looks after the index lets runs come first."""

from collections.abc import AsyncIterator

import pytest

from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.documents import SqliteExecutionStore, SqliteSagaStore
from runtape.adapters.embedded.event_store import SqliteEventStore
from runtape.adapters.embedded.schema import STORE_SCHEMA
from runtape.application import events
from runtape.application.events import EventBrowser
from tests.adapters.test_event_index import MANY
from tests.clocks import ManualClock
from tests.contract.embedded.basic import quick_place


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    with quick_place() as folder:
        database = Database(folder / "runtape.db", STORE_SCHEMA, wal_bytes=1 << 16)
        await database.open()
        yield database
        await database.close()


async def test_the_index_waits_while_much_is_published_and_not_for_ever(database: Database) -> None:
    executions = SqliteExecutionStore(database, SqliteSagaStore(database))
    store = SqliteEventStore(database)
    browser = EventBrowser(store=store, executions=executions, clock=ManualClock())

    async def published_then_lacking(count: int) -> int:
        await database.write(lambda c: c.execute(MANY, (count,)).rowcount if count else 0)
        await browser.look_after_index()
        (lacking,) = await database.read(
            lambda c: c.execute("select (select count(*) from log) - (select count(*) from event_index)").fetchone()
        )
        return lacking

    busy, quiet = events.BUSY, events.BUSY - 1
    assert await published_then_lacking(quiet) == 0
    assert await published_then_lacking(busy) == busy
    assert await published_then_lacking(busy) == 2 * busy
    assert await published_then_lacking(quiet) == 0
    assert 0 < await published_then_lacking(events.LONGEST_LAG + 5_000) <= events.LONGEST_LAG
    assert await published_then_lacking(0) == 0
