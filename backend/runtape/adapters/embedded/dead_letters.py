"""Dead letters in SQLite: a row each, searched by plain columns."""

import re
import sqlite3
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from runtape.adapters.embedded.database import Database
from runtape.domain.dead_letter import DeadLetter, FailureKind, LetterStatus, RawMessage, RetryPolicy
from runtape.domain.ids import DeadLetterId, EventId
from runtape.ports.dead_letters import DeadLetterCount, DeadLetterFilter
from runtape.ports.stores import NEVER

_encode = msgspec.json.Encoder().encode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode
_decode_policy = msgspec.json.Decoder(RetryPolicy).decode

_ID = re.compile(r"[1-9][0-9]{0,17}\Z", re.ASCII)
_OPEN = "status in ('pending', 'scheduled')"
"""As the partial index has it, so that the planner sees that it can be used."""

_COLUMNS = (
    "id, consumer_group, topic, partition, offset, key, type, body, headers, message_id, failure, cause, stack_digest,"
    " attempts, retries, first_at, last_at, status, next_retry_at, resolved_at, resolved_by, reason"
)
_SELECT = f"select {_COLUMNS} from dead_letter"
_FIRST = f"{_SELECT} where consumer_group = ? and key = ? and {_OPEN} order by id limit 1"
PAGE = 500


class SqliteDeadLetterStore:
    """`DeadLetterStore` over the `dead_letter` table; an id is the number of its row, which is never given twice."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, letter: DeadLetter) -> DeadLetter:
        message = letter.message
        values = (
            letter.group,
            message.topic,
            message.partition,
            message.offset,
            message.key,
            message.type,
            message.body,
            _encode(message.headers),
            letter.message_id,
            letter.failure,
            letter.cause,
            letter.stack_digest,
            letter.attempts,
            letter.retries,
            letter.first_at.timestamp(),
            letter.last_at.timestamp(),
        )

        def work(c: sqlite3.Connection) -> Any:
            known = c.execute(
                f"{_SELECT} where consumer_group = ? and topic = ? and partition = ? and offset = ?",
                (letter.group, message.topic, message.partition, message.offset),
            ).fetchone()
            if known is None and letter.message_id is not None:
                known = c.execute(
                    f"{_SELECT} where consumer_group = ? and key = ? and {_OPEN} and message_id = ?",
                    (letter.group, message.key, letter.message_id),
                ).fetchone()
            if known is not None:
                return known
            status, next_retry_at = letter.status, letter.next_retry_at
            parked = letter.failure is FailureKind.PARKED
            if parked and c.execute(_FIRST, (letter.group, message.key)).fetchone() is None:
                status, next_retry_at = LetterStatus.SCHEDULED, letter.first_at
            added = c.execute(
                "insert into dead_letter (consumer_group, topic, partition, offset, key, type, body, headers,"
                " message_id, failure, cause, stack_digest, attempts, retries, first_at, last_at, status,"
                " next_retry_at) values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (*values, status, _timestamp(next_retry_at)),
            ).lastrowid
            return c.execute(f"{_SELECT} where id = ?", (added,)).fetchone()

        return _letter(await self._database.write(work, durable=True))

    async def get(self, letter_id: DeadLetterId) -> DeadLetter | None:
        if not _ID.match(letter_id):
            return None
        return await self._one(f"{_SELECT} where id = ?", (int(letter_id),))

    async def first(self, group: str, key: str) -> DeadLetter | None:
        return await self._one(_FIRST, (group, key))

    async def replace(self, before: DeadLetter, after: DeadLetter) -> bool:
        statement = (
            "update dead_letter set failure = ?, cause = ?, stack_digest = ?, attempts = ?, retries = ?, last_at = ?,"
            " status = ?, next_retry_at = ? where id = ? and status = ? and retries = ? and next_retry_at is ?"
        )
        values = (
            after.failure,
            after.cause,
            after.stack_digest,
            after.attempts,
            after.retries,
            after.last_at.timestamp(),
            after.status,
            _timestamp(after.next_retry_at),
            int(before.id),
            before.status,
            before.retries,
            _timestamp(before.next_retry_at),
        )
        return await self._database.write(lambda c: c.execute(statement, values).rowcount, durable=True) == 1

    async def resolve(
        self, letter_id: DeadLetterId, status: LetterStatus, at: datetime, by: str | None, reason: str | None
    ) -> int | None:
        def work(c: sqlite3.Connection) -> int | None:
            line = c.execute(
                f"select consumer_group, key from dead_letter where id = ? and {_OPEN}", (int(letter_id),)
            ).fetchone()
            if line is None:
                return None
            c.execute(
                "update dead_letter set status = ?, next_retry_at = null, resolved_at = ?, resolved_by = ?, reason = ?"
                " where id = ?",
                (status, at.timestamp(), by, reason, int(letter_id)),
            )
            first = c.execute(_FIRST, line).fetchone()
            if first is not None:
                c.execute(
                    "update dead_letter set status = 'scheduled', next_retry_at = first_at"
                    " where id = ? and failure = 'parked' and retries = 0",
                    first[:1],
                )
            (left,) = c.execute(
                f"select count(*) from dead_letter where consumer_group = ? and key = ? and {_OPEN}", line
            ).fetchone()
            return left

        return await self._database.write(work, durable=True)

    async def parked(self) -> AsyncIterator[tuple[str, str]]:
        after = ("", "")
        while True:
            found = await self._database.read(
                lambda c, start=after: c.execute(
                    f"select distinct consumer_group, key from dead_letter where {_OPEN}"
                    " and (consumer_group, key) > (?, ?) order by consumer_group, key limit ?",
                    (*start, PAGE),
                ).fetchall()
            )
            for line in found:
                yield line
            if len(found) < PAGE:
                return
            after = found[-1]

    async def due(
        self, groups: Collection[str], before: datetime, limit: int, beyond: datetime = NEVER
    ) -> Sequence[DeadLetter]:
        return await self._many(
            f"{_SELECT} where status = 'scheduled' and (next_retry_at <= ? or last_at > ?)"
            f" and {_among('consumer_group', groups)} order by next_retry_at, id limit ?",
            (before.timestamp(), beyond.timestamp(), *groups, limit),
        )

    async def next_retry_at(self, groups: Collection[str], after: datetime) -> datetime | None:
        query = (
            "select min(next_retry_at) from dead_letter where status = 'scheduled' and next_retry_at > ?"
            f" and {_among('consumer_group', groups)}"
        )
        (found,) = await self._database.read(lambda c: c.execute(query, (after.timestamp(), *groups)).fetchone())
        return _datetime(found)

    async def list(self, where: DeadLetterFilter, limit: int, before: DeadLetterId | None) -> Sequence[DeadLetter]:
        clause, values = _condition(where)
        if before is not None:
            clause, values = f"{clause} and id < ?", [*values, int(before)]
        return await self._many(f"{_SELECT} where {clause} order by id desc limit ?", (*values, limit))

    async def oldest(self, where: DeadLetterFilter, limit: int) -> Sequence[DeadLetter]:
        clause, values = _condition(where)
        return await self._many(f"{_SELECT} where {clause} order by id limit ?", (*values, limit))

    async def counts(self) -> Sequence[DeadLetterCount]:
        rows = await self._database.read(
            lambda c: c.execute(
                "select topic, consumer_group, type, status, count(*), min(first_at), max(first_at) from dead_letter"
                " group by 1, 2, 3, 4 order by 1, 2, 3, 4"
            ).fetchall()
        )
        return [
            DeadLetterCount(
                topic=topic,
                group=group,
                type=name,
                status=LetterStatus(status),
                count=count,
                oldest_at=datetime.fromtimestamp(oldest_at, UTC),
                newest_at=datetime.fromtimestamp(newest_at, UTC),
            )
            for topic, group, name, status, count, oldest_at, newest_at in rows
        ]

    async def policy(self, topic: str) -> RetryPolicy | None:
        row = await self._database.read(
            lambda c: c.execute("select doc from dead_letter_policy where topic = ?", (topic,)).fetchone()
        )
        return _decode_policy(row[0]) if row else None

    async def put_policy(self, topic: str, policy: RetryPolicy) -> None:
        doc = _encode(policy)
        await self._database.write(
            lambda c: c.execute("insert or replace into dead_letter_policy values (?,?)", (topic, doc)).rowcount,
            durable=True,
        )

    async def prune(self, before: datetime, limit: int) -> int:
        return await self._database.write(
            lambda c: (
                c.execute(
                    "delete from dead_letter where id in"
                    " (select id from dead_letter where resolved_at < ? order by resolved_at, id limit ?)",
                    (before.timestamp(), limit),
                ).rowcount
            )
        )

    async def _one(self, query: str, values: tuple[Any, ...]) -> DeadLetter | None:
        row = await self._database.read(lambda c: c.execute(query, values).fetchone())
        return _letter(row) if row else None

    async def _many(self, query: str, values: tuple[Any, ...]) -> Sequence[DeadLetter]:
        return [_letter(row) for row in await self._database.read(lambda c: c.execute(query, values).fetchall())]


def _condition(where: DeadLetterFilter) -> tuple[str, list[Any]]:
    """Return the condition of `where` and its values: every text in it is one of the literals here."""
    conditions: list[tuple[str, list[Any]]] = [
        (text, [value])
        for text, value in (
            ("topic = ?", where.topic),
            ("type = ?", where.type),
            ("consumer_group = ?", where.group),
            ("key = ?", where.key),
            ("failure = ?", where.failure),
            ("stack_digest = ?", where.stack_digest),
            ("first_at >= ?", _timestamp(where.from_)),
            ("first_at < ?", _timestamp(where.before)),
        )
        if value is not None
    ]
    if where.statuses is not None:
        conditions.append((_among("status", where.statuses), sorted(where.statuses)))
    if where.ids is not None:
        known = sorted(int(each) for each in where.ids if _ID.match(each))
        conditions.append((_among("id", known), known))
    return " and ".join(text for text, _ in conditions) or "1", [value for _, values in conditions for value in values]


def _among(column: str, values: Collection[Any]) -> str:
    return f"{column} in ({','.join('?' * len(values))})"


def _timestamp(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _datetime(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)


def _letter(row: tuple[Any, ...]) -> DeadLetter:
    """Return the letter of a row of `_COLUMNS`."""
    (
        number,
        group,
        topic,
        partition,
        offset,
        key,
        name,
        data,
        headers,
        message_id,
        failure,
        cause,
        stack_digest,
        attempts,
        retries,
        first_at,
        last_at,
        status,
        next_retry_at,
        resolved_at,
        resolved_by,
        reason,
    ) = row
    return DeadLetter(
        id=DeadLetterId(str(number)),
        group=group,
        message=RawMessage(
            topic=topic,
            partition=partition,
            offset=offset,
            key=key,
            type=name,
            body=data,
            headers=_decode_headers(headers),
        ),
        message_id=None if message_id is None else EventId(message_id),
        failure=FailureKind(failure),
        cause=cause,
        stack_digest=stack_digest,
        attempts=attempts,
        retries=retries,
        first_at=datetime.fromtimestamp(first_at, UTC),
        last_at=datetime.fromtimestamp(last_at, UTC),
        status=LetterStatus(status),
        next_retry_at=_datetime(next_retry_at),
        resolved_at=_datetime(resolved_at),
        resolved_by=resolved_by,
        reason=reason,
    )
