"""A log as a broker keeps it: partitions by key, consumer groups with offsets, members that come, go and lag behind.

Delivery is at-least-once and in order per partition, but for duplicates.  A member whose process is dead or paused is
put out of its group after a while; what it has fetched before it still handles, beside whoever got its partitions.
"""

import asyncio
import zlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec

from runtape.domain.dead_letter import RawMessage
from runtape.domain.events import EXECUTION_EVENTS, MESSAGE_TYPES, ExecutionRequested, Message
from runtape.domain.ids import EventId
from runtape.ports import errors
from runtape.ports.log import Delivery, UndecodableDelivery
from tests.simulation.network import Remote
from tests.simulation.world import Life, World

PARTITIONS = 3
FETCH = 4
HEARTBEAT_S = 2.0
COMMIT_INTERVAL_S = 1.0

Partition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class PartitionDelivery(Delivery):
    """A message with the partition that it came from, as its group was then."""

    partition: Partition = ("", 0)
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison(Message):
    """A message that no handler can take: it has the name of an event and is none."""

    type: ClassVar[str] = ExecutionRequested.type
    topic: ClassVar[str] = EXECUTION_EVENTS
    number: int

    @property
    def id(self) -> EventId:
        return EventId(f"poison-{self.number}")


@dataclass(slots=True)
class _Member:
    name: str
    life: Life
    topics: frozenset[str]
    positions: dict[Partition, int] = field(default_factory=dict[Partition, int])
    waiting: "asyncio.Future[list[PartitionDelivery]] | None" = None


@dataclass(slots=True)
class _Group:
    committed: dict[Partition, int] = field(default_factory=lambda: defaultdict[Partition, int](int))
    members: dict[str, _Member] = field(default_factory=dict[str, _Member])
    generation: int = 0
    lost: set[tuple[Partition, int]] = field(default_factory=set[tuple[Partition, int]])


class Broker:
    """The log of all processes; its methods are requests."""

    def __init__(self, world: World, acknowledged: Callable[[str, Message], None]) -> None:
        self._world = world
        self._acknowledged = acknowledged
        self.partitions: dict[Partition, list[Message]] = defaultdict(list)
        self.groups: dict[str, _Group] = defaultdict(_Group)
        self._members = 0

    def publish(self, message: Message) -> None:
        """Append `message`."""
        partition = (message.topic, zlib.crc32(message.execution_id.encode()) % PARTITIONS)
        self.partitions[partition].append(message)
        for group in self.groups.values():
            for member in group.members.values():
                if partition in member.positions:
                    self._feed(group, member)

    def join(self, group_name: str, topics: Sequence[str], life: Life) -> str:
        """Add a member for `life` and return its name."""
        self._members += 1
        name = f"member-{self._members}"
        group = self.groups[group_name]
        group.members[name] = _Member(name, life, frozenset(topics))
        self.rebalance(group_name)
        self._watch(group_name, name)
        return name

    def _watch(self, group_name: str, name: str) -> None:
        """Put a member out whose heartbeats have stopped."""
        member = self.groups[group_name].members.get(name)
        if member is None:
            return
        if not member.life.alive or member.life.paused:
            self.leave(group_name, name)
        else:
            self._world.loop.in_world(HEARTBEAT_S, self._watch, group_name, name)

    def leave(self, group_name: str, name: str) -> None:
        """Take a member out."""
        group = self.groups[group_name]
        member = group.members.pop(name, None)
        if member is not None:
            if member.waiting is not None and not member.waiting.done():
                member.waiting.set_result([])
            self.rebalance(group_name)

    def rebalance(self, group_name: str) -> None:
        """Share the partitions out anew, beginning each that changes hands where the group has committed."""
        group = self.groups[group_name]
        group.generation += 1
        members = list(group.members.values())
        self._world.note("broker", f"rebalance {group_name} {' '.join(member.life.name for member in members)}")
        if not members:
            return
        shift = int(self._world.random.random() * len(members))
        topics = sorted({topic for member in members for topic in member.topics})
        wanted: dict[str, dict[Partition, int]] = {member.name: {} for member in members}
        for number, partition in enumerate((topic, each) for topic in topics for each in range(PARTITIONS)):
            member = members[(number + shift) % len(members)]
            kept = member.positions.get(partition)
            wanted[member.name][partition] = group.committed[partition] if kept is None else kept
        for member in members:
            member.positions = wanted[member.name]
        for member in members:
            self._feed(group, member)

    def fetch(
        self, group_name: str, name: str
    ) -> "list[PartitionDelivery] | asyncio.Future[list[PartitionDelivery]] | None":
        """Return what comes next for the member, waiting for it; None when it was put out."""
        group = self.groups[group_name]
        member = group.members.get(name)
        if member is None:
            return None
        found = self._next(group, member)
        if found:
            return found
        member.waiting = self._world.loop.create_future()
        return member.waiting

    def _feed(self, group: _Group, member: _Member) -> None:
        if member.waiting is not None and not member.waiting.done() and (found := self._next(group, member)):
            member.waiting.set_result(found)

    def _next(self, group: _Group, member: _Member) -> list[PartitionDelivery]:
        found: list[PartitionDelivery] = []
        for partition, position in member.positions.items():
            messages = self.partitions[partition][position : position + FETCH]
            member.positions[partition] = position + len(messages)
            for offset, message in enumerate(messages, position):
                if self._world.happens(self._world.mix.losses):
                    self._world.note("broker", f"lost {message.execution_id}:{message.type} for {member.life}")
                    group.lost.add((partition, offset))
                    continue
                found.append(PartitionDelivery(message, offset, partition=partition, generation=group.generation))
        return found

    def commit(self, group_name: str, name: str, offsets: dict[Partition, int]) -> None:
        """Note how far the group has come, on the partitions that the member still has."""
        group = self.groups[group_name]
        member = group.members.get(name)
        if member is None:
            return
        for partition, offset in offsets.items():
            if partition not in member.positions:
                continue
            messages = self.partitions[partition]
            for passed in range(group.committed[partition], offset):
                if (partition, passed) not in group.lost:
                    self._acknowledged(group_name, messages[passed])
            group.committed[partition] = max(group.committed[partition], offset)

    def lag(self) -> list[str]:
        """Say what some group has not acknowledged."""
        return [
            f"{name} is at {group.committed[partition]} of {len(messages)} in {partition}"
            for name, group in self.groups.items()
            for partition, messages in self.partitions.items()
            if any(partition[0] in member.topics for member in group.members.values())
            and any((partition, each) not in group.lost for each in range(group.committed[partition], len(messages)))
        ]


class RemoteLog:
    """`EventLog` and `Publisher` over a `Broker`."""

    def __init__(self, world: World, life: Life, broker: Broker) -> None:
        self._world = world
        self._life = life
        self._remote = Remote(world, life, broker, "log", sure=frozenset(("join", "fetch")))
        self._broker = broker
        self._in_flight: dict[str, dict[Partition, list[int]]] = {}
        self._next: dict[str, dict[Partition, int]] = {}
        self._names: dict[str, str] = {}
        self._flushing = False

    async def publish(self, message: Message) -> None:
        await self._remote.publish(message)

    async def ready(self) -> None:
        return

    async def raw(self, delivery: Delivery) -> RawMessage | None:
        assert isinstance(delivery, PartitionDelivery)
        return raw_of(delivery.message, delivery.partition[1], delivery.offset)

    async def decode(self, raw: RawMessage) -> Message:
        return decoded(raw)

    async def consume(self, group: str, topics: Sequence[str]) -> AsyncGenerator[Delivery, None]:
        world = self._world
        recent: list[PartitionDelivery] = []
        while True:
            name = self._names[group] = await self._remote.join(group, topics, self._life)
            in_flight = self._in_flight[group] = {}
            upcoming = self._next[group] = {}
            try:
                while (batch := await self._remote.fetch(group, name)) is not None:
                    for delivery in batch:
                        in_flight.setdefault(delivery.partition, []).append(delivery.offset)
                        upcoming[delivery.partition] = delivery.offset + 1
                    for delivery in batch:
                        world.note(self._life, f"{group} <- {_word(delivery.message)}")
                        yield delivery
                        recent.append(delivery)
                        while world.happens(world.mix.duplicates):
                            again = recent[int(world.random.random() * len(recent))]
                            world.note(self._life, f"{group} <- again {_word(again.message)}")
                            yield again
            finally:
                world.loop.in_world(0.0, self._broker.leave, group, name)

    def acknowledge(self, group: str, delivery: Delivery | UndecodableDelivery) -> None:
        assert isinstance(delivery, PartitionDelivery)
        waiting = self._in_flight.get(group, {}).get(delivery.partition, [])
        if delivery.offset in waiting:
            waiting.remove(delivery.offset)
        if not self._flushing:
            self._flushing = True
            self._world.loop.call_later(COMMIT_INTERVAL_S, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        for group, upcoming in self._next.items():
            in_flight = self._in_flight[group]
            offsets = {
                partition: min(in_flight[partition]) if in_flight[partition] else offset
                for partition, offset in upcoming.items()
            }
            self._world.loop.in_world(self._world.way_s(), self._broker.commit, group, self._names[group], offsets)


def raw_of(message: Message, partition: int, offset: int) -> RawMessage:
    """Return `message` as a log holds it."""
    return RawMessage(
        topic=message.topic,
        partition=partition,
        offset=offset,
        key=message.execution_id,
        type=message.type,
        body=msgspec.json.encode(message),
    )


def decoded(raw: RawMessage) -> Message:
    """Return the message in `raw`.  Raises: errors.Poison."""
    try:
        return msgspec.json.decode(raw.body, type=MESSAGE_TYPES[raw.type])
    except (KeyError, msgspec.MsgspecError) as error:
        raise errors.Poison(str(error)) from error


def _word(message: Message) -> str:
    return f"{message.execution_id}:{message.type}/{message.attempt}"
