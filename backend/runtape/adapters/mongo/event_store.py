"""Asking about events in MongoDB: every search walks one index from new to old, some thousand rows by a query."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pymongo import ASCENDING, DESCENDING

from runtape.adapters.mongo.connection import Row, transient
from runtape.adapters.mongo.events import DERIVED, NUMBERED, EventRows, lowered, older, row_again, stored_event
from runtape.domain.events import ENDED_BY_STATUS
from runtape.domain.ids import EventId, ExecutionId, UserId
from runtape.domain.outcome import Status
from runtape.domain.times import microseconds, moment
from runtape.ports.events import (
    Archival,
    ArchivedEvent,
    EventFilter,
    EventPage,
    EventPosition,
    EventStatistics,
    StoredEvent,
)

CANDIDATES = 2_000
"""Rows that one query looks at."""

QUERIES = 25
"""Queries of one call to `browse`; a search that has not found enough in so many goes on with the next page."""

SLICE = 500
"""Rows that are made anew together."""

TOP_USERS = 10

_HOUR_US = 3_600_000_000
_NEWEST_FIRST = [("at_us", DESCENDING), ("number", DESCENDING)]
_ENDED = tuple(event.type for event in ENDED_BY_STATUS.values())
_FAILED = (ENDED_BY_STATUS[Status.FAILED].type, ENDED_BY_STATUS[Status.TIMEOUT].type)


class MongoEventStore:
    """`EventStore` over the collections ``events`` and ``event_archive``."""

    def __init__(self, events: EventRows) -> None:
        self._events = events
        self._rows = events.rows
        self._archive = events.archive_rows

    async def index(self, leave: int = 0) -> int:
        await self._events.complete()
        return 0

    async def browse(self, where: EventFilter, limit: int, after: EventPosition | None = None) -> EventPage:
        if after is None:
            await self.index()
        walk, rest = _plan(where)
        position = None if after is None else (microseconds(after.at), after.offset)
        found: list[StoredEvent] = []
        for _ in range(QUERIES):
            walked = _and(walk, older(position))
            last = await self._candidate(walked) if rest else None
            with transient():
                query = self._rows.find(_and(walked, rest, _down_to(last))).sort(_NEWEST_FIRST)
                rows = await query.limit(limit + 1 - len(found)).to_list()
            found += map(stored_event, rows)
            if len(found) > limit:
                newest = found[limit - 1]
                return EventPage(found[:limit], EventPosition(newest.at, newest.offset))
            if last is None:
                return EventPage(found, None)
            position = last
        return EventPage(found, EventPosition(moment(position[0]), position[1]) if position else None)

    async def _candidate(self, walked: Row) -> tuple[int, int] | None:
        """Return the last of the next candidates; None: there are fewer."""
        with transient():
            query = self._rows.find(walked, {"at_us": 1, "number": 1}).sort(_NEWEST_FIRST)
            rows = await query.skip(CANDIDATES - 1).limit(1).to_list()
        return (rows[0]["at_us"], rows[0]["number"]) if rows else None

    async def get(self, event_id: EventId) -> StoredEvent | None:
        await self.index()
        with transient():
            row = await self._rows.find_one({"_id": event_id, **NUMBERED})
        return stored_event(row) if row else None

    async def statistics(self, happened_from: datetime, happened_before: datetime) -> EventStatistics:
        await self.index()
        when = {"$gte": microseconds(happened_from), "$lt": microseconds(happened_before)}
        hour = {"$subtract": ["$at_us", {"$mod": ["$at_us", _HOUR_US]}]}
        grouped = {
            "_id": {"type": "$type", "hour_us": hour, "user_id": "$user_id"},
            "count": {"$sum": 1},
            "lasted_us": {"$sum": "$lasted_us"},
        }
        with transient():
            rows = await (
                await self._rows.aggregate([{"$match": {"at_us": when, **NUMBERED}}, {"$group": grouped}])
            ).to_list()
        types: Counter[str] = Counter()
        hours: Counter[datetime] = Counter()
        users: Counter[UserId] = Counter()
        lasted_us = 0
        for row in rows:
            about, count = row["_id"], row["count"]
            types[about["type"]] += count
            hours[moment(about["hour_us"])] += count
            lasted_us += row["lasted_us"]
            if about.get("user_id") is not None:
                users[UserId(about["user_id"])] += count
        ended = sum(types[name] for name in _ENDED)
        return EventStatistics(
            total=types.total(),
            by_type=dict(sorted(types.items())),
            by_hour=dict(sorted(hours.items())),
            by_user=dict(users.most_common(TOP_USERS)),
            ended=ended,
            failed=sum(types[name] for name in _FAILED),
            mean_duration=timedelta(microseconds=lasted_us / ended) if ended else None,
        )

    async def archive(self, event_id: EventId, archival: Archival) -> None:
        await self.index()
        await self._events.archive({"_id": event_id}, archival)

    async def archived(
        self, limit: int, after: EventPosition | None = None, execution_id: ExecutionId | None = None
    ) -> Sequence[ArchivedEvent]:
        where: Row = {} if execution_id is None else {"execution_id": execution_id}
        position = None if after is None else (microseconds(after.at), after.offset)
        with transient():
            query = self._archive.find(_and(where, older(position, "archived_us")))
            rows = await query.sort([("archived_us", DESCENDING), ("number", DESCENDING)]).limit(limit).to_list()
        return [
            ArchivedEvent(stored_event(row), Archival(row["archived_by"], moment(row["archived_us"]), row["reason"]))
            for row in rows
        ]

    async def prune(self, before: datetime, limit: int) -> int:
        with transient():
            query = self._archive.find({"archived_us": {"$lt": microseconds(before)}}, {"_id": 1})
            rows = await query.sort([("archived_us", ASCENDING), ("number", ASCENDING)]).limit(limit).to_list()
            return (await self._archive.delete_many({"_id": {"$in": [row["_id"] for row in rows]}})).deleted_count

    async def rebuild(self) -> None:
        after: int | None = 0
        while after is not None:
            _, after = await remake(self._events, after)

    async def digest(self) -> str:
        await self.index()
        return await digest(self._events, None)


async def remake(events: EventRows, after: int) -> tuple[int, int | None]:
    """Make the rows behind the number `after` anew; return how many, and how far that went, None at the end."""
    with transient():
        rows = await events.rows.find({"number": {"$gt": after}}).sort("number", ASCENDING).limit(SLICE).to_list()
    owners = await events.owners({row["execution_id"] for row in rows})
    for row in rows:
        again = row_again(row, owners.get(row["execution_id"]))
        if again != row:
            with transient():
                await events.rows.replace_one({"_id": row["_id"], "number": row["number"]}, again)
    return len(rows), rows[-1]["number"] if rows else None


async def digest(events: EventRows, until: int | None) -> str:
    """Return the SHA-256 of what the rows say up to the number `until`, all when that is None."""
    found = hashlib.sha256()
    where: Row = NUMBERED if until is None else {"number": {"$gt": 0, "$lte": until}}
    fields = dict.fromkeys(("number", *DERIVED), 1)
    with transient():
        async for row in events.rows.find(where, fields).sort("number", ASCENDING):
            found.update(repr([row.get(name) for name in ("_id", "number", *DERIVED)]).encode(errors="surrogatepass"))
    return found.hexdigest()


def _plan(where: EventFilter) -> tuple[Row, Row]:
    """Return the condition that an index answers and fewest events meet, with the times, and what is left."""
    times: Row = {}
    if where.happened_from is not None:
        times["$gte"] = microseconds(where.happened_from)
    if where.happened_before is not None:
        times["$lt"] = microseconds(where.happened_before)
    walk: Row = {**NUMBERED, **({"at_us": times} if times else {})}
    rest: Row = {}
    led = False
    conditions: Mapping[str, Any] = {
        "execution_id": where.execution_id,
        "correlation_id": where.correlation_id,
        "user_id": where.user_id,
        "project_id": where.project_id,
        "type": {"$in": sorted(where.types)} if where.types else None,
    }
    for name, value in conditions.items():
        if value is not None:
            (rest if led else walk)[name] = value
            led = True
    if where.text is not None:
        rest["values"] = text_condition(where.text)
    return walk, rest


def text_condition(text: str) -> Row:
    """Return the condition that `text` occurs in a value, letters of ASCII in either case."""
    return {"$regex": re.escape(lowered(text))}


def _down_to(position: tuple[int, int] | None) -> Row:
    if position is None:
        return {}
    at_us, number = position
    return {"at_us": {"$gte": at_us}, "$nor": [{"at_us": at_us, "number": {"$lt": number}}]}


def _and(*conditions: Row) -> Row:
    given = [condition for condition in conditions if condition]
    return {"$and": given} if len(given) > 1 else given[0] if given else {}
