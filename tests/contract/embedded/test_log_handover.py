"""The moment in which a reader of the embedded log changes from the table to what arrives in memory."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest

from runtape.adapters.embedded.database import Database
from tests.clocks import ManualClock
from tests.contract.embedded.basic import quick_place, sqlite_stores
from tests.contract.suites.log import GROUP, Reader, publish
from tests.contract.suites.stores import Stores

T = TypeVar("T")
Hook = Callable[[], Awaitable[None]]


class Hooked(Database):
    """`Database` that does something between the answer of a read, or of a write, and its being told."""

    after_read: Hook | None = None
    after_write: Hook | None = None

    def read(self, work: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        return asyncio.ensure_future(self._late(super().read(work), "after_read"))

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> "asyncio.Future[T]":
        return asyncio.ensure_future(self._late(super().write(work, durable=durable), "after_write"))

    async def _late(self, answer: "asyncio.Future[T]", which: str) -> T:
        found = await answer
        hook, _ = getattr(self, which), setattr(self, which, None)
        if hook is not None and (which == "after_write" or found == []):
            await hook()
        elif hook is not None:
            setattr(self, which, hook)
        return found


@pytest.fixture
async def hooked() -> AsyncIterator[tuple[Stores, Hooked]]:
    made: list[Hooked] = []

    class Kept(Hooked):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self)

    with quick_place() as place:
        async with sqlite_stores(place / "runtape.db", ManualClock(), Kept) as stores:
            yield stores, made[0]


@pytest.mark.parametrize("others", [0, 3])
async def test_a_message_that_comes_between_the_last_read_and_the_change_is_not_lost(
    hooked: tuple[Stores, Hooked], others: int
) -> None:
    stores, database = hooked
    for number in range(others):
        await publish(stores, f"e{number}")

    async def meanwhile() -> None:
        await publish(stores, "between")

    database.after_read = meanwhile
    reader = Reader(stores)
    await reader.until("between.create.1")
    await publish(stores, "after")
    assert (await reader.until("after.create.1"))[-2:] == ["between.create.1", "after.create.1"]
    await reader.stop()


async def test_a_message_that_is_read_before_its_commit_is_told_comes_once(hooked: tuple[Stores, Hooked]) -> None:
    stores, database = hooked
    readers: list[Reader] = []

    async def meanwhile() -> None:  # the row is there, and its writer does not know it yet
        readers.append(Reader(stores))
        await readers[0].until("first.create.1")
        for _ in range(20):  # the reader finds no more and changes to what arrives
            await stores.blobs.ready()

    database.after_write = meanwhile
    await publish(stores, "first")
    await publish(stores, "last")
    assert await readers[0].until("last.create.1") == ["first.create.1", "last.create.1"]
    await readers[0].stop()


async def test_a_message_that_was_handled_is_not_read_again_when_its_row_comes_first(
    hooked: tuple[Stores, Hooked],
) -> None:
    stores, database = hooked

    async def meanwhile() -> None:
        await publish(stores, "done", handled_by=frozenset({GROUP}))

    database.after_read = meanwhile
    reader = Reader(stores)
    await publish(stores, "first")
    await reader.until("first.create.1")
    await publish(stores, "last")
    assert "done.create.1" not in await reader.until("last.create.1")
    await reader.stop()
