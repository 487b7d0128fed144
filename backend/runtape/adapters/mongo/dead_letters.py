"""Dead letters in MongoDB: a document each.

Theory of operation
===================
The letters of a line are documents of their own, and no write spans two.  What the port asks to happen in one write
happens in an order of which every part can be done again:

* A letter that is appended as parked looks at its line once more when it stands there.  If nothing is before it any
  more, it schedules itself.
* Before a letter is closed the next one is scheduled, so a crash leaves no line that nobody works on: a letter that
  is scheduled and is not the first of its line waits (`DeadLetters`).  After it was closed the line is looked at
  again, for what was appended in between.

Ids are numbers from a counter, so they are ordered as letters are appended.
"""

import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
from pymongo import ASCENDING, DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from runtape.adapters.mongo.connection import Row, Store, transient
from runtape.adapters.mongo.indexes import COUNTERS, DEAD_LETTERS, SETTINGS
from runtape.domain.dead_letter import DeadLetter, FailureKind, LetterStatus, RawMessage, RetryPolicy
from runtape.domain.ids import DeadLetterId, EventId
from runtape.domain.times import microseconds, moment
from runtape.ports.dead_letters import DeadLetterCount, DeadLetterFilter
from runtape.ports.errors import Transient
from runtape.ports.stores import NEVER

PAGE = 500

_ID = re.compile(r"[1-9][0-9]{0,17}\Z", re.ASCII)
_SINCE = {"first_us": 1}
_UNTRIED = {"failure": FailureKind.PARKED, "retries": 0, "open": True}
_encode = msgspec.json.Encoder().encode
_decode_policy = msgspec.json.Decoder(RetryPolicy).decode


class MongoDeadLetterStore:
    """`DeadLetterStore` over the collection ``dead_letters``; ``open`` is there as long as a letter is."""

    def __init__(self, store: Store) -> None:
        self._letters = store[DEAD_LETTERS]
        self._counters = store[COUNTERS]
        self._settings = store[SETTINGS]

    async def append(self, letter: DeadLetter) -> DeadLetter:
        known = await self._known(letter)
        if known is not None:
            return known
        number = await self._next_number()
        row = {"_id": number, **_present(_row(letter))}
        try:
            with transient():
                await self._letters.insert_one(row)
        except DuplicateKeyError as error:
            known = await self._known(letter)
            if known is None:  # it was there, and was closed or removed meanwhile
                raise Transient(f"the letter of {letter.group} was changed by somebody else") from error
            return known
        if letter.failure is FailureKind.PARKED:
            await self._schedule_first(letter.group, letter.message.key, number)
        stored = await self.get(DeadLetterId(str(number)))
        assert stored is not None, "nobody removes an open letter"
        return stored

    async def _known(self, letter: DeadLetter) -> DeadLetter | None:
        message = letter.message
        place = {
            "consumer_group": letter.group,
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
        }
        found = await self._one(place)
        if found is None and letter.message_id is not None:
            found = await self._one({**_line(letter.group, message.key), "message_id": letter.message_id})
        return found

    async def _next_number(self) -> int:
        with transient():
            row = await self._counters.find_one_and_update(
                {"_id": DEAD_LETTERS}, {"$inc": {"value": 1}}, upsert=True, return_document=ReturnDocument.AFTER
            )
        assert row is not None, "it is made when it is not there"
        return row["value"]

    async def _schedule_first(self, group: str, key: str, only: int | None = None) -> None:
        """Schedule the first of a line unless it has been tried; when `only` is given, that one and no other."""
        with transient():
            first = await self._letters.find_one(_line(group, key), _SINCE, sort=[("_id", ASCENDING)])
        if first is not None and only in (None, first["_id"]):
            await self._schedule(first)

    async def _schedule(self, row: Row) -> None:
        scheduled = {"status": LetterStatus.SCHEDULED, "next_retry_us": row["first_us"]}
        with transient():
            await self._letters.update_one(
                {"_id": row["_id"], "status": LetterStatus.PENDING, **_UNTRIED}, {"$set": scheduled}
            )

    async def get(self, letter_id: DeadLetterId) -> DeadLetter | None:
        return await self._one({"_id": int(letter_id)}) if _ID.match(letter_id) else None

    async def first(self, group: str, key: str) -> DeadLetter | None:
        return await self._one(_line(group, key))

    async def replace(self, before: DeadLetter, after: DeadLetter) -> bool:
        changed = {
            "failure": after.failure,
            "cause": after.cause,
            "stack_digest": after.stack_digest,
            "attempts": after.attempts,
            "retries": after.retries,
            "last_us": microseconds(after.last_at),
            "status": after.status,
            "next_retry_us": _us(after.next_retry_at),
        }
        unchanged = {
            "_id": int(before.id),
            "status": before.status,
            "retries": before.retries,
            "next_retry_us": _us(before.next_retry_at),
        }
        absent = {name: "" for name, value in changed.items() if value is None}
        update: Row = {"$set": _present(changed)}
        if absent:
            update["$unset"] = absent
        with transient():
            return (await self._letters.update_one(unchanged, update)).matched_count == 1

    async def resolve(
        self, letter_id: DeadLetterId, status: LetterStatus, at: datetime, by: str | None, reason: str | None
    ) -> int | None:
        number = int(letter_id)
        letter = await self.get(letter_id)
        if letter is None or not letter.open:
            return None
        line = _line(letter.group, letter.message.key)
        with transient():
            others = self._letters.find({**line, "_id": {"$ne": number}}, _SINCE).sort("_id", ASCENDING)
            following = await others.limit(1).to_list()
        if following:
            await self._schedule(following[0])
        closed = {"status": status, "resolved_us": microseconds(at), "resolved_by": by, "reason": reason}
        with transient():
            done = await self._letters.update_one(
                {"_id": number, "open": True}, {"$set": _present(closed), "$unset": {"open": "", "next_retry_us": ""}}
            )
        if done.matched_count != 1:
            return None
        await self._schedule_first(letter.group, letter.message.key)
        with transient():
            return await self._letters.count_documents(line)

    async def parked(self) -> AsyncIterator[tuple[str, str]]:
        after: tuple[str, str] | None = None
        while True:
            where: Row = {"open": True}
            if after is not None:
                group, key = after
                same = {"consumer_group": group, "key": {"$gt": key}}
                where = {"open": True, "$or": [{"consumer_group": {"$gt": group}}, same]}
            with transient():
                query = self._letters.find(where, {"consumer_group": 1, "key": 1})
                rows = await query.sort([("consumer_group", ASCENDING), ("key", ASCENDING)]).limit(PAGE).to_list()
            for line in dict.fromkeys((row["consumer_group"], row["key"]) for row in rows):
                yield line
                after = line
            if len(rows) < PAGE:
                return

    async def due(
        self, groups: Collection[str], before: datetime, limit: int, beyond: datetime = NEVER
    ) -> Sequence[DeadLetter]:
        later = {"$gt": microseconds(beyond)}
        # What was tried later is due later too: where that is said, an index of what is scheduled finds either branch.
        due = [{"next_retry_us": {"$lte": microseconds(before)}}, {"next_retry_us": later, "last_us": later}]
        where = {**_scheduled(groups), "$or": due}
        return await self._many(where, [("next_retry_us", ASCENDING), ("_id", ASCENDING)], limit)

    async def next_retry_at(self, groups: Collection[str], after: datetime) -> datetime | None:
        where = {**_scheduled(groups), "next_retry_us": {"$gt": microseconds(after)}}
        found = await self._many(where, [("next_retry_us", ASCENDING)], 1)
        return found[0].next_retry_at if found else None

    async def list(self, where: DeadLetterFilter, limit: int, before: DeadLetterId | None) -> Sequence[DeadLetter]:
        chosen = _condition(where)
        if before is not None:
            chosen = {"$and": [chosen, {"_id": {"$lt": int(before)}}]}
        return await self._many(chosen, [("_id", DESCENDING)], limit)

    async def oldest(self, where: DeadLetterFilter, limit: int) -> Sequence[DeadLetter]:
        return await self._many(_condition(where), [("_id", ASCENDING)], limit)

    async def counts(self) -> Sequence[DeadLetterCount]:
        names = {"topic": "topic", "group": "consumer_group", "type": "type", "status": "status"}
        common = {name: f"${field}" for name, field in names.items()}
        grouped = {
            "_id": common,
            "count": {"$sum": 1},
            "oldest": {"$min": "$first_us"},
            "newest": {"$max": "$first_us"},
        }
        with transient():
            rows = await (await self._letters.aggregate([{"$group": grouped}])).to_list()
        found = [
            DeadLetterCount(
                topic=row["_id"]["topic"],
                group=row["_id"]["group"],
                type=row["_id"]["type"],
                status=LetterStatus(row["_id"]["status"]),
                count=row["count"],
                oldest_at=moment(row["oldest"]),
                newest_at=moment(row["newest"]),
            )
            for row in rows
        ]
        return sorted(found, key=lambda each: (each.topic, each.group, each.type, each.status))

    async def policy(self, topic: str) -> RetryPolicy | None:
        with transient():
            row = await self._settings.find_one({"_id": _policy_id(topic)})
        return _decode_policy(row["value"]) if row else None

    async def put_policy(self, topic: str, policy: RetryPolicy) -> None:
        with transient():
            await self._settings.replace_one({"_id": _policy_id(topic)}, {"value": _encode(policy)}, upsert=True)

    async def prune(self, before: datetime, limit: int) -> int:
        with transient():
            query = self._letters.find({"resolved_us": {"$lt": microseconds(before)}}, {"_id": 1})
            rows = await query.sort([("resolved_us", ASCENDING), ("_id", ASCENDING)]).limit(limit).to_list()
            if not rows:
                return 0
            return (await self._letters.delete_many({"_id": {"$in": [row["_id"] for row in rows]}})).deleted_count

    async def _one(self, where: Row) -> DeadLetter | None:
        found = await self._many(where, [("_id", ASCENDING)], 1)
        return found[0] if found else None

    async def _many(self, where: Row, order: Sequence[tuple[str, int]], limit: int) -> Sequence[DeadLetter]:
        with transient():
            rows = await self._letters.find(where).sort(order).limit(limit).to_list()
        return [_letter(row) for row in rows]


def _line(group: str, key: str) -> Row:
    return {"consumer_group": group, "key": key, "open": True}


def _scheduled(groups: Collection[str]) -> Row:
    return {"status": LetterStatus.SCHEDULED, "consumer_group": {"$in": sorted(groups)}}


def _condition(where: DeadLetterFilter) -> Row:
    happened = _present({"$gte": _us(where.from_), "$lt": _us(where.before)})
    chosen: Mapping[str, Any] = {
        "topic": where.topic,
        "type": where.type,
        "consumer_group": where.group,
        "key": where.key,
        "failure": where.failure,
        "stack_digest": where.stack_digest,
        "first_us": happened or None,
        "status": None if where.statuses is None else {"$in": sorted(where.statuses)},
        "_id": None if where.ids is None else {"$in": sorted(int(each) for each in where.ids if _ID.match(each))},
    }
    return _present(chosen)


def _policy_id(topic: str) -> str:
    return f"retry_policy/{topic}"


def _present(fields: Mapping[str, Any]) -> Row:
    return {name: value for name, value in fields.items() if value is not None}


def _us(at: datetime | None) -> int | None:
    return None if at is None else microseconds(at)


def _moment(at_us: int | None) -> datetime | None:
    return None if at_us is None else moment(at_us)


def _row(letter: DeadLetter) -> Row:
    message = letter.message
    return {
        "consumer_group": letter.group,
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "key": message.key,
        "type": message.type,
        "body": message.body,
        "headers": dict(message.headers),
        "message_id": letter.message_id,
        "failure": letter.failure,
        "cause": letter.cause,
        "stack_digest": letter.stack_digest,
        "attempts": letter.attempts,
        "retries": letter.retries,
        "first_us": microseconds(letter.first_at),
        "last_us": microseconds(letter.last_at),
        "status": letter.status,
        "open": True,
        "next_retry_us": _us(letter.next_retry_at),
    }


def _letter(row: Row) -> DeadLetter:
    message_id = row.get("message_id")
    letter = DeadLetter(
        id=DeadLetterId(str(row["_id"])),
        group=row["consumer_group"],
        message=RawMessage(
            topic=row["topic"],
            partition=row["partition"],
            offset=row["offset"],
            key=row["key"],
            type=row["type"],
            body=row["body"],
            headers=row["headers"],
        ),
        message_id=None if message_id is None else EventId(message_id),
        failure=FailureKind(row["failure"]),
        cause=row["cause"],
        stack_digest=row.get("stack_digest"),
        attempts=row["attempts"],
        retries=row["retries"],
        first_at=moment(row["first_us"]),
        last_at=moment(row["last_us"]),
        status=LetterStatus(row["status"]),
    )
    return replace(
        letter,
        next_retry_at=_moment(row.get("next_retry_us")),
        resolved_at=_moment(row.get("resolved_us")),
        resolved_by=row.get("resolved_by"),
        reason=row.get("reason"),
    )
