"""Notifications in SQLite: a JSON document each, beside the columns by which it is found."""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec

from runtape.adapters.embedded.database import Database
from runtape.domain.ids import NotificationId, UserId
from runtape.domain.notification import Notification
from runtape.domain.times import microseconds, moment
from runtape.ports.notifications import COUNTED, NotificationFilter, NotificationPosition

MARKED = 500
"""Notifications that are marked as read in one write, which holds up the commits of runs."""

_TAGGED = "exists (select 1 from json_each(cast(doc as text), '$.tags') where {})"
_LAST_CHARACTER = chr(0x10FFFF)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Notification).decode


def insert_notifications(connection: sqlite3.Connection, notifications: Sequence[Notification]) -> None:
    """Add `notifications` inside the caller's transaction; those that are there stay as they are."""
    rows = [
        (each.id, each.user_id, each.execution_id, microseconds(each.created_at), _us(each.read_at), _encode(each))
        for each in notifications
    ]
    connection.executemany("insert or ignore into notification values (?,?,?,?,?,?)", rows)


class SqliteNotificationStore:
    """`NotificationStore` over the `notification` table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self, user_id: UserId, where: NotificationFilter, limit: int, after: NotificationPosition | None
    ) -> Sequence[Notification]:
        chosen: dict[str, Sequence[str | int]] = {"user_id = ?": (user_id,)}
        if after is not None:
            chosen["(created_us, id) < (?, ?)"] = (microseconds(after.at), after.id)
        if where.read is not None:
            chosen["read_us is not null" if where.read else "read_us is null"] = ()
        if where.include_tags:
            chosen[_TAGGED.format(_one_of(where.include_tags))] = sorted(where.include_tags)
        if where.exclude_tags:
            chosen["not " + _TAGGED.format(_one_of(where.exclude_tags))] = sorted(where.exclude_tags)
        if where.tag_prefix is not None:
            between = (where.tag_prefix, where.tag_prefix + _LAST_CHARACTER)
            chosen[_TAGGED.format("value >= ? and value < ?")] = between
        # The condition texts are the literals above; every value is bound.
        clause = " and ".join(chosen)
        query = f"select doc, read_us from notification where {clause} order by created_us desc, id desc limit ?"
        values = [value for values in chosen.values() for value in values]
        rows = await self._database.read(lambda c: c.execute(query, (*values, limit)).fetchall())
        return [_notification(row) for row in rows]

    async def unread_count(self, user_id: UserId) -> int:
        query = "select count(*) from (select 1 from notification where user_id = ? and read_us is null limit ?)"
        return await self._database.read(lambda c: c.execute(query, (user_id, COUNTED)).fetchone()[0])

    async def mark_read(self, user_id: UserId, notification_id: NotificationId, at: datetime) -> bool:
        statement = "update notification set read_us = coalesce(read_us, ?) where id = ? and user_id = ?"
        return await self._run(statement, microseconds(at), notification_id, user_id) == 1

    async def mark_all_read(self, user_id: UserId, at: datetime) -> None:
        statement = (
            "update notification set read_us = ? where id in"
            " (select id from notification where user_id = ? and read_us is null limit ?)"
        )
        while await self._run(statement, microseconds(at), user_id, MARKED) == MARKED:
            pass

    async def remove(self, user_id: UserId, notification_id: NotificationId) -> bool:
        return await self._run("delete from notification where id = ? and user_id = ?", notification_id, user_id) == 1

    async def prune(self, before: datetime, limit: int) -> int:
        statement = (
            "delete from notification where id in"
            " (select id from notification where created_us < ? order by created_us limit ?)"
        )
        return await self._run(statement, microseconds(before), limit)

    async def _run(self, statement: str, *values: str | int) -> int:
        return await self._database.write(lambda c: c.execute(statement, values).rowcount)


def _one_of(tags: frozenset[str]) -> str:
    return f"value in ({','.join('?' * len(tags))})"


def _us(at: datetime | None) -> int | None:
    return None if at is None else microseconds(at)


def _notification(row: tuple[Any, ...]) -> Notification:
    """Decode a row, whose column wins over the document."""
    doc, read_us = row
    return replace(_decode(doc), read_at=None if read_us is None else moment(read_us))
