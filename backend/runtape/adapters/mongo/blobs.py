"""Immutable bytes in MongoDB.

Theory of operation
===================
A blob is a document under its digest.  One that is longer than `INLINE_BYTES` lies in parts beside it, because a
document ends at 16 MiB.  Parts belong to one attempt to store it, which the blob names: they are written first, and
removed after a blob that named them, so two that store the same bytes, or one that stores them while a sweep takes them
away, never share a part.  Parts that no blob names are what a crash has left; they go by their age.

A blob's time is renewed whenever it is stored, so that a sweep cannot take it between that and the document that names
it.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import datetime

from pymongo import ASCENDING

from runtape.adapters.mongo.connection import Row, Rows, Store, transient
from runtape.adapters.mongo.indexes import BLOBS, EXECUTIONS, PARTS
from runtape.domain.times import microseconds
from runtape.ports.clock import Clock, Ids

INLINE_BYTES = 4 << 20
SWEPT_AT_ONCE = 200


class MongoBlobStore:
    """`BlobStore` over the collections ``blobs`` and ``blob_parts``."""

    def __init__(self, store: Store, clock: Clock, ids: Ids) -> None:
        self._blobs = store[BLOBS]
        self._parts = store[PARTS]
        self._executions = store[EXECUTIONS]
        self._clock = clock
        self._ids = ids

    async def put(self, data: bytes) -> str:
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        now_us = microseconds(self._clock.now())
        with transient():
            renewed = await self._blobs.update_one({"_id": sha256}, {"$set": {"created_us": now_us}})
            if renewed.matched_count:
                return sha256
            content: Row = {"data": data} if len(data) <= INLINE_BYTES else await self._put_parts(data, now_us)
            stored = await self._blobs.update_one(
                {"_id": sha256}, {"$set": {"created_us": now_us}, "$setOnInsert": content}, upsert=True
            )
            if stored.matched_count and "parts" in content:  # somebody else has stored it meanwhile
                await self._parts.delete_many({"of": content["parts"]})
        return sha256

    async def _put_parts(self, data: bytes, now_us: int) -> Row:
        name = self._ids.new_id()
        starts = range(0, len(data), INLINE_BYTES)
        for number, start in enumerate(starts):
            part = {"of": name, "number": number, "created_us": now_us, "data": data[start : start + INLINE_BYTES]}
            await self._parts.insert_one({"_id": f"{name}/{number}", **part})
        return {"parts": name, "count": len(starts)}

    async def get(self, sha256: str) -> bytes | None:
        with transient():
            blob = await self._blobs.find_one({"_id": sha256})
            if blob is None:
                return None
            if "data" in blob:
                return bytes(blob["data"])
            parts = await self._parts.find({"of": blob["parts"]}).sort("number", ASCENDING).to_list()
        return b"".join(part["data"] for part in parts) if len(parts) == blob["count"] else None

    async def ready(self) -> None:
        with transient():
            await self._blobs.find_one({"_id": ""})

    async def sweep(self, created_before: datetime) -> int:
        cutoff = microseconds(created_before)
        removed = 0
        async for page in _older(self._blobs, cutoff, ("parts",)):
            digests = [row["_id"] for row in page]
            with transient():
                used = {
                    *await self._executions.distinct("blob", {"blob": {"$in": digests}}),
                    *await self._executions.distinct("artifacts", {"artifacts": {"$in": digests}}),
                }
                for row in page:
                    if row["_id"] in used:
                        continue
                    # Unless somebody has stored it again since.
                    gone = await self._blobs.delete_one({"_id": row["_id"], "created_us": row["created_us"]})
                    removed += gone.deleted_count
                    if gone.deleted_count and "parts" in row:
                        await self._parts.delete_many({"of": row["parts"]})
        async for page in _older(self._parts, cutoff, ("of",)):
            names = list({row["of"] for row in page})
            with transient():
                known = await self._blobs.distinct("parts", {"parts": {"$in": names}})
                await self._parts.delete_many({"of": {"$in": [name for name in names if name not in known]}})
        return removed


async def _older(rows: Rows, cutoff: int, fields: tuple[str, ...]) -> AsyncIterator[list[Row]]:
    """Yield what is older than that, oldest first, in pages of `fields` with ``_id`` and ``created_us``."""
    after: Row | None = None
    while True:
        where: Row = {"created_us": {"$lt": cutoff}}
        if after is not None:
            same = {"created_us": after["created_us"], "_id": {"$gt": after["_id"]}}
            where = {"$or": [{"created_us": {"$gt": after["created_us"], "$lt": cutoff}}, same]}
        with transient():
            query = rows.find(where, dict.fromkeys((*fields, "created_us"), 1))
            page = await query.sort([("created_us", ASCENDING), ("_id", ASCENDING)]).limit(SWEPT_AT_ONCE).to_list()
        if page:
            yield page
        if len(page) < SWEPT_AT_ONCE:
            return
        after = page[-1]
