"""Notifications in MongoDB: a JSON document each, beside the fields by which it is found.

``unread`` is there until the user has read it, and ``read_us`` from then on.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import msgspec
from pymongo import ASCENDING, DESCENDING

from runtape.adapters.mongo.connection import Row, Rows, Store, transient
from runtape.adapters.mongo.indexes import NOTIFICATIONS
from runtape.domain.ids import NotificationId, UserId
from runtape.domain.notification import Notification
from runtape.domain.times import microseconds, moment
from runtape.ports.notifications import COUNTED, NotificationFilter, NotificationPosition

_LAST_CHARACTER = chr(0x10FFFF)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Notification).decode


async def insert_notifications(rows: Rows, notifications: Sequence[Notification]) -> None:
    """Add `notifications`; those that are there stay as they are.  Raises: Transient."""
    for each in notifications:
        fields: Row = {
            "user_id": each.user_id,
            "created_us": microseconds(each.created_at),
            "tags": list(each.tags),
            "doc": _encode(each),
        }
        if each.execution_id is not None:
            fields["execution_id"] = each.execution_id
        if each.read_at is None:
            fields["unread"] = True
        else:
            fields["read_us"] = microseconds(each.read_at)
        with transient():
            await rows.update_one({"_id": each.id}, {"$setOnInsert": fields}, upsert=True)


class MongoNotificationStore:
    """`NotificationStore` over the collection ``notifications``."""

    def __init__(self, store: Store) -> None:
        self._rows = store[NOTIFICATIONS]

    async def list(
        self, user_id: UserId, where: NotificationFilter, limit: int, after: NotificationPosition | None
    ) -> Sequence[Notification]:
        chosen: list[Row] = [{"user_id": user_id}]
        if after is not None:
            after_us = microseconds(after.at)
            behind = {"$nor": [{"created_us": after_us, "_id": {"$gte": after.id}}]}
            chosen.append({"created_us": {"$lte": after_us}, **behind})
        if where.read is not None:
            chosen.append({"read_us": {"$exists": True}} if where.read else {"unread": True})
        if where.include_tags:
            chosen.append({"tags": {"$in": sorted(where.include_tags)}})
        if where.exclude_tags:
            chosen.append({"tags": {"$nin": sorted(where.exclude_tags)}})
        if where.tag_prefix is not None:
            between = {"$gte": where.tag_prefix, "$lt": where.tag_prefix + _LAST_CHARACTER}
            chosen.append({"tags": {"$elemMatch": between}})
        with transient():
            query = self._rows.find({"$and": chosen}, {"doc": 1, "read_us": 1})
            rows = await query.sort([("created_us", DESCENDING), ("_id", DESCENDING)]).limit(limit).to_list()
        return [_notification(row) for row in rows]

    async def unread_count(self, user_id: UserId) -> int:
        with transient():
            return await self._rows.count_documents({"user_id": user_id, "unread": True}, limit=COUNTED)

    async def mark_read(self, user_id: UserId, notification_id: NotificationId, at: datetime) -> bool:
        once = {"$set": {"read_us": {"$ifNull": ["$read_us", microseconds(at)]}, "unread": "$$REMOVE"}}
        with transient():
            done = await self._rows.update_one({"_id": notification_id, "user_id": user_id}, [once])
        return done.matched_count == 1

    async def mark_all_read(self, user_id: UserId, at: datetime) -> None:
        read = {"$set": {"read_us": microseconds(at)}, "$unset": {"unread": ""}}
        with transient():
            await self._rows.update_many({"user_id": user_id, "unread": True}, read)

    async def remove(self, user_id: UserId, notification_id: NotificationId) -> bool:
        with transient():
            return (await self._rows.delete_one({"_id": notification_id, "user_id": user_id})).deleted_count == 1

    async def prune(self, before: datetime, limit: int) -> int:
        with transient():
            query = self._rows.find({"created_us": {"$lt": microseconds(before)}}, {"_id": 1})
            rows = await query.sort("created_us", ASCENDING).limit(limit).to_list()
            if not rows:
                return 0
            return (await self._rows.delete_many({"_id": {"$in": [row["_id"] for row in rows]}})).deleted_count


def _notification(row: Row) -> Notification:
    """Decode a row, whose field wins over the document."""
    read_us = row.get("read_us")
    return replace(_decode(row["doc"]), read_at=None if read_us is None else moment(read_us))
