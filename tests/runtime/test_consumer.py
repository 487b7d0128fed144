"""The consumer loop: order per key, retries by the class of the failure, dead letters, and acknowledgements."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, cast

import msgspec
import pytest
from structlog.testing import capture_logs

from runtape.application.dead_letters import DeadLetters
from runtape.application.flow import Tasks
from runtape.domain.dead_letter import DeadLetter, RawMessage
from runtape.domain.events import POD_COMMANDS, Message, PodCreate, PodKill
from runtape.domain.ids import ExecutionId
from runtape.domain.replay import ReplaySessionId
from runtape.ports.dead_letters import DeadLetterFilter, DeadLetterStore
from runtape.ports.errors import Permanent, Poison, Transient, Unavailable
from runtape.ports.log import Delivery, UndecodableDelivery
from runtape.runtime import consumer as consumer_module
from runtape.runtime.consumer import TRIES, UNCLASSED_TRIES, Consumer
from runtape.runtime.dispatcher import Dispatcher
from tests.application.chaos import InlineDatabase
from tests.builders import PROJECT
from tests.clocks import START, ManualClock
from tests.contract.embedded.basic import quick_place, sqlite_stores

Handle = Callable[[Message], Awaitable[None]]


class Log:
    """An `EventLog` that a test feeds by hand."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Delivery | UndecodableDelivery] = asyncio.Queue()
        self.deleted = False
        self.acknowledged: list[int] = []
        self.changed = asyncio.Event()

    async def consume(self, group: str, topics: Sequence[str]) -> AsyncGenerator[Delivery | UndecodableDelivery, None]:
        while True:
            yield await self.queue.get()

    async def raw(self, delivery: Delivery) -> RawMessage | None:
        return None if self.deleted else raw_of(delivery.message, delivery.offset)

    async def decode(self, raw: RawMessage) -> Message:
        if raw.type != PodCreate.type:
            raise Poison(f"no {raw.type} here")
        return msgspec.json.decode(raw.body, type=PodCreate)

    async def ready(self) -> None: ...

    def acknowledge(self, group: str, delivery: Delivery | UndecodableDelivery) -> None:
        self.acknowledged.append(delivery.offset)
        self.changed.set()

    async def until_acknowledged(self, count: int) -> list[int]:
        async with asyncio.timeout(5):
            while len(self.acknowledged) < count:
                self.changed.clear()
                await self.changed.wait()
        return self.acknowledged


def raw_of(message: Message, offset: int) -> RawMessage:
    body = msgspec.json.encode(message)
    return RawMessage(
        topic=message.topic, partition=0, offset=offset, key=message.execution_id, type=message.type, body=body
    )


class Running:
    """A consumer over a hand-fed log, whose flow calls `handle`, and over a real store of dead letters."""

    def __init__(self, store: DeadLetterStore, handle: Handle, at_once: int = 256, replays: Sequence[str] = ()) -> None:
        self.log = Log()
        self.store = store
        self.handled: list[tuple[str, int]] = []
        self._handle = handle
        self._offset = 0
        self.tasks = Tasks(lambda name, error: None)
        self.clock = ManualClock()
        self.dead_letters = DeadLetters(store=store, event_log=self.log, clock=self.clock, tasks=self.tasks)
        self.consumer = Consumer(
            group="group",
            topics=(POD_COMMANDS,),
            dispatcher=Dispatcher(cast(Any, self), {"pod.create": cast(Any, "handler")}, replays),
            event_log=self.log,
            dead_letters=self.dead_letters,
            tasks=self.tasks,
            at_once=at_once,
        )
        self.tasks.spawn(self.consumer.run(), "consumer")

    async def handle(self, handler: object, message: Message) -> None:
        await self._handle(message)
        self.handled.append((message.execution_id, message.attempt))

    def send(self, name: str, attempt: int = 1, kind: type[Message] = PodCreate, replayed_by: str | None = None) -> int:
        self._offset += 1
        message = kind(execution_id=ExecutionId(name), project_id=PROJECT, at=START, attempt=attempt)
        self.log.queue.put_nowait(
            Delivery(message, self._offset, ReplaySessionId(replayed_by) if replayed_by is not None else None)
        )
        return self._offset

    def send_undecodable(self, name: str) -> int:
        self._offset += 1
        raw = RawMessage(topic=POD_COMMANDS, partition=0, offset=self._offset, key=name, type="pod.dance", body=b"\xff")
        self.log.queue.put_nowait(UndecodableDelivery(raw, "nobody knows it"))
        return self._offset

    async def letters(self) -> list[DeadLetter]:
        return list(await self.store.oldest(DeadLetterFilter(), 1000))


Start = Callable[..., Running]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start consumers over one store."""
    made: list[Running] = []
    with quick_place() as place:
        async with sqlite_stores(place / "runtape.db", ManualClock(), InlineDatabase) as stores:

            def begin(handle: Handle, at_once: int = 256, replays: Sequence[str] = ()) -> Running:
                made.append(Running(stores.dead_letters, handle, at_once, replays))
                return made[-1]

            yield begin
            for each in made:
                await each.tasks.close()


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "FIRST_PAUSE_S", 0.0)


async def test_one_execution_goes_in_order_and_holds_up_no_other(start: Start) -> None:
    gate = asyncio.Event()

    async def handle(message: Message) -> None:
        if message.execution_id == "slow":
            await gate.wait()

    running = start(handle)
    for attempt in (1, 2, 3):
        running.send("slow", attempt)
    for name in "abc":
        running.send(name)
    assert await running.log.until_acknowledged(3) == [4, 5, 6]
    gate.set()
    assert (await running.log.until_acknowledged(6))[3:] == [1, 2, 3]
    assert running.handled[3:] == [("slow", 1), ("slow", 2), ("slow", 3)]
    await running.tasks.close()


async def test_a_backlog_is_handled_by_as_many_tasks_as_there_are_places(start: Start) -> None:
    gate, full = asyncio.Event(), asyncio.Event()
    handled_now = most = 0

    async def handle(message: Message) -> None:
        nonlocal handled_now, most
        handled_now += 1
        most = max(most, handled_now)
        if handled_now == 8:
            full.set()
        await gate.wait()
        handled_now -= 1

    others = len(asyncio.all_tasks())
    running = start(handle, at_once=8)
    offsets = [running.send(f"e{number}") for number in range(1000)]
    await asyncio.wait_for(full.wait(), 5)
    assert len(asyncio.all_tasks()) == others + 8 + 1  # the consumer itself
    assert running.log.queue.qsize() == 1000 - 8 - 1  # it holds the one that has no place yet
    gate.set()
    assert sorted(await running.log.until_acknowledged(1000)) == offsets
    assert most == 8
    await running.tasks.close()


async def test_an_execution_that_waits_keeps_one_place_and_the_others_go_on(start: Start) -> None:
    gate = asyncio.Event()

    async def handle(message: Message) -> None:
        if message.execution_id == "slow":
            await gate.wait()
        if message.execution_id == "wrong":
            raise Permanent("no")

    running = start(handle, at_once=2)
    running.send("slow")
    for name in ("wrong", *map(str, range(50))):
        running.send(name)
    with capture_logs():
        assert sorted(await running.log.until_acknowledged(51)) == list(range(2, 53))
    running.send("slow", 2)
    gate.set()
    assert (await running.log.until_acknowledged(53))[51:] == [1, 53]
    await running.tasks.close()


async def test_a_message_is_acknowledged_only_when_it_was_handled(start: Start) -> None:
    gate = asyncio.Event()

    async def handle(message: Message) -> None:
        await gate.wait()

    running = start(handle)
    running.send("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert running.log.acknowledged == []
    await running.tasks.close()
    assert running.log.acknowledged == [], "what was cancelled comes again"


async def test_messages_that_the_group_does_not_handle_are_passed_over(start: Start) -> None:
    async def handle(message: Message) -> None:
        raise AssertionError

    running = start(handle)
    running.send("a", kind=PodKill)
    assert await running.log.until_acknowledged(1) == [1]
    await running.tasks.close()


async def test_a_transient_failure_is_tried_again_before_the_next_message_of_its_execution(start: Start) -> None:
    failures = [Transient("busy", retry_after_s=0.001), Transient("busy")]

    async def handle(message: Message) -> None:
        if message.attempt == 1 and failures:
            raise failures.pop()

    running = start(handle)
    running.send("a", 1)
    running.send("a", 2)
    with capture_logs() as logs:
        await running.log.until_acknowledged(2)
    assert running.handled == [("a", 1), ("a", 2)]
    assert [entry["event"] for entry in logs] == ["message.retried"] * 2
    await running.tasks.close()


@pytest.mark.parametrize(
    ("error", "tries", "failure"),
    [
        (Transient("busy"), TRIES, "transient"),
        (Permanent("no"), 1, "permanent"),
        (Poison("rotten"), 1, "poison"),
        (RuntimeError("bug"), UNCLASSED_TRIES, "poison"),
    ],
)
async def test_what_cannot_be_handled_is_dead_and_parks_its_key(
    start: Start, error: Exception, tries: int, failure: str
) -> None:
    tried = 0

    async def handle(message: Message) -> None:
        nonlocal tried
        if message.execution_id == "a":
            tried += 1
            raise error

    running = start(handle)
    running.send("a", 1)
    running.send("a", 2)
    running.send("b", 1)
    with capture_logs() as logs:
        await running.log.until_acknowledged(3)
    assert tried == tries
    assert running.handled == [("b", 1)]
    (told,) = [entry for entry in logs if entry["event"] == "message.dead"]
    dead, behind = await running.letters()
    assert (dead.failure, dead.attempts, dead.status, dead.group) == (failure, tries, "scheduled", "group")
    assert (dead.message.offset, dead.message.key, dead.message_id) == (1, "a", "a.create.1")
    assert str(error) in dead.cause
    assert dead.stack_digest == told["stack_digest"]
    assert (behind.failure, behind.attempts, behind.status) == ("parked", 0, "pending")
    assert behind.message.offset == 2


async def test_nothing_is_given_up_while_a_part_is_gone(start: Start) -> None:
    calls = 0

    async def handle(message: Message) -> None:
        nonlocal calls
        calls += 1
        if calls <= 3 * TRIES:
            raise Unavailable("the store is down")

    running = start(handle)
    running.send("a")
    with capture_logs() as logs:
        await running.log.until_acknowledged(1)
    assert running.handled[-1] == ("a", 1)
    assert calls == 3 * TRIES + 1
    assert await running.letters() == []
    assert {(entry["event"], entry["error"]) for entry in logs} == {("message.waits", "the store is down")}


async def test_a_passing_fault_of_no_class_leaves_no_dead_letter(start: Start) -> None:
    failures = [RuntimeError("once"), Transient("busy")]

    async def handle(message: Message) -> None:
        if failures:
            raise failures.pop()

    running = start(handle)
    running.send("a")
    with capture_logs():
        await running.log.until_acknowledged(1)
    assert running.handled == [("a", 1)]
    assert await running.letters() == []


async def test_what_cannot_be_decoded_is_dead_in_its_place_and_the_group_goes_on(start: Start) -> None:
    async def handle(message: Message) -> None: ...

    running = start(handle)
    running.send("a", 1)
    undecodable = running.send_undecodable("a")
    running.send("a", 2)
    running.send("b", 1)
    with capture_logs():
        await running.log.until_acknowledged(4)
    assert sorted(running.handled) == [("a", 1), ("b", 1)]
    dead, behind = await running.letters()
    assert (dead.failure, dead.cause, dead.attempts) == ("poison", "nobody knows it", 0)
    assert (dead.message.offset, dead.message.body, dead.message_id) == (undecodable, b"\xff", None)
    assert behind.failure == "parked"


async def test_a_message_that_was_deleted_leaves_no_dead_letter(start: Start) -> None:
    async def handle(message: Message) -> None:
        raise Permanent("no")

    running = start(handle)
    running.log.deleted = True
    running.send("a")
    with capture_logs():
        await running.log.until_acknowledged(1)
    assert await running.letters() == []


class FailingOnce:
    """A store whose next `append` fails after it was carried out, or before."""

    def __init__(self, inner: DeadLetterStore) -> None:
        self._inner = inner
        self.failures = [False, True]
        self.gate, self.waiting = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(self, letter: DeadLetter) -> DeadLetter:
        if self.failures:
            if self.failures.pop():
                await self._inner.append(letter)
            raise Transient("the disk is full")
        self.waiting.set()
        await self.gate.wait()
        return await self._inner.append(letter)


async def test_a_message_is_acknowledged_only_when_its_dead_letter_is_durable(start: Start) -> None:
    async def handle(message: Message) -> None:
        raise Permanent("no")

    running = start(handle)
    store = FailingOnce(running.store)
    running.dead_letters._store = cast(Any, store)  # pyright: ignore[reportPrivateUsage]
    running.send("a", 1)
    running.send("a", 2)
    with capture_logs():
        await asyncio.wait_for(store.waiting.wait(), 5)
        assert store.failures == []
        assert running.log.acknowledged == []
        store.gate.set()
        await running.log.until_acknowledged(2)
    assert [letter.message.offset for letter in await running.letters()] == [1, 2]


async def test_work_in_a_line_waits_for_the_message_before_it_and_keeps_the_next_one_waiting(start: Start) -> None:
    gate, went = asyncio.Event(), list[str]()

    async def handle(message: Message) -> None:
        await gate.wait()
        went.append(f"message {message.attempt}")

    async def work() -> str:
        went.append("work")
        return "done"

    async def broken() -> None:
        raise Permanent("told to whoever asked")

    running = start(handle, at_once=1)
    running.send("a", 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked = [
        asyncio.ensure_future(each)
        for each in (running.consumer.in_line("a", work), running.consumer.in_line("a", broken))
    ]
    await asyncio.sleep(0)
    running.send("a", 2)
    gate.set()
    assert await asked[0] == "done"
    with pytest.raises(Permanent):
        await asked[1]
    await running.log.until_acknowledged(2)
    assert went == ["message 1", "work", "message 2"]


async def test_two_who_open_the_same_line_at_once_share_it(start: Start) -> None:
    gate, went = asyncio.Event(), list[int]()

    async def handle(message: Message) -> None:
        await gate.wait()

    async def work(number: int) -> None:
        went.append(number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        went.append(number)

    running = start(handle, at_once=2)
    for name in ("b", "c"):
        running.send(name)
    for _ in range(3):
        await asyncio.sleep(0)
    asked = [
        asyncio.ensure_future(running.consumer.in_line("a", lambda number=number: work(number))) for number in range(2)
    ]
    await asyncio.sleep(0)  # both wait for a place
    gate.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*asked)
    assert went == [0, 0, 1, 1]


async def test_who_waits_in_a_line_is_told_when_the_consumer_is_stopped(start: Start) -> None:
    async def handle(message: Message) -> None:
        await asyncio.Event().wait()

    async def work() -> None:
        raise AssertionError

    running = start(handle)
    running.send("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked = asyncio.ensure_future(running.consumer.in_line("a", work))
    await asyncio.sleep(0)
    await running.tasks.close()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asked, 5)


async def test_nothing_is_kept_of_an_execution_once_its_messages_are_handled(start: Start) -> None:
    async def handle(message: Message) -> None: ...

    running = start(handle)
    for number in range(100):
        running.send(f"e{number}")
    await running.log.until_acknowledged(100)
    running.send("e1", 2)
    assert (await running.log.until_acknowledged(101))[-1] == 101
    await running.tasks.close()


@pytest.mark.parametrize(("replays", "handled"), [((), [("b", 1)]), (("pod.create",), [("a", 1), ("b", 1)])])
async def test_what_is_replayed_is_for_handlers_that_are_fit_for_it(
    start: Start, replays: Sequence[str], handled: list[tuple[str, int]]
) -> None:
    async def handle(message: Message) -> None:
        pass

    running = start(handle, replays=replays)
    running.send("a", replayed_by="session-1")
    running.send("b")
    assert sorted(await running.log.until_acknowledged(2)) == [1, 2]
    assert sorted(running.handled) == handled
    await running.tasks.close()
