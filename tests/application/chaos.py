"""Ports that are slow, fail and die, as a seed says; and a store without threads, so that the seed decides all."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from runtape.adapters.embedded.database import Database
from runtape.ports.errors import Transient
from runtape.ports.log import Delivery
from tests.contract.suites.stores import Stores

T = TypeVar("T")


class InlineDatabase(Database):
    """`Database` that does each piece of work at once, on the loop."""

    def __init__(self, path: Path, schema: tuple[str, ...], *, readers: int = 2, wal_bytes: int = 0) -> None:
        super().__init__(path, schema, readers=readers, wal_bytes=wal_bytes)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("pragma journal_mode=memory")
        self._connection.execute("pragma synchronous=off")
        self._closed_inline = False
        for statement in schema:
            self._connection.execute(statement)

    async def open(self) -> None: ...

    async def close(self) -> None:
        if not self._closed_inline:
            self._closed_inline = True
            self._connection.close()

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> "asyncio.Future[T]":
        return self._do(work)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        return self._do(work)

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        if self._closed_inline:
            raise Transient("the store is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._connection.execute("savepoint unit")
        try:
            future.set_result(work(self._connection))
        except Exception as error:
            self._connection.execute("rollback to unit")
            future.set_exception(error)
        self._connection.execute("release unit")
        return future


class Chaos:
    """What goes wrong in one process, drawn from `random`; it dies at its `dies_at`th call of a port."""

    def __init__(self, random: Random, dies_at: int | None, faults: float) -> None:
        self.random = random
        self.dead = asyncio.Event()
        self.buried = asyncio.Event()
        """Set when nothing is asked of the dead process any more: what still runs in it then ends."""
        self._calls_left = dies_at
        self._faults = faults

    async def pass_through(self, call: Callable[[], Awaitable[T]], *, may_fail: bool = False) -> T:
        """Make the call, late; or die before or after it; or fail before it, or after it was carried out."""
        await self._turns()
        if may_fail and self.random.random() < self._faults:
            if self.random.random() < 0.3:
                await call()
            raise Transient("simulated")
        answer = await call()
        await self._turns()
        return answer

    async def _turns(self) -> None:
        for _ in range(self.random.choice((0, 0, 1, 2, 7))):
            await asyncio.sleep(0)
        if self._calls_left is not None:
            self._calls_left -= 1
            if self._calls_left <= 0:
                self.dead.set()
        if self.dead.is_set():
            await self.buried.wait()  # the process is gone: nothing returns any more
            raise asyncio.CancelledError

    def stores(self, inner: Stores) -> Stores:
        return replace(
            inner,
            executions=Slow(inner.executions, self),
            sagas=Slow(inner.sagas, self),
            unit_of_work=Slow(inner.unit_of_work, self),
            tape=Slow(inner.tape, self),
            blobs=Slow(inner.blobs, self),
            log=StutteringLog(inner.log, self),
            dead_letters=Slow(inner.dead_letters, self),
        )


MAY_FAIL = {"commit", "append", "defer", "put", "replace", "resolve"}
AT_ONCE = {"open_tape", "acknowledge", "read_stream", "unfinished", "close_tape", "decode", "parked"}
"""Calls that are no coroutines, or that a dying process makes while it cleans up."""


class Slow:
    """Any port behind the chaos."""

    def __init__(self, inner: Any, chaos: Chaos) -> None:
        self._inner = inner
        self._chaos = chaos

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name in AT_ONCE:
            return method
        chaos = self._chaos
        return lambda *given, **named: chaos.pass_through(lambda: method(*given, **named), may_fail=name in MAY_FAIL)


class StutteringLog(Slow):
    """Delivers some messages again, at once or much later."""

    async def consume(self, group: str, topics: Sequence[str]) -> AsyncGenerator[Delivery, None]:
        delivered: list[Delivery] = []
        random = self._chaos.random
        async for delivery in self._inner.consume(group, topics):
            delivered.append(delivery)
            yield delivery
            while random.random() < 0.2:
                yield random.choice(delivered)


async def turns(count: int) -> None:
    """Let everything else have `count` turns."""
    for _ in range(count):
        await asyncio.sleep(0)
