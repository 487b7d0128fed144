"""The tape in MongoDB: each append is a page, and pages are numbered.

Theory of operation
===================
The tape of an attempt is a row of pages, 0, 1, 2 and so on, each a document of its own whose ``_id`` has its number: of
two that want to write the same page one wins.  To seal a tape is to write the next page as one that says so.  Whoever
writes after that meets it, and knows; whoever sealed has every page before it.  So one-document writes are enough for
"nobody writes on a sealed tape", whichever process does what.

The writer of a tape knows the number of its next page and does not ask.  An append of which it does not know whether
it was carried out is done again under the same number, and finds its own records there.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

import msgspec
from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from runtape.adapters.mongo.connection import Row, Store, transient
from runtape.adapters.mongo.indexes import TAPES
from runtape.adapters.mongo.together import Together
from runtape.application.open_tapes import OpenTape, TapeDigest
from runtape.domain.ids import ExecutionId
from runtape.domain.tape import Record, Stream
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import TapeSealed, TapeSummary

PAGE_BYTES = 1 << 20
"""Records of one page are about so long together at most; a document of MongoDB ends at 16 MiB."""
READ_PAGES = 16
READS_AT_ONCE = 8
"""Reads of different tapes side by side: what they hold together is in memory."""

encode_records = msgspec.msgpack.Encoder().encode
decode_records = msgspec.msgpack.Decoder(list[Record]).decode

_FORWARDS = [("last_seq", ASCENDING), ("page", ASCENDING)]
_BACKWARDS = [("last_seq", DESCENDING), ("page", DESCENDING)]
"""The order of the pages, as the index has them."""

_Read = tuple[PodKey, int, int]
"""A tape, the record behind which it is read, and about how many bytes."""


class MongoTapeStore:
    """`TapeStore` over the collection ``tapes``."""

    def __init__(self, store: Store) -> None:
        self._pages = store[TAPES]
        self._reads = Together(self._fetch)
        self._open: dict[PodKey, OpenTape] = {}
        self._written: dict[PodKey, tuple[int, int]] = {}
        """Of the tapes that are open, the next page and the last record before it; acknowledged or not, it is there."""

    def open_tape(self, key: PodKey) -> None:
        self._open.setdefault(key, OpenTape())

    async def append(self, key: PodKey, records: Sequence[Record]) -> None:
        tape = self._open.get(key)
        if tape is not None and tape.sealed:
            raise _sealed(key)
        page, last_seq = await self._end(key)
        left = [record for record in records if record.seq > last_seq]
        while left:
            size, count = 0, 0
            while count < len(left) and (count == 0 or size + len(left[count].data) <= PAGE_BYTES):
                size += len(left[count].data)
                count += 1
            there = await self._write(key, page, left[:count], size)
            last_seq = left[count - 1].seq if there is None else there["last_seq"]
            left = [record for record in left if record.seq > last_seq]
            page += 1
            if tape is not None:
                self._written[key] = page, last_seq
        if tape is not None:
            for record in records:
                if record.seq == tape.last_seq + 1:
                    tape.add(record)
            tape.wake()

    async def _end(self, key: PodKey) -> tuple[int, int]:
        """Return the number of the next page, and the last record before it."""
        tape = self._open.get(key)
        if tape is not None:
            # Nobody else writes it: should there be a page for all that, this one meets it.
            return self._written.get(key, (0, 0))
        with transient():
            last = await self._pages.find_one(
                {"tape": _name(key)}, {"page": 1, "last_seq": 1, "sealed": 1}, sort=_BACKWARDS
            )
        if last is None:
            return 0, 0
        if last.get("sealed"):
            raise _sealed(key)
        return last["page"] + 1, last["last_seq"]

    async def _write(self, key: PodKey, page: int, records: Sequence[Record], size: int) -> Row | None:
        """Write a page; return what is there already, if something is.  Raises: TapeSealed."""
        name = _name(key)
        row = {
            "_id": f"{name}/{page}",
            "tape": name,
            "page": page,
            "first_seq": records[0].seq,
            "last_seq": records[-1].seq,
            "count": len(records),
            "size": size,
            "records": encode_records(records),
        }
        try:
            with transient():
                await self._pages.insert_one(row)
        except DuplicateKeyError:
            with transient():
                there = await self._pages.find_one({"_id": row["_id"]}, {"last_seq": 1, "sealed": 1})
            if there is None or there.get("sealed"):
                raise _sealed(key) from None
            return there
        return None

    async def read(self, key: PodKey, after_seq: int, limit_bytes: int) -> Sequence[Record]:
        return await self._reads.get((key, after_seq, limit_bytes)) or ()

    async def _fetch(self, reads: Sequence[_Read]) -> Mapping[_Read, Sequence[Record]]:
        if len(reads) > 1:
            # Most of those who look again find nothing new.
            ends = await self._ends({key for key, _, _ in reads})
            reads = [each for each in reads if ends.get(_name(each[0]), 0) > each[1]]
        found: dict[_Read, Sequence[Record]] = {}
        for start in range(0, len(reads), READS_AT_ONCE):
            some = reads[start : start + READS_AT_ONCE]
            found |= zip(some, await asyncio.gather(*(self._read(*each) for each in some)), strict=True)
        return found

    async def _ends(self, keys: Collection[PodKey]) -> Mapping[str, int]:
        """Return the number of the last record of each tape, by its name."""
        stages: list[Row] = [
            {"$match": {"tape": {"$in": [_name(key) for key in keys]}}},
            {"$sort": {"tape": DESCENDING, "last_seq": DESCENDING}},
            {"$group": {"_id": "$tape", "last_seq": {"$first": "$last_seq"}}},
        ]
        with transient():
            return {row["_id"]: row["last_seq"] async for row in await self._pages.aggregate(stages)}

    async def _read(self, key: PodKey, after_seq: int, limit_bytes: int) -> Sequence[Record]:
        found: list[Record] = []
        size = 0
        async for record in self._records(key, after_seq):
            found.append(record)
            size += len(record.data)
            if size >= limit_bytes:
                break
        return found

    async def _records(self, key: PodKey, after_seq: int = 0, where: Row | None = None) -> AsyncIterator[Record]:
        """Yield the records beyond `after_seq` in order, up to the first hole between pages."""
        while True:
            with transient():
                rows = (
                    await self._pages.find({"tape": _name(key), "last_seq": {"$gt": after_seq}, **(where or {})})
                    .sort(_FORWARDS)
                    .limit(READ_PAGES)
                    .to_list()
                )
            for row in rows:
                if row.get("sealed"):
                    return
                for record in decode_records(row["records"]):
                    if record.seq > after_seq:
                        yield record
                after_seq = row["last_seq"]
            if len(rows) < READ_PAGES:
                return

    async def read_stream(self, key: PodKey, stream: Stream, start: int, end: int) -> AsyncIterator[bytes]:
        offset = 0
        async for record in self._records(key):
            if record.stream is not stream:
                continue
            if offset >= end:
                return
            if offset + len(record.data) > start:
                yield record.data[max(0, start - offset) : end - offset]
            offset += len(record.data)

    async def kept(self, key: PodKey) -> bool:
        with transient():
            return await self._pages.find_one({"tape": _name(key)}, {"_id": 1}) is not None

    async def summary(self, key: PodKey) -> TapeSummary:
        tape = self._open.get(key)
        if tape is not None:
            return tape.summary()
        return await self._stored_summary(key)

    async def seal(self, key: PodKey) -> TapeSummary:
        tape = self._open.get(key)
        if tape is not None:
            tape.sealed = True
            tape.abandon()
        name = _name(key)
        while True:
            with transient():
                last = await self._pages.find_one(
                    {"tape": name}, {"page": 1, "last_seq": 1, "sealed": 1}, sort=_BACKWARDS
                )
            if last is not None and last.get("sealed"):
                return await self._stored_summary(key)
            page, last_seq = (last["page"] + 1, last["last_seq"]) if last else (0, 0)
            try:
                with transient():
                    # Beyond every record, so that whoever looks for more finds it.
                    await self._pages.insert_one(
                        {"_id": f"{name}/{page}", "tape": name, "page": page, "last_seq": last_seq, "sealed": True}
                    )
            except DuplicateKeyError:
                continue
            return await self._stored_summary(key)

    async def _stored_summary(self, key: PodKey) -> TapeSummary:
        digest = TapeDigest()
        async for record in self._records(key):
            digest.add(record)
        return digest.summary()

    async def reached(self, key: PodKey, seq: int) -> bool:
        tape = self._open.get(key)
        if seq == 0 or (tape is not None and tape.last_seq >= seq):
            return True
        if tape is not None and not tape.sealed:
            return await tape.reached(seq)
        last_seq = 0
        fields = {"first_seq": 1, "last_seq": 1, "count": 1}
        with transient():
            pages = self._pages.find({"tape": _name(key), "first_seq": {"$lte": seq}}, fields)
            async for page in pages.sort(_FORWARDS):
                if page["first_seq"] != last_seq + 1:
                    return False
                if page["count"] != page["last_seq"] - last_seq:  # a hole within it
                    break
                last_seq = page["last_seq"]
        if last_seq < seq:
            async for record in self._records(key, last_seq):
                if last_seq >= seq or record.seq != last_seq + 1:
                    break
                last_seq = record.seq
        return last_seq >= seq

    async def close_tape(self, key: PodKey) -> None:
        tape = self._open.pop(key, None)
        self._written.pop(key, None)
        if tape is not None:
            tape.abandon()


def of_execution(execution_id: ExecutionId) -> Row:
    """Return the condition that a tape is of one of its attempts."""
    return {"$gte": f"{execution_id}/", "$lt": f"{execution_id}0"}  # the character behind the slash


def _name(key: PodKey) -> str:
    return f"{key.execution_id}/{key.attempt}"


def _sealed(key: PodKey) -> TapeSealed:
    return TapeSealed(f"attempt {key.attempt} of {key.execution_id} was taken for lost")
