"""The event log on Kafka: one consumer per group and process, offsets committed behind what is done.

Theory of operation
===================
A task of the group polls without a pause, as the broker takes a member that does not for dead; what is polled waits in
a queue.  When `BUSY` deliveries are not done, the partitions are paused: polling goes on and brings nothing.

Messages are done in any order, and a partition's offset is that of the oldest that is not, so nothing that is not done
is ever passed.  Offsets are committed once a second, at a rebalance and at the end.

A rebalance takes partitions away.  What of them is in flight has `HANDOVER_S` to be done, so that the next owner does
not do it again; what is not done then is done by both, which handlers bear, and its offset is not committed here: a
partition that comes back begins anew, under another generation.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from opentelemetry.metrics import CallbackOptions, Observation, get_meter

from runtape.adapters.kafka.codec import AvroCodec
from runtape.adapters.kafka.connection import unreachable
from runtape.adapters.kafka.headers import REPLAYED_BY, SCHEMA, TYPE, header, headers_of
from runtape.adapters.kafka.offsets import Offsets
from runtape.adapters.kafka.producer import Producer
from runtape.domain.dead_letter import RawMessage
from runtape.domain.events import Message
from runtape.domain.replay import ReplaySessionId
from runtape.ports.errors import Poison, Transient
from runtape.ports.log import Delivery, UndecodableDelivery

log = structlog.get_logger(__name__)

BUSY = 2_000
"""Deliveries of one group that are not done, beyond which it is brought no more."""
CALM = 1_000
"""And how many, until it is brought more again."""
COMMIT_S = 1.0
COMMIT_WAIT_S = 3.0
"""How long a commit may take; for a topic that is gone the client would try again for ever, and no rebalance end."""
POLL_MS = 200
POLL_RECORDS = 500
HANDOVER_S = 10.0
SESSION_MS = 10_000
"""After so long without a heartbeat a member is taken for dead, and others get its partitions."""
HEARTBEAT_MS = 3_000
REBALANCE_MS = 20_000
"""How long the others wait for a member that hands over."""
METADATA_MS = 5_000
"""How often a member looks for topics and partitions that it does not know; nothing else tells it of a topic that is
made again after the group has let it go, and by default it would look every five minutes."""
READY_S = 2.0
STOP_S = 5.0
"""How long leaving the group may take; a broker that does not answer finds out by the session's end."""
RETRY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaDelivery(Delivery):
    """A delivery with what stands in the log, and the offsets of its partition while that is ours."""

    raw: RawMessage
    offsets: Offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaUndecodable(UndecodableDelivery):
    """What stands in the place of a message and is none, with the same."""

    offsets: Offsets


class KafkaEventLog:
    """`EventLog` over a Kafka cluster; ``connection`` are the settings of every client, `producer` is who writes it.

    ``prefix`` stands before the names of topics and groups, where several installations share a cluster.
    """

    def __init__(self, connection: Mapping[str, Any], codec: AvroCodec, producer: Producer, prefix: str = "") -> None:
        self._connection = connection
        self._codec = codec
        self._producer = producer
        self._prefix = prefix
        self._members: dict[str, _Member] = {}
        get_meter("runtape").create_observable_gauge(
            "runtape.consumer.lag",
            [self._observe_lag],
            unit="{message}",
            description="messages of a partition that its group has not done, by group, topic and partition",
        )

    def _observe_lag(self, _: CallbackOptions) -> Iterable[Observation]:
        for group, member in self._members.items():
            for partition, lag in member.lag().items():
                topic = partition.topic.removeprefix(self._prefix)
                yield Observation(lag, {"group": group, "topic": topic, "partition": partition.partition})

    async def consume(self, group: str, topics: Sequence[str]) -> AsyncGenerator[Delivery | UndecodableDelivery, None]:
        member = _Member(group, topics, self._connection, self._codec, self._prefix)
        await member.start()
        self._members[group] = member
        try:
            while True:
                yield await member.next()
        finally:
            del self._members[group]
            await member.stop()

    def acknowledge(self, group: str, delivery: Delivery | UndecodableDelivery) -> None:
        assert isinstance(delivery, KafkaDelivery | KafkaUndecodable)
        delivery.offsets.done(delivery.offset)

    async def raw(self, delivery: Delivery) -> RawMessage | None:
        assert isinstance(delivery, KafkaDelivery)
        return delivery.raw

    async def decode(self, raw: RawMessage) -> Message:
        return await decoded(self._codec, raw)

    async def ready(self) -> None:
        await self._producer.ready()
        for group, member in self._members.items():
            if not await member.answers():
                raise Transient(f"the group {group} has no connection to Kafka")


class _Member(ConsumerRebalanceListener):
    """This process's member of one consumer group."""

    def __init__(
        self, group: str, topics: Sequence[str], connection: Mapping[str, Any], codec: AvroCodec, prefix: str
    ) -> None:
        self._group = group
        self._connection = connection
        self._prefix = prefix
        self._topics = [prefix + topic for topic in topics]
        self._codec = codec
        self._offsets: dict[TopicPartition, Offsets] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._committing = asyncio.Lock()
        self._waiting: asyncio.Queue[KafkaDelivery | KafkaUndecodable] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        """Set once nothing here is handled any more, so that what is in flight is not waited for."""
        self._consumer = AIOKafkaConsumer(
            group_id=prefix + group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=POLL_RECORDS,
            # Whoever has a partition of one topic has that of the others: an execution is one process's business.
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=REBALANCE_MS,
            metadata_max_age_ms=METADATA_MS,
            **connection,
        )

    async def start(self) -> None:
        """Join the group.  Raises: Transient."""
        # Before the start, which waits until all topics are known: one that is known later is another rebalance.
        self._consumer.subscribe(topics=self._topics, listener=self)
        try:
            await self._consumer.start()
        except KafkaError as error:
            await self._consumer.stop()
            raise await unreachable(self._connection, error) from error
        except asyncio.CancelledError:
            self._stopping.set()
            await self._consumer.stop()
            raise
        self._tasks = [asyncio.create_task(self._poll()), asyncio.create_task(self._keep_committing())]

    async def stop(self) -> None:
        """Commit what is done and leave the group, which hands what is not to another member at once."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        leaving = asyncio.ensure_future(self._leave())
        done, _ = await asyncio.wait({leaving}, timeout=STOP_S)
        if not done:
            log.warning("kafka.not_left", group=self._group, seconds=STOP_S)

    async def _leave(self) -> None:
        await self._commit(self._offsets)
        await self._consumer.stop()

    async def next(self) -> KafkaDelivery | KafkaUndecodable:
        """Return the next delivery of a partition that is still ours."""
        while True:
            delivery = await self._waiting.get()
            partition = TopicPartition(self._prefix + delivery.raw.topic, delivery.raw.partition)
            if self._offsets.get(partition) is delivery.offsets:
                return delivery

    def lag(self) -> Mapping[TopicPartition, int]:
        """Return how many messages of each of our partitions are not done, as far as the broker has told."""
        found: dict[TopicPartition, int] = {}
        for partition, offsets in self._offsets.items():
            end = self._consumer.highwater(partition)
            # All that there is has been delivered, but for what is held back while much is not done.
            found[partition] = 0 if end is None or offsets.oldest is None else end - offsets.oldest
        return found

    async def answers(self) -> bool:
        """Whether the broker answers."""
        try:
            return bool(await asyncio.wait_for(self._consumer.topics(), READY_S))
        except (KafkaError, TimeoutError):
            return False

    async def _poll(self) -> None:
        paused: set[TopicPartition] = set()
        while True:
            busy = sum(map(len, self._offsets.values()))
            if busy > BUSY and not paused:
                paused = set(self._consumer.assignment())
                self._consumer.pause(*paused)
            elif busy < CALM and paused:
                self._consumer.resume(*paused & self._consumer.assignment())
                paused = set()
            try:
                found = await self._consumer.getmany(timeout_ms=POLL_MS)
            except KafkaError as error:
                log.warning("kafka.not_polled", group=self._group, error=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            for partition, records in found.items():
                offsets = self._offsets.get(partition)
                for record in records:
                    if offsets is None or offsets is not self._offsets.get(partition):
                        break  # it was taken away while its records were on their way
                    offsets.delivered(record.offset)
                    self._waiting.put_nowait(await self._delivery(record, offsets))

    async def _delivery(
        self, record: "ConsumerRecord[bytes, bytes]", offsets: Offsets
    ) -> KafkaDelivery | KafkaUndecodable:
        raw = raw_message(record, self._prefix)
        try:
            message = await self._decoded(raw)
        except Poison as poison:
            return KafkaUndecodable(raw, str(poison), offsets=offsets)
        replayed_by = header(record.headers, REPLAYED_BY)
        session = None if replayed_by is None else ReplaySessionId(replayed_by)
        return KafkaDelivery(message, record.offset, session, raw=raw, offsets=offsets)

    async def _decoded(self, raw: RawMessage) -> Message:
        """Return the message in `raw`, however long the registry does not tell its schema.  Raises: Poison."""
        while True:
            try:
                return await decoded(self._codec, raw)
            except Transient as error:
                log.warning("kafka.not_decoded", group=self._group, offset=raw.offset, error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _keep_committing(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_S)
            await self._commit(self._offsets)

    async def _commit(self, partitions: Collection[TopicPartition]) -> None:
        """Commit what is done of `partitions`; what could not be is committed with what comes after it.

        One at a time, so that none that is still tried outlasts a rebalance: offsets of a topic that was deleted would
        be committed for the one that was made in its place, and its first messages be passed.
        """
        async with self._committing:
            wanted = {
                partition: offset
                for partition in partitions
                if (offset := self._offsets[partition].committable) is not None
                and offset != self._committed.get(partition)
            }
            if not wanted:
                return
            try:
                async with asyncio.timeout(COMMIT_WAIT_S):
                    await self._consumer.commit(wanted)
                self._committed.update(wanted)
            except (CommitFailedError, IllegalStateError, KafkaError, TimeoutError) as error:
                log.warning("kafka.not_committed", group=self._group, error=str(error) or type(error).__name__)

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride]  # it may be a coroutine
        self, revoked: Collection[TopicPartition]
    ) -> None:
        """Give what is in flight some time, commit, and let the partitions go."""
        ours = [partition for partition in revoked if partition in self._offsets]
        ends = [asyncio.ensure_future(each) for each in (self._empty(ours), self._stopping.wait())]
        await asyncio.wait(ends, timeout=HANDOVER_S, return_when=asyncio.FIRST_COMPLETED)
        for each in ends:
            each.cancel()
        await self._commit(ours)
        for partition in ours:
            del self._offsets[partition]
            self._committed.pop(partition, None)

    async def _empty(self, partitions: Collection[TopicPartition]) -> bool:
        """Return once nothing of `partitions` is in flight."""
        for partition in partitions:
            await self._offsets[partition].empty()
        return True

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: Collection[TopicPartition]
    ) -> None:
        """Begin with the partitions anew."""
        for partition in assigned:
            self._offsets[partition] = Offsets()


def raw_message(record: "ConsumerRecord[bytes, bytes]", prefix: str) -> RawMessage:
    """Return what stands in the log."""
    return RawMessage(
        topic=record.topic.removeprefix(prefix),
        partition=record.partition,
        offset=record.offset,
        key=(record.key or b"").decode("utf-8", "replace"),
        type=header(record.headers, TYPE) or "",
        body=record.value or b"",
        headers=headers_of(record.headers),
    )


async def decoded(codec: AvroCodec, raw: RawMessage) -> Message:
    """Return the message in `raw`.  Raises: Poison; Transient."""
    message = await codec.decode(raw.type, raw.body, raw.headers.get(SCHEMA))
    if message.execution_id != raw.key:
        raise Poison(f"the key is {raw.key!r}, the message is of {message.execution_id!r}")
    if message.topic != raw.topic:
        raise Poison(f"{raw.type} does not belong to {raw.topic}")
    return message
