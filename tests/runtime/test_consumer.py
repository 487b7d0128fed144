"""The consumer loop: order per execution, retries by the class of the failure, and acknowledgements."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from runtape.application.flow import Tasks
from runtape.domain.events import POD_COMMANDS, Message, PodCreate, PodKill
from runtape.domain.ids import ExecutionId
from runtape.ports.errors import Permanent, Transient
from runtape.ports.log import Delivery
from runtape.runtime import consumer as consumer_module
from runtape.runtime.consumer import TRIES, Consumer
from tests.builders import PROJECT
from tests.clocks import START

Handle = Callable[[Message], Awaitable[None]]


class Log:
    """An `EventLog` that a test feeds by hand."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.acknowledged: list[int] = []
        self.changed = asyncio.Event()

    async def consume(self, group: str, topics: Sequence[str]) -> AsyncIterator[Delivery]:
        while True:
            yield await self.queue.get()

    def acknowledge(self, group: str, delivery: Delivery) -> None:
        self.acknowledged.append(delivery.offset)
        self.changed.set()

    async def until_acknowledged(self, count: int) -> list[int]:
        async with asyncio.timeout(5):
            while len(self.acknowledged) < count:
                self.changed.clear()
                await self.changed.wait()
        return self.acknowledged


class Running:
    """A consumer over a hand-fed log, whose flow calls `handle`."""

    def __init__(self, handle: Handle, at_once: int = 256) -> None:
        self.log = Log()
        self.handled: list[tuple[str, int]] = []
        self._handle = handle
        self._offset = 0
        self.tasks = Tasks(lambda name, error: None)
        consumer = Consumer(
            group="group",
            topics=(POD_COMMANDS,),
            handlers={"pod.create": cast(Any, "handler")},
            event_log=cast(Any, self.log),
            flow=cast(Any, self),
            tasks=self.tasks,
            at_once=at_once,
        )
        self.tasks.spawn(consumer.run(), "consumer")

    async def handle(self, handler: object, message: Message) -> None:
        await self._handle(message)
        self.handled.append((message.execution_id, message.attempt))

    def send(self, name: str, attempt: int = 1, kind: type[Message] = PodCreate) -> int:
        self._offset += 1
        message = kind(execution_id=ExecutionId(name), project_id=PROJECT, at=START, attempt=attempt)
        self.log.queue.put_nowait(Delivery(message, self._offset))
        return self._offset


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "FIRST_PAUSE_S", 0.0)


async def test_one_execution_goes_in_order_and_holds_up_no_other() -> None:
    gate = asyncio.Event()

    async def handle(message: Message) -> None:
        if message.execution_id == "slow":
            await gate.wait()

    running = Running(handle)
    for attempt in (1, 2, 3):
        running.send("slow", attempt)
    for name in "abc":
        running.send(name)
    assert await running.log.until_acknowledged(3) == [4, 5, 6]
    gate.set()
    assert (await running.log.until_acknowledged(6))[3:] == [1, 2, 3]
    assert running.handled[3:] == [("slow", 1), ("slow", 2), ("slow", 3)]
    await running.tasks.close()


async def test_a_backlog_is_handled_by_as_many_tasks_as_there_are_places() -> None:
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
    running = Running(handle, at_once=8)
    offsets = [running.send(f"e{number}") for number in range(1000)]
    await asyncio.wait_for(full.wait(), 5)
    assert len(asyncio.all_tasks()) == others + 8 + 1  # the consumer itself
    assert running.log.queue.qsize() == 1000 - 8 - 1  # it holds the one that has no place yet
    gate.set()
    assert sorted(await running.log.until_acknowledged(1000)) == offsets
    assert most == 8
    await running.tasks.close()


async def test_an_execution_that_waits_keeps_one_place_and_the_others_go_on() -> None:
    gate = asyncio.Event()

    async def handle(message: Message) -> None:
        if message.execution_id == "slow":
            await gate.wait()
        if message.execution_id == "wrong":
            raise Permanent("no")

    running = Running(handle, at_once=2)
    running.send("slow")
    for name in ("wrong", *map(str, range(50))):
        running.send(name)
    with capture_logs():
        assert await running.log.until_acknowledged(51) == list(range(2, 53))
    running.send("slow", 2)
    gate.set()
    assert (await running.log.until_acknowledged(53))[51:] == [1, 53]
    await running.tasks.close()


async def test_a_message_is_acknowledged_only_when_it_was_handled() -> None:
    gate = asyncio.Event()

    async def handle(message: Message) -> None:
        await gate.wait()

    running = Running(handle)
    running.send("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert running.log.acknowledged == []
    await running.tasks.close()
    assert running.log.acknowledged == [], "what was cancelled comes again"


async def test_messages_that_the_group_does_not_handle_are_passed_over() -> None:
    async def handle(message: Message) -> None:
        raise AssertionError

    running = Running(handle)
    running.send("a", kind=PodKill)
    assert await running.log.until_acknowledged(1) == [1]
    await running.tasks.close()


async def test_a_transient_failure_is_tried_again_before_the_next_message_of_its_execution() -> None:
    failures = [Transient("busy", retry_after_s=0.001), Transient("busy")]

    async def handle(message: Message) -> None:
        if message.attempt == 1 and failures:
            raise failures.pop()

    running = Running(handle)
    running.send("a", 1)
    running.send("a", 2)
    with capture_logs() as logs:
        await running.log.until_acknowledged(2)
    assert running.handled == [("a", 1), ("a", 2)]
    assert [entry["event"] for entry in logs] == ["message.retried"] * 2
    await running.tasks.close()


@pytest.mark.parametrize(
    ("error", "tries", "told"),
    [
        (Transient("busy"), TRIES, "message.given_up"),
        (Permanent("no"), 1, "message.failed"),
        (RuntimeError("bug"), 1, "message.failed"),
    ],
)
async def test_what_cannot_be_handled_is_told_and_set_aside(error: Exception, tries: int, told: str) -> None:
    tried = 0

    async def handle(message: Message) -> None:
        nonlocal tried
        if message.attempt == 1:
            tried += 1
            raise error

    running = Running(handle)
    running.send("a", 1)
    running.send("a", 2)
    with capture_logs() as logs:
        await running.log.until_acknowledged(2)
    assert tried == tries
    assert running.handled == [("a", 2)]
    assert logs[-1]["event"] == told
    await running.tasks.close()


async def test_nothing_is_kept_of_an_execution_once_its_messages_are_handled() -> None:
    async def handle(message: Message) -> None: ...

    running = Running(handle)
    for number in range(100):
        running.send(f"e{number}")
    await running.log.until_acknowledged(100)
    running.send("e1", 2)
    assert (await running.log.until_acknowledged(101))[-1] == 101
    await running.tasks.close()
