"""How the MongoDB adapters are made for the contract suites."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import pytest

from runtape.adapters.mongo.blobs import MongoBlobStore
from runtape.adapters.mongo.connection import Store, connect, open_store
from runtape.adapters.mongo.dead_letters import MongoDeadLetterStore
from runtape.adapters.mongo.documents import MongoExecutionStore, MongoSagaStore, MongoUnitOfWork
from runtape.adapters.mongo.event_source import MongoEventSource
from runtape.adapters.mongo.event_store import MongoEventStore
from runtape.adapters.mongo.events import EventRows
from runtape.adapters.mongo.gate import MongoGateStore
from runtape.adapters.mongo.histories import MongoDocumentHistories
from runtape.adapters.mongo.identity import MongoIdentityStore
from runtape.adapters.mongo.indexes import make_indexes
from runtape.adapters.mongo.notifications import MongoNotificationStore
from runtape.adapters.mongo.outbox import MongoOutbox
from runtape.adapters.mongo.replay import MongoReplayFiles, MongoReplaySessionStore
from runtape.adapters.mongo.retention import ExpiredEvents, ExpiredExecutions, ExpiredTapes
from runtape.adapters.mongo.tape import MongoTapeStore
from runtape.application.relaying import key_of
from runtape.ports.outbox import DocumentWriter
from runtape.ports.stores import Change
from tests.clocks import CountingIds, ManualClock
from tests.contract.suites.stores import ReplayStores, Stores, StoresBasic
from tests.rig.mongo import Mongo

NOT_HERE = cast(Any, None)
_numbers = iter(range(1_000_000))


@asynccontextmanager
async def mongo_stores(url: str, name: str, clock: ManualClock) -> AsyncIterator[Stores]:
    """Open the stores over the database `name`."""
    client = connect(url)
    store = await open_store(client, name)
    await make_indexes(store)
    events = EventRows(store)
    executions = MongoExecutionStore(store, events)
    try:
        yield Stores(
            executions=executions,
            sagas=MongoSagaStore(store),
            unit_of_work=_Recorded(MongoUnitOfWork(store, clock), store, events),
            tape=MongoTapeStore(store),
            blobs=MongoBlobStore(store, clock, CountingIds()),
            log=NOT_HERE,
            events=MongoEventStore(events),
            gates=MongoGateStore(store),
            identity=MongoIdentityStore(store),
            dead_letters=MongoDeadLetterStore(store),
            notifications=MongoNotificationStore(store),
            replay=ReplayStores(
                sessions=MongoReplaySessionStore(store, NOT_HERE),
                source=MongoEventSource(events),
                index=MongoEventSource(events),
                histories=MongoDocumentHistories(store, events),
                files=MongoReplayFiles(store),
            ),
            clock=clock,
            expirable={
                "executions": ExpiredExecutions(store, executions),
                "tapes": ExpiredTapes(store),
                "events": ExpiredEvents(store, events),
            },
        )
    finally:
        await client.close()


class _Recorded:
    """`UnitOfWork` whose messages are among the events when it returns: there is no log here that they wait for."""

    def __init__(self, inner: DocumentWriter, store: Store, events: EventRows) -> None:
        self._inner = inner
        self._outbox = MongoOutbox(store)
        self._events = events

    async def commit(self, changes: Sequence[Change], handled_by: frozenset[str] = frozenset()) -> None:
        await self._inner.commit(changes, handled_by)
        for each in changes:
            told = await self._outbox.read(key_of(each.document))
            await self._events.append(told)
            await self._outbox.remove(key_of(each.document), [message.id for message in told])


class MongoStores(StoresBasic):
    @pytest.fixture(autouse=True)
    def _place(self, mongo_part: Mongo) -> None:
        self._url = mongo_part.url
        self._name = f"{mongo_part.scope}test{next(_numbers)}"
        self._clock = ManualClock()

    def open(self) -> AbstractAsyncContextManager[Stores]:
        return mongo_stores(self._url, self._name, self._clock)
