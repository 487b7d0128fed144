"""One consumer group with its dead letters, over the real log and store: a process that a test starts and kills."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from runtape.adapters.embedded.dead_letters import SqliteDeadLetterStore
from runtape.adapters.embedded.documents import SqliteExecutionStore, SqliteSagaStore, SqliteUnitOfWork
from runtape.adapters.embedded.live_feed import InProcessLiveFeed
from runtape.adapters.embedded.log import SqliteEventLog
from runtape.adapters.embedded.schema import STORE_SCHEMA
from runtape.application.announcing import Announcer
from runtape.application.dead_letters import DeadLetters
from runtape.application.flow import NOTHING, Documents, Flow, Step, Tasks
from runtape.domain.dead_letter import DeadLetter
from runtape.domain.events import POD_COMMANDS, Message, PodCreate
from runtape.domain.ids import ExecutionId
from runtape.ports.dead_letters import DeadLetterFilter
from runtape.ports.errors import Permanent, Transient
from runtape.runtime.consumer import Consumer
from runtape.runtime.dispatcher import Dispatcher
from tests.application.chaos import InlineDatabase
from tests.builders import PROJECT
from tests.clocks import START, ManualClock

GROUP = "group"
Item = tuple[str, int]
"""A key, and which of its messages, from 1."""


class FlakyStore:
    """A store whose next writes fail as `plan` says: before they are carried out, or after."""

    def __init__(self, inner: SqliteDeadLetterStore) -> None:
        self._inner = inner
        self.plan: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in ("append", "replace", "resolve"):
            return method

        async def write(*given: Any) -> Any:
            when = self.plan.pop(0) if self.plan else ""
            if when != "before":
                answer = await method(*given)
                if not when:
                    return answer
            raise Transient("the disk is full")

        return write


class Office:
    """A process over the file at `path`; what was applied outlives it, as documents do.

    The handler is idempotent as real ones are: what it has applied, or applied something later than, changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()
        self.broken: set[Item] = set()
        self.applied: list[Item] = []
        self.calls: Counter[Item] = Counter()
        self.offsets: dict[int, Item] = {}
        self.sent: Counter[str] = Counter()
        self.gate: Callable[[], Awaitable[object]] | None = None
        self.failures: list[BaseException] = []
        self.open()

    def open(self) -> None:
        """Start a process; it consumes once the loop runs."""
        self.database = InlineDatabase(self.path, STORE_SCHEMA)
        self.log = SqliteEventLog(self.database)
        sagas = SqliteSagaStore(self.database)
        executions = SqliteExecutionStore(self.database, sagas)
        self.tasks = Tasks(lambda name, error: self.failures.append(error))
        self.inner = SqliteDeadLetterStore(self.database)
        self.store: Any = FlakyStore(self.inner)
        flow = Flow(
            unit_of_work=SqliteUnitOfWork(self.database, executions, sagas, self.log),
            executions=executions,
            sagas=sagas,
            announcer=Announcer(InProcessLiveFeed()),
            tasks=self.tasks,
            fused=False,
        )
        self.dead_letters = DeadLetters(store=self.store, event_log=self.log, clock=self.clock, tasks=self.tasks)
        self.consumer = Consumer(
            group=GROUP,
            topics=(POD_COMMANDS,),
            dispatcher=Dispatcher(flow, {PodCreate.type: self._handle}),
            event_log=self.log,
            dead_letters=self.dead_letters,
            tasks=self.tasks,
            at_once=2,
        )

    async def start(self) -> None:
        await self.dead_letters.restore()
        self.tasks.spawn(self.consumer.run(), "consume")
        await self.settle()

    async def _handle(self, message: Message, documents: Documents) -> Step:
        item = message.execution_id, message.attempt
        self.calls[item] += 1
        if self.gate is not None:
            await self.gate()
        if item in self.broken:
            raise Permanent(f"{item} is broken")
        if all(number < item[1] for key, number in self.applied if key == item[0]):
            self.applied.append(item)
        return NOTHING

    async def send(self, key: str, *, broken: bool = False) -> Item:
        """Publish the next message of `key`."""
        item = self._next(key)
        if broken:
            self.broken.add(item)
        message = PodCreate(execution_id=ExecutionId(key), project_id=PROJECT, at=START, attempt=item[1])
        (offset,) = await self.database.write(lambda c: self.log.insert(c, [message]))
        self.offsets[offset] = item
        self.log.committed([(offset, message)], frozenset())
        await self.settle()
        return item

    async def plant(self, key: str) -> Item:
        """Put what nobody can decode in the place of the next message, past all code; it is read after a restart."""
        item = self._next(key)
        statement = "insert into log (topic, key, type, body) values (?,?,?,?)"
        values = (POD_COMMANDS, key, PodCreate.type, b"\xff\x00")
        offset = await self.database.write(lambda c: c.execute(statement, values).lastrowid)
        assert offset is not None
        self.offsets[offset] = item
        return item

    def _next(self, key: str) -> Item:
        self.sent[key] += 1
        return key, self.sent[key]

    async def kill(self, *, flush: bool = False) -> None:
        """End the process at once; `flush`: after it had stored how far it has read."""
        if not flush:
            await self.database.close()  # a consumer that ends stores how far it has come, if it still can
        await self.tasks.close()
        await self.database.close()

    async def restart(self, *, flush: bool = False) -> None:
        await self.kill(flush=flush)
        self.open()
        await self.start()

    async def settle(self) -> None:
        """Let everything run until nothing does."""
        for _ in range(10_000):
            groups = self.log._groups  # pyright: ignore[reportPrivateUsage]
            group = groups.get(GROUP)
            busy = [task for task in asyncio.all_tasks() if task.get_name().endswith((".handle", ".retry"))]
            if group is not None and not (group.behind or group.waiting or busy):
                return
            await asyncio.sleep(0)
        raise AssertionError("it never rests")

    async def let_time_pass(self, seconds: float) -> None:
        """Advance the clock and do what the schedule says until nothing is due."""
        self.clock.advance(seconds)
        for _ in range(1000):
            await self.dead_letters.retry_due()
            await self.settle()
            if not await self.inner.due([GROUP], self.clock.now(), 1):
                return
        raise AssertionError("something is always due")

    async def letters(self) -> list[DeadLetter]:
        return list(await self.inner.oldest(DeadLetterFilter(), 10_000))

    async def open_letters(self) -> list[DeadLetter]:
        return [letter for letter in await self.letters() if letter.open]

    def item(self, letter: DeadLetter) -> Item:
        return self.offsets[letter.message.offset]
