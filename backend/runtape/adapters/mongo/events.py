"""Events in MongoDB: every message that a document has told, as a row in one order.

Theory of operation
===================
A row is the message under its id and the fields that are searched.  Rows are inserted by whoever publishes a message
(`RecordingPublisher`), beside Kafka and not behind it: a message is asked about, and searched, however long the log
drops it after.  What a crash has left in the outbox of a document is inserted when somebody asks.  The id makes both
the same row.

Its ``number`` comes after.  A reader that has seen a number is to have seen all before it, so numbers are given by one
hand, while rows come from many.  Until then a row is ``new``, which says when it was written, and no search sees it.
Who reads gives the new rows their numbers first, in the order of their writing, and one process does so from time to
time.

The order of the numbers is written before they are: one document holds the last number and the ids that come next, it
is changed by comparing and setting, and whoever finds ids there helps to number them before all else.  So nobody holds
a lock, who stands still holds nobody up, and who dies half way leaves what the next one finishes.

Numbers that were given are not given again, whatever becomes of the rows.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from pymongo import ASCENDING, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from runtape.adapters.mongo.connection import Row, Store, transient
from runtape.adapters.mongo.indexes import COUNTERS, EVENT_ARCHIVE, EVENTS, EXECUTIONS, SAGAS
from runtape.adapters.mongo.messages import decoded, message_of
from runtape.domain.events import ENDED_BY_STATUS, Message
from runtape.domain.ids import EventId, ExecutionId
from runtape.domain.times import microseconds, moment
from runtape.ports.errors import Transient
from runtape.ports.events import Archival, StoredEvent
from runtape.ports.outbox import Publisher

DERIVED = (
    "type",
    "execution_id",
    "project_id",
    "user_id",
    "at_us",
    "attempt",
    "correlation_id",
    "causation_id",
    "lasted_us",
    "values",
)
"""The fields that follow from a message and its execution."""

NUMBER_INTERVAL_S = 2.0
NUMBERED: Row = {"number": {"$gt": 0}}
"""The condition that an event can be seen."""

_TOGETHER = 500
"""Rows that are numbered together."""

_KNOWN_OWNERS = 10_000
_WAITING = 1_000
_DUPLICATE = 11000
_ENDED = frozenset(event.type for event in ENDED_BY_STATUS.values())
log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an execution is, and when it was accepted."""

    user_id: str
    created_us: int


@dataclass(slots=True)
class _Waiting:
    messages: Sequence[Message]
    done: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class EventRows:
    """Appends events, and takes them away."""

    def __init__(self, store: Store) -> None:
        self.rows = store[EVENTS]
        self.archive_rows = store[EVENT_ARCHIVE]
        self._counters = store[COUNTERS]
        self._executions = store[EXECUTIONS]
        self._outboxes = (store[EXECUTIONS], store[SAGAS])
        self._owners: OrderedDict[str, Owner] = OrderedDict()
        self._lock = asyncio.Lock()
        self._waiting: list[_Waiting] = []
        self._last_ns = 0

    async def append(self, messages: Sequence[Message]) -> None:
        """Insert those that are not there; idempotent.  Raises: Transient.

        What comes while others are being written is written together.
        """
        mine = _Waiting(messages)
        self._waiting.append(mine)
        try:
            async with self._lock:
                batch, self._waiting = self._waiting, []
                await self._append_together(batch)
            await mine.done
        finally:
            mine.done.cancel()  # nobody asks any more

    async def _append_together(self, batch: Sequence[_Waiting]) -> None:
        failure: Transient | None = Transient("the events were not written")
        try:
            rows = {message.id: row_of(message) for waiting in batch for message in waiting.messages}
            if rows:
                await self._insert([{**row, "new": self._moment()} for row in rows.values()])
            failure = None
        except Transient as error:
            failure = error
        finally:
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_result(None) if failure is None else waiting.done.set_exception(failure)

    def _moment(self) -> int:
        """Return the time in nanoseconds, later than any that was returned before."""
        self._last_ns = max(self._last_ns + 1, time.time_ns())
        return self._last_ns

    async def _insert(self, rows: Sequence[Row]) -> None:
        with transient():
            try:
                await self.rows.insert_many(rows, ordered=False)
            except BulkWriteError as error:
                if any(each["code"] != _DUPLICATE for each in error.details["writeErrors"]):
                    raise

    async def keep_numbering(self) -> None:
        """Number what is new from time to time, so that no reader finds much to do; runs until cancelled."""
        while True:
            try:
                await self.number()
            except Transient as error:
                log.warning("events.not_numbered", error=str(error))
            await asyncio.sleep(NUMBER_INTERVAL_S)

    async def number(self) -> None:
        """Give every row that is there a number, and none that comes meanwhile if it can be helped.

        Raises: Transient.
        """
        mine: list[str] = []
        while True:
            with transient():
                order = await self._counters.find_one({"_id": EVENTS}) or {"value": 0}
            if "next" in order:
                await self._number(order["value"], order["next"])
                if order["next"] == mine and len(mine) < _TOGETHER:
                    return
                continue
            with transient():
                query = self.rows.find({"new": {"$gt": 0}}, {"_id": 1}).sort("new", ASCENDING)
                upcoming = [row["_id"] for row in await query.limit(_TOGETHER).to_list()]
            if not upcoming:
                return
            mine = upcoming
            await self._write_order({"value": order["value"], "next": {"$exists": False}}, {"next": upcoming})

    async def _number(self, last: int, event_ids: Sequence[str]) -> None:
        """Give the rows their numbers behind `last`, as others may be doing, and close the order."""
        with transient():
            fields = {"type": 1, "execution_id": 1, "at_us": 1}
            rows = {
                row["_id"]: row async for row in self.rows.find({"_id": {"$in": event_ids}, "new": {"$gt": 0}}, fields)
            }
        owners = await self.owners({row["execution_id"] for row in rows.values()})
        updates = [
            UpdateOne(
                {"_id": event_id, "new": {"$gt": 0}},
                {
                    "$set": {"number": number, **owned(rows[event_id], owners.get(rows[event_id]["execution_id"]))},
                    "$unset": {"new": True},
                },
            )
            for number, event_id in enumerate(event_ids, last + 1)
            if event_id in rows
        ]
        if updates:
            with transient():
                await self.rows.bulk_write(updates, ordered=False)
        await self._write_order({"value": last, "next": event_ids}, {"value": last + len(event_ids)}, {"next": True})

    async def _write_order(self, expected: Row, changed: Row, gone: Row | None = None) -> None:
        """Change the order of the numbers, unless somebody else has."""
        change = {"$set": changed, **({"$unset": gone} if gone else {})}
        with transient(), contextlib.suppress(DuplicateKeyError):
            # The document is made by the first change of all; two that make it at once meet in its id.
            await self._counters.update_one({"_id": EVENTS, **expected}, change, upsert=expected["value"] == 0)

    async def _present(self, event_ids: Iterable[EventId]) -> set[str]:
        where = {"_id": {"$in": list(event_ids)}}
        with transient():
            return {row["_id"] for rows in (self.rows, self.archive_rows) async for row in rows.find(where, {"_id": 1})}

    async def newest(self) -> int:
        """Return the greatest number that was ever given, 0 before the first."""
        with transient():
            order = await self._counters.find_one({"_id": EVENTS})
        return order["value"] if order else 0

    async def owners(self, execution_ids: Iterable[str]) -> Mapping[str, Owner]:
        """Return whose the executions are, of those that exist."""
        found: dict[str, Owner] = {}
        unknown: list[str] = []
        for execution_id in execution_ids:
            owner = self._owners.get(execution_id)
            if owner is None:
                unknown.append(execution_id)
            else:
                found[execution_id] = owner
        if unknown:
            with transient():
                rows = self._executions.find({"_id": {"$in": unknown}}, {"user_id": 1, "created_us": 1})
                async for row in rows:
                    found[row["_id"]] = self._owners[row["_id"]] = Owner(row["user_id"], row["created_us"])
            while len(self._owners) > _KNOWN_OWNERS:
                self._owners.popitem(last=False)
        return found

    async def complete(self) -> None:
        """Append what documents have yet to tell, and would have told but for a crash, and number all."""
        for documents in self._outboxes:
            with transient():
                query = documents.find({"told_us": {"$exists": True}}, {"outbox": 1}).sort("told_us", ASCENDING)
                waiting = await query.limit(_WAITING).to_list()
            messages = {each["id"]: each for row in waiting for each in row.get("outbox", ())}
            if messages:
                there = await self._present(messages)
                await self.append([message_of(each) for event_id, each in messages.items() if event_id not in there])
        await self.number()

    async def archive(self, where: Row, archival: Archival) -> None:
        """Move the rows that meet `where` to the archive."""
        with transient():
            rows = await self.rows.find(where).sort("number", ASCENDING).to_list()
        about = {"archived_us": microseconds(archival.at), "archived_by": archival.by, "reason": archival.reason}
        for row in rows:
            with transient():
                await self.archive_rows.replace_one({"_id": row["_id"]}, {**row, **about}, upsert=True)
        await self.remove([row["number"] for row in rows])

    async def archive_execution(self, execution_id: ExecutionId, archival: Archival) -> None:
        """Move the events of the execution to the archive, those that it has yet to tell among them."""
        for documents in self._outboxes:
            with transient():
                row = await documents.find_one({"_id": execution_id}, {"outbox": 1})
            if row and row.get("outbox"):
                await self.append([message_of(each) for each in row["outbox"]])
        await self.number()
        await self.archive({"execution_id": execution_id}, archival)

    async def remove(self, numbers: Sequence[int]) -> int:
        """Remove the rows with these numbers, which are not given again; return how many."""
        if not numbers:
            return 0
        with transient():
            return (await self.rows.delete_many({"number": {"$in": list(numbers)}})).deleted_count


class RecordingPublisher:
    """`Publisher` that writes a message to the log and to the event store side by side."""

    def __init__(self, publisher: Publisher, events: EventRows) -> None:
        self._publisher = publisher
        self._events = events

    async def publish(self, message: Message) -> None:
        done = await asyncio.gather(
            self._events.append((message,)), self._publisher.publish(message), return_exceptions=True
        )
        for failure in done:
            if failure is not None:
                raise failure


def row_of(message: Message) -> Row:
    """Return the row of a message, but for its number and what only its execution tells."""
    body = _encode(message)
    at_us = microseconds(message.at)
    row = {
        "_id": message.id,
        "topic": message.topic,
        "type": message.type,
        "execution_id": message.execution_id,
        "project_id": message.project_id,
        "at_us": at_us,
        "attempt": message.attempt,
        "correlation_id": message.correlation.id if message.correlation is not None else None,
        "causation_id": message.causation_id,
        "values": sorted(set(_values(msgspec.json.decode(body)))),
        "body": body,
    }
    return {name: value for name, value in row.items() if value is not None}


def row_again(row: Row, owner: Owner | None) -> Row:
    """Return what the row would be if it were made today; what only a deleted execution knew stays as it is."""
    again = row_of(decoded(row["type"], row["body"]))
    kept = {name: row[name] for name in ("user_id", "lasted_us", "number") if name in row}
    return {**kept, **again, **owned(again, owner)}


def owned(row: Row, owner: Owner | None) -> Row:
    """Return the fields of a row that its execution tells; none when there is no such execution."""
    if owner is None:
        return {}
    lasted = {"lasted_us": row["at_us"] - owner.created_us} if row["type"] in _ENDED else {}
    return {"user_id": owner.user_id, **lasted}


def older(position: tuple[int, int] | None, time: str = "at_us") -> Row:
    """Return the condition that a row comes behind the time and number at `position`, on the way to the older ones."""
    if position is None:
        return {}
    at_us, number = position
    # One range and one exception: the planner makes two plans of an alternative at the root.
    return {time: {"$lte": at_us}, "$nor": [{time: at_us, "number": {"$gte": number}}]}


def lowered(text: str) -> str:
    """Return `text` with the letters of ASCII in lower case."""
    return text.encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


def _values(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _values(each)
    elif isinstance(value, list):
        for each in value:
            yield from _values(each)
    elif value is not None:
        yield lowered(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def stored_event(row: Row) -> StoredEvent:
    """Return the event of a row."""
    return StoredEvent(
        offset=row["number"],
        id=EventId(row["_id"]),
        type=row["type"],
        topic=row["topic"],
        execution_id=ExecutionId(row["execution_id"]),
        project_id=row.get("project_id"),
        user_id=row.get("user_id"),
        at=moment(row["at_us"]),
        attempt=row["attempt"],
        correlation_id=row.get("correlation_id"),
        causation_id=row.get("causation_id"),
        body=row["body"],
    )
