"""Events from old to new, and their fields made anew; positions are their numbers."""

from typing import Any

from pymongo import ASCENDING

from runtape.adapters.mongo.connection import Row, transient
from runtape.adapters.mongo.event_store import CANDIDATES, digest, remake, text_condition
from runtape.adapters.mongo.events import EventRows, stored_event
from runtape.domain.replay import Selection
from runtape.domain.times import microseconds
from runtape.ports.replay import EventSlice, Remade


class MongoEventSource:
    """`EventSource` and `EventIndex` over the collection ``events``."""

    def __init__(self, events: EventRows) -> None:
        self._events = events
        self._rows = events.rows

    async def newest(self) -> str:
        await self._events.complete()
        return str(await self._events.newest())

    async def read(self, selection: Selection, after: str, until: str, limit: int) -> EventSlice:
        begin, end = _number(after), _number(until)
        conditions = _conditions(selection)
        last = None if _few(selection) else await self._candidate(begin, end)
        bounded = {"number": {"$gt": begin, "$lte": end if last is None else last}}
        with transient():
            query = self._rows.find({"$and": [bounded, *conditions]}).sort("number", ASCENDING)
            events = [stored_event(row) for row in await query.limit(limit).to_list()]
        if len(events) == limit:
            return EventSlice(events, str(events[-1].offset), complete=events[-1].offset >= end)
        return EventSlice(events, str(end if last is None else last), complete=last is None)

    async def _candidate(self, begin: int, end: int) -> int | None:
        """Return how far the next candidates go; None: to `end`."""
        with transient():
            query = self._rows.find({"number": {"$gt": begin, "$lte": end}}, {"number": 1}).sort("number", ASCENDING)
            rows = await query.skip(CANDIDATES - 1).limit(1).to_list()
        return rows[0]["number"] if rows else None

    async def count(self, until: str) -> int:
        with transient():
            return await self._rows.count_documents({"number": {"$gt": 0, "$lte": _number(until)}})

    async def remake(self, after: str, until: str) -> Remade:
        end = _number(until)
        rows, last = await remake(self._events, _number(after))
        return Remade(rows, str(end if last is None else last), last is None or last >= end)

    async def digest(self, until: str) -> str:
        return await digest(self._events, _number(until))


def _number(position: str) -> int:
    return int(position or 0)


def _few(selection: Selection) -> bool:
    """Whether an index finds the few events that are meant: all of them are looked at in one go."""
    return bool(selection.event_ids) or selection.execution_id is not None or selection.correlation_id is not None


def _conditions(selection: Selection) -> list[Row]:
    conditions: list[Row] = []
    equal: dict[str, Any] = {
        "execution_id": selection.execution_id,
        "correlation_id": selection.correlation_id,
        "user_id": selection.user_id,
        "project_id": selection.project_id,
    }
    conditions += [{name: value} for name, value in equal.items() if value is not None]
    if selection.event_ids:
        conditions.append({"_id": {"$in": list(selection.event_ids)}})
    if selection.happened_from is not None:
        conditions.append({"at_us": {"$gte": microseconds(selection.happened_from)}})
    if selection.happened_before is not None:
        conditions.append({"at_us": {"$lt": microseconds(selection.happened_before)}})
    if selection.types:
        conditions.append({"type": {"$in": list(selection.types)}})
    if selection.excluded_types:
        conditions.append({"type": {"$nin": list(selection.excluded_types)}})
    if selection.text is not None:
        conditions.append({"values": text_condition(selection.text)})
    return conditions
