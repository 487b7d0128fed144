"""The consumer loop: messages of one group from the log to their handlers, in order per key.

Keys are handled side by side, as many as there are places, what concerns one key one after another: the rest of a
backlog stays in the log.  The class of a failure decides (`runtape.ports.errors`): what is transient is tried again
with growing pauses, what has no class a few times, in case it was a passing fault.  What is given up then, what is
permanent, and what cannot be decoded becomes a dead letter and parks its key (`runtape.application.dead_letters`).
While a part is unavailable nothing is given up: every message would fail, so each waits in its place until the part is
there, and the log waits behind them.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import structlog

from runtape.application.dead_letters import DeadLetters, failure_of
from runtape.application.flow import Tasks
from runtape.domain.dead_letter import PARKED, Failure, FailureKind, spread_of
from runtape.domain.events import Message
from runtape.ports.errors import Permanent, Poison, Transient, Unavailable
from runtape.ports.log import Delivery, EventLog, UndecodableDelivery
from runtape.runtime.dispatcher import Dispatcher

T = TypeVar("T")
log = structlog.get_logger(__name__)

TRIES = 10
"""Calls of a handler that fails transiently."""

UNCLASSED_TRIES = 3
"""Calls of a handler that raises what has no class: mostly a defect, which the next call meets again."""

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0


class _Work:
    """Something to do in the line of a key, for somebody who waits for it."""

    __slots__ = ("_do", "done")

    def __init__(self, do: Callable[[], Awaitable[Any]]) -> None:
        self._do = do
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        if self.done.cancelled():  # whoever asked has gone
            return
        try:
            answer = await self._do()
        except Exception as error:  # told to whoever asked
            if not self.done.done():
                self.done.set_exception(error)
        else:
            if not self.done.done():
                self.done.set_result(answer)


_Item = Delivery | UndecodableDelivery | _Work


class Consumer:
    """Feeds one group's handlers, for `at_once` keys side by side; `run` it as a task."""

    def __init__(
        self,
        *,
        group: str,
        topics: tuple[str, ...],
        dispatcher: Dispatcher,
        event_log: EventLog,
        dead_letters: DeadLetters,
        tasks: Tasks,
        at_once: int,
    ) -> None:
        self._group = group
        self._topics = topics
        self._dispatcher = dispatcher
        self._event_log = event_log
        self._dead_letters = dead_letters
        self._parked = dead_letters.attach(group, self)
        self._tasks = tasks
        self._lines: dict[str, deque[_Item]] = {}
        self._places = asyncio.Semaphore(at_once)

    async def run(self) -> None:
        """Handle what the log delivers; runs until cancelled."""
        # Closed here and not when somebody collects it: the log hands what is left to another process at once.
        async with aclosing(self._event_log.consume(self._group, self._topics)) as deliveries:
            async for delivery in deliveries:
                if isinstance(delivery, UndecodableDelivery):
                    await self._enter(delivery.raw.key, delivery)
                elif self._dispatcher.concerns(delivery):
                    await self._enter(delivery.message.execution_id, delivery)
                else:
                    self._event_log.acknowledge(self._group, delivery)

    async def in_line(self, key: str, work: Callable[[], Awaitable[T]], /) -> T:
        """Do `work` after what is in the line of `key`, and return what it returns.  Raises: what it raised."""
        item = _Work(work)
        await self._enter(key, item)
        return await item.done

    async def handle(self, message: Message, /) -> None:
        """Carry out what the group's handler decides about `message`; nothing when the group has none."""
        await self._dispatcher.dispatch(message)

    async def _enter(self, key: str, item: _Item) -> None:
        line = self._lines.get(key)
        if line is None:
            await self._places.acquire()
            line = self._lines.get(key)
            if line is None:
                self._lines[key] = deque((item,))
                self._tasks.spawn(self._drain(key), f"{self._group}.handle")
                return
            self._places.release()  # somebody else has opened the line meanwhile
        line.append(item)

    async def _drain(self, key: str) -> None:
        line = self._lines[key]
        try:
            while line:
                item = line[0]
                if isinstance(item, _Work):
                    await item.run()
                else:
                    failure = PARKED if self._parked and key in self._parked else await self._try(item)
                    if failure is not None:
                        await self._bury(item, failure)
                    self._event_log.acknowledge(self._group, item)
                line.popleft()
        finally:
            del self._lines[key]
            self._places.release()
            for item in line:  # cancelled: what was delivered comes again, who asked is told
                if isinstance(item, _Work):
                    item.done.cancel()

    async def _bury(self, delivery: Delivery | UndecodableDelivery, failure: Failure) -> None:
        """Return once a dead letter of the delivery is durable."""
        tries = 0
        while True:
            try:
                return await self._dead_letters.bury(self._group, delivery, failure)
            except Exception as error:  # it may neither be lost nor be passed by the next one of its key
                tries += 1
                log.error("message.not_buried", group=self._group, offset=delivery.offset, tries=tries, exc_info=error)
                await asyncio.sleep(self._pause_s(tries, delivery))

    async def _try(self, delivery: Delivery | UndecodableDelivery) -> Failure | None:
        """Call the handler until it succeeds or must be given up; return why."""
        if isinstance(delivery, UndecodableDelivery):
            log.error("message.undecodable", group=self._group, offset=delivery.offset, cause=delivery.cause)
            return Failure(kind=FailureKind.POISON, cause=delivery.cause)
        message = delivery.message
        tries = waits = 0
        while True:
            try:
                await self._dispatcher.dispatch(message)
                return None
            except Unavailable as error:
                waits += 1
                log.warning("message.waits", group=self._group, type=message.type, waits=waits, error=str(error))
                await asyncio.sleep(error.retry_after_s or self._pause_s(waits, delivery))
            except Exception as error:  # the loop's edge: one message must not end the group
                tries += 1
                transient = isinstance(error, Transient)
                most = TRIES if transient else 1 if isinstance(error, Permanent | Poison) else UNCLASSED_TRIES
                if tries >= most:
                    failure = failure_of(error, tries)
                    log.error(
                        "message.dead",
                        group=self._group,
                        type=message.type,
                        failure=failure.kind,
                        tries=tries,
                        stack_digest=failure.stack_digest,
                        exc_info=error,
                    )
                    return failure
                log.warning("message.retried", group=self._group, type=message.type, tries=tries, error=str(error))
                asked_s = error.retry_after_s if isinstance(error, Transient) else None
                await asyncio.sleep(asked_s or self._pause_s(tries, delivery))

    def _pause_s(self, tries: int, delivery: Delivery | UndecodableDelivery) -> float:
        """Return how long to wait after that many tries; spread, so that those that failed together do not come so."""
        pause_s = min(FIRST_PAUSE_S * 2 ** min(tries - 1, 20), LONGEST_PAUSE_S)
        return pause_s * (1 + spread_of(self._group, delivery.offset, tries)) / 2
