"""Replay sessions and their files in MongoDB."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Protocol

import msgspec
from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from runtape.adapters.mongo.connection import Row, Store, transient
from runtape.adapters.mongo.indexes import REPLAY_PARTS, REPLAYS
from runtape.domain.events import Message
from runtape.domain.replay import ReplaySession, ReplaySessionId, SessionStatus, Target
from runtape.domain.times import microseconds
from runtape.ports.errors import Transient, VersionConflict
from runtape.ports.replay import ReplayedMessage

PART_BYTES = 4 << 20

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ReplaySession).decode


class Republisher(Protocol):
    """Writes to the log what it has held before."""

    async def publish_again(self, message: Message, session_id: ReplaySessionId) -> None:
        """Append `message` with the mark of the session; return once that is durable.  Raises: Transient."""
        ...


class MongoReplaySessionStore:
    """`ReplaySessionStore` over the collection ``replays``; copies are published before the document says so."""

    def __init__(self, store: Store, publisher: Republisher) -> None:
        self._rows = store[REPLAYS]
        self._publisher = publisher

    async def create(self, session: ReplaySession) -> None:
        try:
            with transient():
                await self._rows.insert_one({"_id": session.id, **_row(session)})
        except DuplicateKeyError as error:
            raise VersionConflict(f"session {session.id} exists") from error

    async def get(self, session_id: ReplaySessionId) -> ReplaySession | None:
        with transient():
            row = await self._rows.find_one({"_id": session_id}, {"doc": 1})
        return _decode(row["doc"]) if row else None

    async def commit(
        self, session: ReplaySession, expected_version: int, again: Sequence[ReplayedMessage] = ()
    ) -> None:
        current = {"_id": session.id, "version": expected_version}
        with transient():
            found = await self._rows.find_one(current, {"_id": 1})
        if found is not None:
            for copy in again:
                await self._publisher.publish_again(copy.message, session.id)
            with transient():
                found = (await self._rows.replace_one(current, _row(session))).matched_count or None
        if found is None:
            raise VersionConflict(f"session {session.id} is no longer at version {expected_version}")

    async def list(
        self,
        *,
        status: SessionStatus | None,
        target: Target | None,
        limit: int,
        before: ReplaySessionId | None,
    ) -> Sequence[ReplaySession]:
        chosen = {"status": status, "target": target, "_id": None if before is None else {"$lt": before}}
        where = {name: value for name, value in chosen.items() if value is not None}
        return await self._found(where, [("_id", DESCENDING)], limit)

    async def running(self) -> Sequence[ReplaySession]:
        return await self._found({"status": SessionStatus.RUNNING}, [("_id", ASCENDING)], 0)

    async def ended(self, before: datetime, limit: int) -> Sequence[ReplaySession]:
        return await self._found({"ended_us": {"$lt": microseconds(before)}}, [("ended_us", ASCENDING)], limit)

    async def delete(self, session_id: ReplaySessionId) -> None:
        with transient():
            await self._rows.delete_one({"_id": session_id})

    async def _found(self, where: Row, order: Sequence[tuple[str, int]], limit: int) -> Sequence[ReplaySession]:
        with transient():
            rows = await self._rows.find(where, {"doc": 1}).sort(order).limit(limit).to_list()
        return [_decode(row["doc"]) for row in rows]


def _row(session: ReplaySession) -> Row:
    row: Row = {"version": session.version, "status": session.status, "target": session.target, "doc": _encode(session)}
    if session.ended_at is not None:
        row["ended_us"] = microseconds(session.ended_at)
    return row


class MongoReplayFiles:
    """`ReplayFiles` over the collection ``replay_parts``: a part is what lies from its ``start`` on."""

    def __init__(self, store: Store) -> None:
        self._parts = store[REPLAY_PARTS]

    async def write(self, session_id: ReplaySessionId, at_bytes: int, data: bytes) -> None:
        _check(session_id)
        with transient():
            await self._parts.delete_many({"session": session_id, "start": {"$gte": at_bytes}})
            last = await self._parts.find_one({"session": session_id}, sort=[("start", DESCENDING)])
            if last is not None and last["end"] > at_bytes:
                kept = {"data": last["data"][: at_bytes - last["start"]], "end": at_bytes}
                await self._parts.update_one({"_id": last["_id"]}, {"$set": kept})
            for start in range(at_bytes, at_bytes + len(data), PART_BYTES):
                part = data[start - at_bytes : start - at_bytes + PART_BYTES]
                row = {"session": session_id, "start": start, "end": start + len(part), "data": part}
                await self._parts.replace_one({"_id": f"{session_id}/{start}"}, row, upsert=True)

    async def read(self, session_id: ReplaySessionId, start: int, end: int) -> AsyncIterator[bytes]:
        _check(session_id)
        while start < end:
            with transient():
                where = {"session": session_id, "start": {"$lte": start}, "end": {"$gt": start}}
                part = await self._parts.find_one(where)
            if part is None:
                raise Transient(f"the file of session {session_id} ends at {start} bytes")
            data = part["data"][start - part["start"] : end - part["start"]]
            yield data
            start += len(data)

    async def remove(self, session_id: ReplaySessionId) -> None:
        _check(session_id)
        with transient():
            await self._parts.delete_many({"session": session_id})


def _check(session_id: ReplaySessionId) -> None:
    if not session_id or not all(each.isascii() and (each.isalnum() or each == "-") for each in session_id):
        raise ValueError(f"{session_id!r} is no id of a session")
