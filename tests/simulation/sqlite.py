"""The product's own SQLite adapters over a database in memory that outlives the processes."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.schema import STORE_SCHEMA
from runtape.ports.errors import Transient
from tests.simulation.world import Life, World

T = TypeVar("T")


def open_memory() -> sqlite3.Connection:
    """Make the database of one machine."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in STORE_SCHEMA:
        connection.execute(statement)
    return connection


class SimulatedDatabase(Database):
    """`Database` without threads: each write is carried out later, in order, and its answer comes later still.

    What a process has asked for and was not carried out yet dies with it, as its writer thread does.
    """

    def __init__(self, world: World, life: Life, connection: sqlite3.Connection) -> None:
        super().__init__(Path("simulated"), STORE_SCHEMA)
        self._world = world
        self._life = life
        self._connection = connection
        self._over = False
        self._done_s = 0.0
        self._told_s = 0.0

    async def open(self) -> None: ...

    async def close(self) -> None:
        self._over = True

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> "asyncio.Future[T]":
        """Do `work` after all earlier writes."""
        loop = self._world.loop
        future = self._future()
        self._done_s = max(self._done_s, loop.time() + self._world.way_s())
        loop.call_at(self._done_s, self._write, work, future, context=self._life.context)
        return future

    def _write(self, work: Callable[[sqlite3.Connection], T], future: "asyncio.Future[T]") -> None:
        self._told_s = max(self._told_s, self._world.loop.time() + self._world.way_s())
        self._carry_out(lambda _: self._whole_or_not(work), future, self._told_s)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        """Do `work` on what is committed at some moment before the answer."""
        future = self._future()
        loop = self._world.loop
        loop.call_at(loop.time() + self._world.way_s(), self._read, work, future, context=self._life.context)
        return future

    def _read(self, work: Callable[[sqlite3.Connection], T], future: "asyncio.Future[T]") -> None:
        self._carry_out(work, future, self._world.loop.time() + self._world.way_s())

    def _whole_or_not(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._connection.execute("savepoint unit")
        try:
            return work(self._connection)
        except BaseException:
            self._connection.execute("rollback to unit")
            raise
        finally:
            self._connection.execute("release unit")

    def _carry_out(self, work: Callable[[sqlite3.Connection], T], future: "asyncio.Future[T]", told_s: float) -> None:
        value, error = None, None
        try:
            value = work(self._connection)
        except Exception as raised:
            error = raised
        self._world.loop.call_at(told_s, _settle, future, value, error, context=self._life.context)

    def _future(self) -> "asyncio.Future[T]":
        if self._over:
            raise Transient("the store is closed")
        return self._world.loop.create_future()


def _settle(future: "asyncio.Future[T]", value: T, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
