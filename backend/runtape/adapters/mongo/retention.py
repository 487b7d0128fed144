"""What has become too old in MongoDB: executions, tapes, events.  Kafka drops the messages of its log by itself."""

from datetime import datetime

from pymongo import ASCENDING

from runtape.adapters.mongo.connection import Row, Store, transient
from runtape.adapters.mongo.documents import MongoExecutionStore
from runtape.adapters.mongo.events import NUMBERED, EventRows
from runtape.adapters.mongo.indexes import EXECUTIONS, TAPES
from runtape.adapters.mongo.tape import of_execution
from runtape.domain.ids import ExecutionId
from runtape.domain.times import microseconds

_TAPE_BYTES = 8 << 20
"""Output removed by one call, unless a single tape has more."""


class ExpiredExecutions:
    """Executions with their sagas, tapes and claims on blobs, by the time of their acceptance."""

    def __init__(self, store: Store, executions: MongoExecutionStore) -> None:
        self._rows = store[EXECUTIONS]
        self._executions = executions

    async def prune(self, before: datetime, limit: int) -> int:
        with transient():
            query = self._rows.find(_over(before), {"_id": 1}).sort("created_us", ASCENDING)
            rows = await query.limit(limit).to_list()
        for row in rows:
            await self._executions.remove(ExecutionId(row["_id"]))
        return len(rows)


class ExpiredTapes:
    """What executions have printed, by the time of their acceptance; their results stay.

    An execution whose tapes are gone says so in ``tapes_gone``, else each call would look at all of them again.
    """

    def __init__(self, store: Store) -> None:
        self._rows = store[EXECUTIONS]
        self._tapes = store[TAPES]

    async def prune(self, before: datetime, limit: int) -> int:
        with transient():
            query = self._rows.find({**_over(before), "tapes_gone": {"$exists": False}}, {"_id": 1})
            rows = await query.sort("created_us", ASCENDING).limit(limit).to_list()
        size_bytes = 0
        for count, row in enumerate(rows):
            size_bytes += await self._size_bytes(ExecutionId(row["_id"]))
            if count and size_bytes > _TAPE_BYTES:
                return count
            with transient():
                await self._tapes.delete_many({"tape": of_execution(ExecutionId(row["_id"]))})
                await self._rows.update_one({"_id": row["_id"]}, {"$set": {"tapes_gone": True}})
        return len(rows)

    async def _size_bytes(self, execution_id: ExecutionId) -> int:
        with transient():
            pages = self._tapes.find({"tape": of_execution(execution_id)}, {"size": 1})
            return sum([page.get("size", 0) async for page in pages])


class ExpiredEvents:
    """Events by the time at which they came about, but for those of executions that are not over."""

    def __init__(self, store: Store, events: EventRows) -> None:
        self._executions = store[EXECUTIONS]
        self._events = events

    async def prune(self, before: datetime, limit: int) -> int:
        chosen: list[int] = []
        position = (-1, -1)
        while len(chosen) < limit:
            at_us, number = position
            behind = {"$nor": [{"at_us": at_us, "number": {"$lte": number}}]}
            with transient():
                query = self._events.rows.find(
                    {"at_us": {"$gte": at_us, "$lt": microseconds(before)}, **NUMBERED, **behind},
                    {"number": 1, "at_us": 1, "execution_id": 1},
                )
                rows = await query.sort([("at_us", ASCENDING), ("number", ASCENDING)]).limit(limit).to_list()
                ids = sorted({row["execution_id"] for row in rows})
                going_on = self._executions.find({"_id": {"$in": ids}, "due_us": {"$exists": True}}, {"_id": 1})
                live = {row["_id"] async for row in going_on}
            chosen += [row["number"] for row in rows if row["execution_id"] not in live]
            if len(rows) < limit:
                break
            position = rows[-1]["at_us"], rows[-1]["number"]
        return await self._events.remove(chosen[:limit])


def _over(before: datetime) -> Row:
    """Return the condition that an execution was accepted before then and needs nothing any more."""
    return {"created_us": {"$lt": microseconds(before)}, "due_us": {"$exists": False}}
