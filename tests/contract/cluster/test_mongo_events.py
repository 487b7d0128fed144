"""Numbers of events: given by many at once, one to each, without a gap behind what somebody has seen."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from runtape.adapters.mongo.connection import Store, connect, open_store
from runtape.adapters.mongo.events import EventRows
from runtape.adapters.mongo.indexes import COUNTERS, EVENTS, make_indexes
from tests.contract.suites.log import commands
from tests.rig.mongo import Mongo

pytestmark = pytest.mark.needs("mongo")


@pytest.fixture
async def store(mongo_part: Mongo) -> AsyncIterator[Store]:
    client = connect(mongo_part.url)
    name = f"{mongo_part.scope}numbers"
    await client.drop_database(name)
    store = await open_store(client, name)
    await make_indexes(store)
    yield store
    await client.close()


async def numbers(store: Store) -> list[int]:
    return [row["number"] async for row in store[EVENTS].find({"number": {"$gt": 0}}).sort("number")]


async def test_many_that_write_and_number_at_once_leave_no_gap_behind_a_reader(store: Store) -> None:
    processes = [EventRows(store) for _ in range(4)]
    seen: list[list[int]] = []

    async def write(process: EventRows, name: str) -> None:
        for message in commands(name, 25):
            await process.append([message])

    async def read(process: EventRows) -> None:
        for _ in range(15):
            await process.number()
            newest = await process.newest()
            seen.append([number for number in await numbers(store) if number <= newest])

    await asyncio.gather(
        *(write(process, f"run-{place}") for place, process in enumerate(processes)),
        *(read(each) for each in processes),
    )
    await processes[0].number()
    assert await numbers(store) == list(range(1, 101))
    assert all(found == list(range(1, len(found) + 1)) for found in seen), "who saw a number saw all before it"
    assert len({len(found) for found in seen}) > 2, "they numbered while others wrote"


@pytest.mark.parametrize("numbered", [0, 1, 3])
async def test_an_order_that_somebody_left_half_way_is_carried_out_first(store: Store, numbered: int) -> None:
    events = EventRows(store)
    left, later = commands("left", 3), commands("later", 2)
    await events.append(left)
    ids = [message.id for message in left]
    await store[COUNTERS].insert_one({"_id": EVENTS, "value": 0, "next": ids})
    for number, event_id in enumerate(ids[:numbered], 1):
        await store[EVENTS].update_one({"_id": event_id}, {"$set": {"number": number}, "$unset": {"new": True}})
    await events.append(later)
    await EventRows(store).number()
    rows = [row["_id"] async for row in store[EVENTS].find({"number": {"$gt": 0}}).sort("number")]
    assert rows == [*ids, *(message.id for message in later)]
    assert await events.newest() == 5


async def test_a_number_whose_row_went_away_is_not_given_again(store: Store) -> None:
    events = EventRows(store)
    await events.append(commands("gone", 2))
    await events.number()
    await events.remove([1, 2])
    await events.append(commands("new", 1))
    await events.number()
    assert await numbers(store) == [3]
