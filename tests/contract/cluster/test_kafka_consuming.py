"""How much a member of a group takes at a time, and what becomes of its work when another one takes over."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from runtape.adapters.kafka import log as kafka_log
from runtape.adapters.kafka.codec import AvroCodec
from runtape.adapters.kafka.log import KafkaDelivery, KafkaEventLog
from runtape.adapters.kafka.producer import Producer
from runtape.domain.events import POD_COMMANDS
from runtape.ports.log import Delivery
from tests.adapters.fixed_schemas import FixedSchemas
from tests.contract.suites.log import GROUP, commands
from tests.rig.kafka import Kafka

pytestmark = pytest.mark.needs("kafka")
CODEC = AvroCodec(FixedSchemas())
PARTITIONS = 2
NAMES = "abcdefgh"
"""Executions, some in either partition."""

SOON_S = 40.0
_numbers = count(1)


@pytest.fixture
def prefix(kafka_part: Kafka) -> str:
    return f"{kafka_part.scope}consuming{next(_numbers)}."


@pytest.fixture
async def connection(kafka_part: Kafka, prefix: str) -> AsyncIterator[dict[str, Any]]:
    connection: dict[str, Any] = {"bootstrap_servers": kafka_part.bootstrap}
    admin = AIOKafkaAdminClient(**connection)
    await admin.start()
    await admin.create_topics([NewTopic(prefix + POD_COMMANDS, PARTITIONS, 1)])
    yield connection
    await admin.delete_topics([prefix + POD_COMMANDS])
    await admin.close()


@pytest.fixture
async def producer(connection: dict[str, Any], prefix: str) -> AsyncIterator[Producer]:
    producer = Producer(connection, CODEC, prefix)
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> "asyncio.Queue[int]":
    """How many records each poll has brought, of the consumers that are made afterwards."""
    polled: asyncio.Queue[int] = asyncio.Queue()

    class Counted(AIOKafkaConsumer):
        async def getmany(self, *partitions: TopicPartition, **options: Any) -> Any:
            found = await super().getmany(*partitions, **options)
            polled.put_nowait(sum(map(len, found.values())))
            return found

    monkeypatch.setattr(kafka_log, "AIOKafkaConsumer", Counted)
    return polled


async def brought(polled: "asyncio.Queue[int]", least: int) -> int:
    """Return how many records came, `least` of which are waited for, before three polls in a row brought none."""
    records = without = 0
    while records < least or without < 3:
        found = await polled.get()
        records += found
        without = 0 if found else without + 1
    return records


async def test_a_group_that_has_much_to_do_is_brought_no_more_until_most_of_it_is_done(
    connection: dict[str, Any],
    producer: Producer,
    prefix: str,
    polled: "asyncio.Queue[int]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"BUSY": 5, "CALM": 2, "POLL_RECORDS": 1}.items():
        monkeypatch.setattr(kafka_log, name, value)
    sent = commands("a", 50)
    for message in sent:
        await producer.publish(message)
    log = KafkaEventLog(connection, CODEC, producer, prefix)
    deliveries = log.consume(GROUP, (POD_COMMANDS,))
    async with asyncio.timeout(SOON_S):
        found = [await anext(deliveries)]
        assert await brought(polled, 6) == 6, "one beyond what is busy"
        found += [await anext(deliveries) for _ in range(5)]
        for each in found[:4]:
            log.acknowledge(GROUP, each)
        assert await brought(polled, 0) == 0, "two that are not done are not few enough"
        log.acknowledge(GROUP, found[4])
        assert await brought(polled, 5) == 5, "as many as make it busy again"
        log.acknowledge(GROUP, found[5])
        while len(found) < len(sent):
            found.append(await anext(deliveries))
            log.acknowledge(GROUP, found[-1])
    assert [each.message for each in found if isinstance(each, Delivery)] == list(sent)
    await deliveries.aclose()


class Revocation:
    """When partitions were taken away from a member, and when it has let them go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()


class _Watched(ConsumerRebalanceListener):
    def __init__(self, inner: Any, told: Revocation) -> None:
        self._inner = inner
        self._told = told

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride]  # it may be a coroutine
        self, revoked: Sequence[TopicPartition]
    ) -> None:
        if revoked:
            self._told.begun.set()
        await self._inner.on_partitions_revoked(revoked)
        if revoked:
            self._told.ended.set()

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: Sequence[TopicPartition]
    ) -> None:
        await self._inner.on_partitions_assigned(assigned)


@pytest.fixture
def revocation(monkeypatch: pytest.MonkeyPatch) -> Revocation:
    """The first one of the members that are made afterwards, who hear of another one at once."""
    revocation = Revocation()

    class Told(AIOKafkaConsumer):
        def subscribe(self, topics: Any = (), pattern: Any = None, listener: Any = None) -> None:
            super().subscribe(topics, pattern, _Watched(listener, revocation))

    monkeypatch.setattr(kafka_log, "AIOKafkaConsumer", Told)
    monkeypatch.setattr(kafka_log, "HEARTBEAT_MS", 100)
    return revocation


class Member:
    """A process's member of the group, and what it was brought."""

    def __init__(self, log: KafkaEventLog, arrived: asyncio.Condition) -> None:
        self._log = log
        self._arrived = arrived
        self.found: list[KafkaDelivery] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for delivery in self._log.consume(GROUP, (POD_COMMANDS,)):
            assert isinstance(delivery, KafkaDelivery)
            async with self._arrived:
                self.found.append(delivery)
                self._arrived.notify_all()

    def ids(self) -> list[str]:
        return [each.message.id for each in self.found]

    def acknowledge(self, deliveries: Sequence[KafkaDelivery]) -> None:
        for each in deliveries:
            self._log.acknowledge(GROUP, each)

    async def leave(self) -> None:
        """Commit what is done, and leave the group."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Group:
    """The members of one group, and what is published for them."""

    def __init__(self, connection: dict[str, Any], producer: Producer, prefix: str) -> None:
        self._connection = connection
        self._producer = producer
        self._prefix = prefix
        self._arrived = asyncio.Condition()
        self.members: list[Member] = []

    def join(self) -> Member:
        """Return another member."""
        log = KafkaEventLog(self._connection, CODEC, self._producer, self._prefix)
        self.members.append(Member(log, self._arrived))
        return self.members[-1]

    async def publish(self, attempt: int) -> list[str]:
        """Publish a message of each execution, and return their ids."""
        messages = [commands(name, attempt)[-1] for name in NAMES]
        for message in messages:
            await self._producer.publish(message)
        return [message.id for message in messages]

    async def until(self, whether: Callable[[], bool]) -> None:
        """Return once that is so of what the members were brought."""
        async with asyncio.timeout(SOON_S), self._arrived:
            await self._arrived.wait_for(whether)

    async def committed(self) -> dict[int, int]:
        """Return the group's offsets by partition."""
        admin = AIOKafkaAdminClient(**self._connection)
        await admin.start()
        found = await admin.list_consumer_group_offsets(self._prefix + GROUP)
        await admin.close()
        return {place.partition: told.offset for place, told in found.items()}


@pytest.fixture
async def group(
    connection: dict[str, Any], producer: Producer, prefix: str, revocation: Revocation
) -> AsyncIterator[Group]:
    group = Group(connection, producer, prefix)
    yield group
    for each in group.members:
        await each.leave()


async def a_busy_member(group: Group) -> tuple[Member, list[str]]:
    """Return the only member, which was brought something of both partitions and has done nothing of it, and that."""
    member = group.join()
    sent = await group.publish(1)
    await group.until(lambda: len(member.found) == len(sent))
    assert {each.raw.partition for each in member.found} == set(range(PARTITIONS))
    return member, sent


async def test_what_is_done_before_partitions_are_let_go_is_not_done_by_the_other(
    group: Group, revocation: Revocation
) -> None:
    first, sent = await a_busy_member(group)
    second = group.join()
    async with asyncio.timeout(SOON_S):
        await revocation.begun.wait()
    with pytest.raises(TimeoutError):  # it waits for what is in flight
        await asyncio.wait_for(revocation.ended.wait(), 0.5)
    first.acknowledge(first.found)
    sent += (later := await group.publish(2))
    await group.until(lambda: {*later} <= {*first.ids(), *second.ids()})
    assert sorted(first.ids() + second.ids()) == sorted(sent)
    assert second.found, "one partition is the other's"


async def test_what_is_done_after_partitions_were_let_go_is_done_again_and_moves_no_offset(
    group: Group, revocation: Revocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_log, "HANDOVER_S", 0.2)
    first, sent = await a_busy_member(group)
    in_time = [each for each in first.found if each.offset == 0]
    first.acknowledge(in_time)
    second = group.join()
    async with asyncio.timeout(SOON_S):
        await revocation.ended.wait()
    late = [each for each in first.found if each not in in_time]
    first.acknowledge(late)
    expected = {each.message.id for each in late}
    await group.until(lambda: expected <= {*first.ids()[len(sent) :], *second.ids()})
    assert sorted(first.ids()[len(sent) :] + second.ids()) == sorted(expected)
    assert second.found, "one partition is the other's"
    first.acknowledge(late)
    await first.leave()
    assert await group.committed() == dict.fromkeys(range(PARTITIONS), 1)
