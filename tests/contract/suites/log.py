"""What every `EventLog` does, with the `UnitOfWork` that feeds it."""

import asyncio
import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from runtape.domain import execution as executions
from runtape.domain.events import (
    EXECUTION_EVENTS,
    MESSAGE_TYPES,
    POD_COMMANDS,
    Correlation,
    Message,
    PodCreate,
    PodKill,
    StoredResult,
)
from runtape.domain.ids import EventId, ExecutionId
from runtape.domain.outcome import Outcome, OutcomeKind, TimelinePoint, Usage
from runtape.ports.errors import Poison
from runtape.ports.log import Delivery, UndecodableDelivery
from runtape.ports.stores import Change, Durability
from tests.builders import LEASE_TTL, PROJECT, an_execution, ended, requested, started
from tests.clocks import START
from tests.contract.suites.stores import ARCHIVAL, Stores, StoresBasic, acceptance, over, stored

GROUP = "group"
TOPICS = (EXECUTION_EVENTS, POD_COMMANDS)


class Reader:
    """Consumes a group in the background and keeps what was delivered."""

    def __init__(self, stores: Stores, group: str = GROUP, topics: Sequence[str] = TOPICS) -> None:
        self._stores = stores
        self._group = group
        self._arrived = asyncio.Condition()
        self.deliveries: list[Delivery] = []
        self.undecodable: list[UndecodableDelivery] = []
        self._task = asyncio.ensure_future(self._read(topics))

    async def _read(self, topics: Sequence[str]) -> None:
        async for delivery in self._stores.log.consume(self._group, topics):
            async with self._arrived:
                if isinstance(delivery, Delivery):
                    self.deliveries.append(delivery)
                else:
                    self.undecodable.append(delivery)
                self._arrived.notify_all()

    async def until(self, message_id: str) -> list[str]:
        """Wait for that message and return the ids of all that were delivered."""
        async with asyncio.timeout(10), self._arrived:
            await self._arrived.wait_for(lambda: message_id in self.ids())
        return self.ids()

    def ids(self) -> list[str]:
        return [delivery.message.id for delivery in self.deliveries]

    def acknowledge(self, *message_ids: str) -> None:
        for delivery in self.deliveries:
            if delivery.message.id in message_ids:
                self._stores.log.acknowledge(self._group, delivery)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def commands(name: str, count: int = 1) -> tuple[Message, ...]:
    return tuple(
        PodCreate(execution_id=ExecutionId(name), project_id=PROJECT, at=START, attempt=number)
        for number in range(1, count + 1)
    )


async def publish(stores: Stores, name: str, *messages: Message, handled_by: frozenset[str] = frozenset()) -> None:
    """Commit a new execution of that name with `messages`."""
    change = Change(
        document=requested(an_execution(name)),
        expected_version=0,
        messages=messages or commands(name),
        durability=Durability.PROCESS,
    )
    await stores.unit_of_work.commit([change], handled_by)


def one_of_each() -> list[Message]:
    """Return messages of every type, all of one execution."""
    live = started()
    result = StoredResult(stdout_sha256="a", stderr_sha256="b", stdout_bytes=1)
    return [
        *executions.request(an_execution(), START),
        *executions.start(requested(), 1, "w", START, LEASE_TTL),
        *executions.interrupt(live, 1, "lost", 4, START),
        *executions.cancel(live, "alice", "why", START),
        *(
            event
            for kind in OutcomeKind
            for event in executions.finish(
                replace(live, cancel_requested=kind is OutcomeKind.CANCELLED),
                1,
                Outcome(kind=kind),
                Usage(wall_ns=1),
                2,
                START,
            )
        ),
        *executions.finish(live, 1, Outcome(kind=OutcomeKind.EXITED), Usage(), 2, START, (TimelinePoint(1, 2, 3),)),
        *executions.store_result(ended(), result, START),
        *commands(live.id),
        PodKill(execution_id=live.id, project_id=PROJECT, at=START, attempt=1),
    ]


class EventLogContract(StoresBasic):
    @abstractmethod
    def plant(self, topic: str, key: str, type: str, body: bytes | str) -> int:
        """Put a row into the log past all code, while nothing is open, and return its offset."""

    async def test_every_message_arrives_as_it_was_sent(self, stores: Stores) -> None:
        sent = one_of_each()
        assert {message.type for message in sent} == set(MESSAGE_TYPES)
        reader = Reader(stores)
        await publish(stores, sent[0].execution_id, *sent)
        for topic in TOPICS:
            of_topic = [message for message in sent if message.topic == topic]
            await reader.until(of_topic[-1].id)
            found = [delivery.message for delivery in reader.deliveries if delivery.message.topic == topic]
            assert found == of_topic
        await reader.stop()

    async def test_messages_of_one_execution_keep_their_order(self, stores: Stores) -> None:
        reader = Reader(stores)
        await asyncio.gather(*(publish(stores, f"e{n}", *commands(f"e{n}", 20)) for n in range(20)))
        await publish(stores, "last")
        await reader.until("last.create.1")
        attempts: dict[str, list[int]] = defaultdict(list)
        for delivery in reader.deliveries:
            attempts[delivery.message.execution_id].append(delivery.message.attempt)
        assert [attempts[f"e{n}"] for n in range(20)] == [list(range(1, 21))] * 20
        await reader.stop()

    async def test_a_group_gets_only_its_topics_and_each_group_gets_everything(self, stores: Stores) -> None:
        readers = [Reader(stores, "a", [POD_COMMANDS]), Reader(stores, "b"), Reader(stores, "c", [EXECUTION_EVENTS])]
        await stores.unit_of_work.commit([acceptance(an_execution("e"))])
        await publish(stores, "f")
        await stores.unit_of_work.commit([acceptance(an_execution("g"))])
        assert await readers[0].until("f.create.1") == ["f.create.1"]
        await readers[1].until("f.create.1")
        assert sorted(await readers[1].until("g.1")) == ["e.1", "f.create.1", "g.1"]
        assert await readers[2].until("g.1") == ["e.1", "g.1"]
        for reader in readers:
            await reader.stop()

    async def test_what_was_acknowledged_does_not_come_again_and_the_rest_does(self) -> None:
        async with self.open() as stores:
            reader = Reader(stores)
            for name in "abcd":
                await publish(stores, name)
            await reader.until("d.create.1")
            reader.acknowledge("d.create.1", "a.create.1", "b.create.1")
            await reader.stop()
        async with self.open() as stores:
            reader = Reader(stores)
            await publish(stores, "e")
            again = await reader.until("e.create.1")
            assert "c.create.1" in again
            assert not {"a.create.1", "b.create.1"} & set(again)
            await reader.stop()

    async def test_nothing_is_skipped_while_something_older_is_in_flight(self) -> None:
        async with self.open() as stores:
            reader = Reader(stores)
            await publish(stores, "a")
            await reader.until("a.create.1")
            for name in "bcd":
                await publish(stores, name)
            await reader.until("d.create.1")
            reader.acknowledge(*(f"{name}.create.1" for name in "bcd"))
            await reader.stop()
        async with self.open() as stores:
            reader = Reader(stores)
            assert (await reader.until("a.create.1"))[0] == "a.create.1"
            await reader.stop()

    async def test_messages_that_were_published_before_the_group_existed_are_read(self, stores: Stores) -> None:
        for number in range(3):
            await publish(stores, f"e{number}", *commands(f"e{number}", 400))
        reader = Reader(stores)
        assert len(await reader.until("e2.create.400")) == 1200
        await reader.stop()

    async def test_nothing_is_lost_between_what_lies_stored_and_what_arrives(self, stores: Stores) -> None:
        """Publishers go on while a new reader changes from the stored messages to the arriving ones."""
        count = 300
        for number in range(0, count, 3):
            await publish(stores, f"e{number}")
        reader = Reader(stores)

        async def publisher(first: int) -> None:
            for number in range(first, count, 3):
                await publish(stores, f"e{number}", handled_by=frozenset({GROUP} if number % 2 else ()))

        await asyncio.gather(publisher(1), publisher(2))
        await publish(stores, "last")
        delivered = await reader.until("last.create.1")
        must = {f"e{number}.create.1" for number in range(count) if number % 3 == 0 or number % 2 == 0}
        assert must <= set(delivered)
        assert len(delivered) == len(set(delivered)), "twice to one reader that never restarted"
        await reader.stop()

    async def test_deleting_the_newest_execution_hides_no_later_message(self) -> None:
        async with self.open() as stores:
            reader = Reader(stores)
            await stored(stores, over(requested(an_execution("old"))))
            await publish(stores, "gone", *commands("gone", 5))
            await reader.until("gone.create.5")
            reader.acknowledge(*reader.ids())
            await stores.executions.delete(ExecutionId("gone"), ARCHIVAL)
            await publish(stores, "new")
            await reader.until("new.create.1")
            await reader.stop()
        async with self.open() as stores:
            reader = Reader(stores)
            await publish(stores, "last")
            assert "new.create.1" in await reader.until("last.create.1")
            await reader.stop()

    async def test_deleting_what_a_reader_has_not_reached_does_not_stop_it(self, stores: Stores) -> None:
        await publish(stores, "first", *commands("first", 600))
        reader = Reader(stores)
        await publish(stores, "gone")
        await stores.executions.delete(ExecutionId("gone"), ARCHIVAL)
        await publish(stores, "last")
        await reader.until("last.create.1")
        await reader.stop()

    async def test_what_cannot_be_decoded_is_delivered_in_its_place_to_each_group_of_its_topic(self) -> None:
        async with self.open() as stores:
            await publish(stores, "e", *commands("e", 1))
        good = msgspec.json.encode(commands("e")[0])
        planted = [
            (self.plant(POD_COMMANDS, "e", name, body), name, body)
            for name, body in (
                ("pod.create", b""),
                ("pod.create", b"\xff\x00"),
                ("pod.create", b"{}"),
                ("pod.create", b"[" * 100_000),
                ("pod.create", good.replace(b'"e"', b'"\xff"')),
                ("pod.create", good.replace(b'"e"', b'"other"')),
                ("pod.create", "text, no bytes: \u00fc"),
                ("pod.dance", good),
                ("", good),
            )
        ]
        self.plant(EXECUTION_EVENTS, "e", "execution.unheard", good)
        async with self.open() as stores:
            readers = [Reader(stores, "a", [POD_COMMANDS]), Reader(stores, "b", [POD_COMMANDS])]
            await publish(stores, "f")
            for reader in readers:
                assert await reader.until("f.create.1") == ["e.create.1", "f.create.1"]
                found = [(each.offset, each.raw.type, each.raw.body) for each in reader.undecodable]
                bodies = [
                    (offset, name, body.encode() if isinstance(body, str) else body) for offset, name, body in planted
                ]
                assert found == bodies
                assert {(each.raw.topic, each.raw.key, each.raw.partition) for each in reader.undecodable} == {
                    (POD_COMMANDS, "e", 0)
                }
                for each in reader.undecodable:
                    assert each.cause
                    with pytest.raises(Poison, match=re.escape(each.cause)):
                        await stores.log.decode(each.raw)
                await reader.stop()

    async def test_what_cannot_be_decoded_comes_again_until_it_is_acknowledged(self) -> None:
        offset = self.plant(POD_COMMANDS, "e", "pod.dance", b"?")
        for number, (expected, acknowledged) in enumerate((([offset], False), ([offset], True), ([], False))):
            async with self.open() as stores:
                reader = Reader(stores)
                await publish(stores, f"f{number}")
                await reader.until(f"f{number}.create.1")
                assert [each.offset for each in reader.undecodable] == expected
                if acknowledged:
                    stores.log.acknowledge(GROUP, reader.undecodable[0])
                    reader.acknowledge(*reader.ids())
                await reader.stop()

    async def test_a_message_can_be_had_as_the_log_holds_it(self, stores: Stores) -> None:
        reader = Reader(stores)
        origin = commands("e")[0].caused(Correlation("request-1", "00-trace"), EventId("e.1"))
        await publish(stores, "e", origin)
        await publish(stores, "f")
        await reader.until("f.create.1")
        raw, plain = [await stores.log.raw(delivery) for delivery in reader.deliveries]
        assert raw is not None
        assert plain is not None
        assert (raw.topic, raw.partition, raw.key, raw.type) == (POD_COMMANDS, 0, "e", "pod.create")
        assert raw.offset == reader.deliveries[0].offset
        told = [{name: value for name, value in each.headers.items() if name != "schema"} for each in (raw, plain)]
        assert told == [{"correlation_id": "request-1", "traceparent": "00-trace", "causation_id": "e.1"}, {}]
        assert await stores.log.decode(raw) == origin
        await reader.stop()

    async def test_it_is_ready(self, stores: Stores) -> None:
        await stores.log.ready()


class OneStoreLogContract(StoresBasic):
    """What an `EventLog` does besides that is in one store with the documents."""

    async def test_handled_messages_pass_by_the_group_that_handled_them_alone(self, stores: Stores) -> None:
        readers = [Reader(stores, "a"), Reader(stores, "b")]
        await publish(stores, "first")
        for reader in readers:
            await reader.until("first.create.1")
        await publish(stores, "e", handled_by=frozenset({"a"}))
        await publish(stores, "last")
        assert await readers[0].until("last.create.1") == ["first.create.1", "last.create.1"]
        assert await readers[1].until("last.create.1") == ["first.create.1", "e.create.1", "last.create.1"]
        for reader in readers:
            await reader.stop()

    async def test_handled_messages_are_done_for_the_next_process_too(self) -> None:
        async with self.open() as stores:
            reader = Reader(stores)
            await publish(stores, "a")
            await reader.until("a.create.1")
            reader.acknowledge("a.create.1")
            await publish(stores, "b", handled_by=frozenset({GROUP}))
            await reader.stop()
        async with self.open() as stores:
            reader = Reader(stores)
            await publish(stores, "c")
            assert await reader.until("c.create.1") == ["c.create.1"]
            await reader.stop()

    async def test_messages_of_a_deleted_execution_cannot_be_had(self, stores: Stores) -> None:
        reader = Reader(stores)
        await publish(stores, "e")
        await publish(stores, "f")
        await reader.until("f.create.1")
        assert await stores.log.raw(reader.deliveries[0]) is not None
        await stores.executions.delete(ExecutionId("e"), ARCHIVAL)
        assert await stores.log.raw(reader.deliveries[0]) is None
        await reader.stop()
