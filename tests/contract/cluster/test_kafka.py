"""Kafka's log, behind MongoDB's outbox and its relay, keeps the contract of the port, on a real broker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import confluent_kafka
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from runtape.adapters.kafka.codec import AvroCodec
from runtape.adapters.kafka.log import KafkaEventLog
from runtape.adapters.kafka.producer import Producer
from runtape.adapters.mongo.connection import connect, open_store
from runtape.adapters.mongo.documents import MongoUnitOfWork
from runtape.adapters.mongo.events import EventRows, RecordingPublisher
from runtape.adapters.mongo.outbox import MongoOutbox
from runtape.adapters.mongo.replay import MongoReplaySessionStore
from runtape.application.flow import Tasks
from runtape.application.relaying import Relay, key_of
from runtape.domain.events import EXECUTION_EVENTS, POD_COMMANDS
from runtape.ports.outbox import DocumentWriter
from runtape.ports.stores import Change
from tests.adapters.fixed_schemas import FixedSchemas
from tests.contract.cluster.mongo_basic import MongoStores, mongo_stores
from tests.contract.suites.log import EventLogContract
from tests.contract.suites.replay import DocumentHistoriesContract, ReplayedCopiesContract, ReplaySessionStoreContract
from tests.contract.suites.stores import Stores
from tests.rig.kafka import Kafka
from tests.rig.mongo import Mongo

pytestmark = pytest.mark.needs("kafka", "mongo")
CODEC = AvroCodec(FixedSchemas())


@asynccontextmanager
async def kafka_stores(
    stores: Stores, mongo_url: str, name: str, connection: dict[str, Any], prefix: str
) -> AsyncIterator[Stores]:
    """Open MongoDB's stores, in the database `name`, with their relay to a log under `prefix`."""
    client = connect(mongo_url)
    publisher = Producer(connection, CODEC, prefix)
    await publisher.start()
    tasks = Tasks(lambda *_: None)
    store = await open_store(client, name)
    recording = RecordingPublisher(publisher, EventRows(store))
    relay = Relay(outbox=MongoOutbox(store), publisher=recording, tasks=tasks)
    try:
        yield replace(
            stores,
            unit_of_work=_Told(MongoUnitOfWork(store, stores.clock), relay),
            log=KafkaEventLog(connection, CODEC, publisher, prefix),
            replay=replace(stores.replay, sessions=MongoReplaySessionStore(store, publisher)),
        )
    finally:
        await tasks.close()
        await publisher.stop()
        await client.close()


class _Told:
    """`UnitOfWork` whose messages are in the log when it returns, so that one commit comes after another there."""

    def __init__(self, inner: DocumentWriter, relay: Relay) -> None:
        self._inner = inner
        self._relay = relay

    async def commit(self, changes: Sequence[Change], handled_by: frozenset[str] = frozenset()) -> None:
        await self._inner.commit(changes, handled_by)
        for each in changes:
            await self._relay.publish(key_of(each.document))


class KafkaStores(MongoStores):
    @pytest.fixture(autouse=True)
    async def _topics(self, kafka_part: Kafka, mongo_part: Mongo, _place: None) -> AsyncIterator[None]:
        self._connection: dict[str, Any] = {"bootstrap_servers": kafka_part.bootstrap}
        self._prefix = f"{kafka_part.scope}{self._name}."
        admin = AIOKafkaAdminClient(**self._connection)
        await admin.start()
        names = [f"{self._prefix}{topic}" for topic in (EXECUTION_EVENTS, POD_COMMANDS)]
        await admin.create_topics([NewTopic(name, 1, 1) for name in names])
        async with asyncio.timeout(10):
            while any(each["error_code"] for each in await admin.describe_topics(names)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield
        await admin.delete_topics(names)
        await admin.close()

    def open(self) -> AbstractAsyncContextManager[Stores]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Stores]:
            async with (
                mongo_stores(self._url, self._name, self._clock) as stores,
                kafka_stores(stores, self._url, self._name, self._connection, self._prefix) as whole,
            ):
                yield whole

        return opened()


class TestEventLog(KafkaStores, EventLogContract):
    def plant(self, topic: str, key: str, type: str, body: bytes | str) -> int:
        found: list[int | None] = []
        producer = confluent_kafka.Producer({"bootstrap.servers": self._connection["bootstrap_servers"]})
        value = body.encode() if isinstance(body, str) else body
        producer.produce(
            f"{self._prefix}{topic}",
            value,
            key,
            headers=[("type", type.encode())],
            on_delivery=lambda error, message: found.append(message.offset()),
        )
        producer.flush(10)
        (offset,) = found
        assert offset is not None
        return offset


class TestReplaySessionStore(KafkaStores, ReplaySessionStoreContract): ...


class TestReplayedCopies(KafkaStores, ReplayedCopiesContract): ...


class TestDocumentHistories(KafkaStores, DocumentHistoriesContract): ...
