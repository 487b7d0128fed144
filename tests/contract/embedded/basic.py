"""How the embedded adapters are made for the contract suites."""

import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from runtape.adapters.embedded.admission import InMemoryAdmissionQueue
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.dead_letters import SqliteDeadLetterStore
from runtape.adapters.embedded.documents import SqliteExecutionStore, SqliteSagaStore, SqliteUnitOfWork
from runtape.adapters.embedded.event_source import SqliteEventSource
from runtape.adapters.embedded.event_store import SqliteEventStore
from runtape.adapters.embedded.gate_store import SqliteGateStore
from runtape.adapters.embedded.histories import SqliteDocumentHistories
from runtape.adapters.embedded.identity_store import SCHEMA as IDENTITY_SCHEMA
from runtape.adapters.embedded.identity_store import SqliteIdentityStore
from runtape.adapters.embedded.live_feed import InProcessLiveFeed
from runtape.adapters.embedded.log import SqliteEventLog
from runtape.adapters.embedded.notifications import SqliteNotificationStore
from runtape.adapters.embedded.replay_files import FolderReplayFiles
from runtape.adapters.embedded.replay_store import SqliteReplaySessionStore
from runtape.adapters.embedded.retention import ExpiredEvents, ExpiredExecutions, ExpiredTapes
from runtape.adapters.embedded.schema import STORE_SCHEMA
from runtape.adapters.embedded.tape import SqliteBlobStore, SqliteTapeStore
from runtape.ports.admission import AdmissionQueue, Capacity
from runtape.ports.clock import Clock
from runtape.ports.live import LiveFeed
from tests.clocks import ManualClock
from tests.contract.suites.stores import ReplayStores, Stores, StoresBasic


@contextmanager
def quick_place() -> Iterator[Path]:
    """Give an empty folder, in memory where that is possible: no test here is about the disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@asynccontextmanager
async def sqlite_stores(
    path: Path, clock: ManualClock, database_type: type[Database] = Database
) -> AsyncIterator[Stores]:
    """Open the embedded stores over the file at `path`."""
    # A full-size WAL in every test would write gigabytes and show nothing.
    database = database_type(path, (*STORE_SCHEMA, *IDENTITY_SCHEMA), wal_bytes=1 << 16)
    await database.open()
    log = SqliteEventLog(database)
    try:
        sagas = SqliteSagaStore(database)
        executions = SqliteExecutionStore(database, sagas)
        yield Stores(
            executions=executions,
            sagas=sagas,
            unit_of_work=SqliteUnitOfWork(database, executions, sagas, log),
            tape=SqliteTapeStore(database),
            blobs=SqliteBlobStore(database, clock),
            log=log,
            events=SqliteEventStore(database),
            gates=SqliteGateStore(database),
            identity=SqliteIdentityStore(database),
            dead_letters=SqliteDeadLetterStore(database),
            notifications=SqliteNotificationStore(database),
            replay=ReplayStores(
                sessions=SqliteReplaySessionStore(database, log),
                source=SqliteEventSource(database),
                index=SqliteEventSource(database),
                histories=SqliteDocumentHistories(database),
                files=FolderReplayFiles(path.parent / "replays"),
            ),
            clock=clock,
            expirable={
                "executions": ExpiredExecutions(database, executions),
                "tapes": ExpiredTapes(database),
                "events": ExpiredEvents(database),
            },
        )
    finally:
        log.close()
        await database.close()


def plant(path: Path, topic: str, key: str, type: str, body: bytes | str) -> int:
    """Put a row into the log of a database that nobody has open, and return its offset."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in STORE_SCHEMA:
            connection.execute(statement)
        values = (topic, key, type, body)
        added = connection.execute("insert into log (topic, key, type, body) values (?,?,?,?)", values).lastrowid
        assert added is not None
        return added


class EmbeddedStores(StoresBasic):
    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with quick_place() as folder:
            self._path = folder / "runtape.db"
            self._clock = ManualClock()
            yield

    def open(self) -> AbstractAsyncContextManager[Stores]:
        return sqlite_stores(self._path, self._clock)


class EmbeddedLiveFeed:
    def make(self) -> LiveFeed:
        return InProcessLiveFeed()


class EmbeddedAdmission:
    def make(self, capacity: Capacity, clock: Clock) -> AdmissionQueue:
        return InMemoryAdmissionQueue(capacity, clock)
