"""The tape and the blobs in SQLite."""

import asyncio
import hashlib
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from runtape.adapters.embedded.database import Database
from runtape.application.open_tapes import STREAMS, OpenTape, TapeDigest
from runtape.domain.tape import Record, Stream
from runtape.ports.clock import Clock
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import TapeSealed, TapeSummary

_NUMBER = {stream: number for number, stream in enumerate(STREAMS)}
PAGE_BYTES = 1 << 20
_ANY_SEQ = (1 << 63) - 1
HASHED_AT_ONCE_BYTES = 256 << 10
"""Larger blobs are hashed in a thread: 16 MiB would hold up everybody else for tens of ms."""
CLOSED = 32
"""Summaries of closed tapes that are kept until they are asked for, which a run's result does at once; only of
those whose every append was told to be committed."""


class SqliteTapeStore:
    """`TapeStore` over the `tape` table.  Appends survive the process and ride on the next durable commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open: dict[PodKey, OpenTape] = {}
        self._closed: OrderedDict[PodKey, TapeSummary] = OrderedDict()

    def open_tape(self, key: PodKey) -> None:
        self._open.setdefault(key, OpenTape())

    async def append(self, key: PodKey, records: Sequence[Record]) -> None:
        rows = [
            (
                key.execution_id,
                key.attempt,
                record.seq,
                _NUMBER[record.stream],
                record.truncated,
                record.t_ns,
                len(record.data),
                record.data,
            )
            for record in records
        ]
        tape = self._open.get(key)
        if tape is None:
            self._closed.pop(key, None)
        elif tape.sealed:
            raise TapeSealed(f"attempt {key.attempt} of {key.execution_id} was taken for lost")
        else:
            tape.in_doubt += 1
        await self._database.write(
            lambda c: c.executemany("insert or ignore into tape values (?,?,?,?,?,?,?,?)", rows).rowcount
        )
        if tape is None:
            return
        tape.in_doubt -= 1
        for record in records:
            if record.seq == tape.last_seq + 1:
                tape.add(record)
        tape.wake()

    async def read(self, key: PodKey, after_seq: int, limit_bytes: int) -> Sequence[Record]:
        tape = self._open.get(key)
        if tape is None:
            return await self._database.read(lambda c: _read_page(c, key, after_seq, limit_bytes))
        # What is committed and not yet known to be is nobody's: else a reader would be ahead of the summary.
        last_seq = tape.last_seq
        if after_seq >= last_seq:
            return ()
        return await self._database.read(lambda c: _read_page(c, key, after_seq, limit_bytes, last_seq))

    async def read_stream(self, key: PodKey, stream: Stream, start: int, end: int) -> AsyncIterator[bytes]:
        after_seq, offset = 0, 0
        while offset < end:
            page = await self._database.read(
                lambda c, since=after_seq, passed=offset: _read_stream_page(c, key, stream, since, passed, start, end)
            )
            if not page:
                return
            for seq, size, data in page:
                if data is not None:
                    yield data[max(0, start - offset) : end - offset]
                after_seq, offset = seq, offset + size

    async def kept(self, key: PodKey) -> bool:
        return await self._database.read(
            lambda c: (
                c.execute(
                    "select 1 from tape where execution_id = ? and attempt = ? limit 1", (key.execution_id, key.attempt)
                ).fetchone()
                is not None
            )
        )

    async def summary(self, key: PodKey) -> TapeSummary:
        tape = self._open.get(key)
        if tape is not None:
            return tape.summary()
        if (known := self._closed.pop(key, None)) is not None:
            return known

        def work(c: sqlite3.Connection) -> TapeSummary:
            digest = TapeDigest()
            while page := _read_page(c, key, digest.last_seq, PAGE_BYTES):
                for record in page:
                    digest.add(record)
            return digest.summary()

        return await self._database.read(work)

    async def seal(self, key: PodKey) -> TapeSummary:
        tape = self._open.get(key)
        if tape is not None and not tape.sealed:
            tape.sealed = True
            tape.abandon()
            # Writes are carried out in order: what was to be appended before is there, or never will be.
            await self._database.write(lambda c: c.execute("select 1").fetchone())
        return await self.summary(key)

    async def reached(self, key: PodKey, seq: int) -> bool:
        tape = self._open.get(key)
        if seq == 0 or (tape is not None and tape.last_seq >= seq):
            return True
        if tape is not None and not tape.sealed:
            return await tape.reached(seq)
        known = self._closed.get(key)
        if known is not None and known.last_seq >= seq:
            return True
        row = await self._database.read(
            lambda c: c.execute(
                "select count(*) from tape where execution_id = ? and attempt = ? and seq between 1 and ?",
                (key.execution_id, key.attempt, seq),
            ).fetchone()
        )
        return row[0] == seq

    async def close_tape(self, key: PodKey) -> None:
        tape = self._open.pop(key, None)
        if tape is not None:
            tape.abandon()
            if not tape.in_doubt:
                self._closed[key] = tape.summary()
            if len(self._closed) > CLOSED:
                self._closed.popitem(last=False)


def _read_page(
    c: sqlite3.Connection, key: PodKey, after_seq: int, limit_bytes: int, last_seq: int = _ANY_SEQ
) -> list[Record]:
    records: list[Record] = []
    size = 0
    for seq, stream, truncated, t_ns, data in c.execute(
        "select seq, stream, truncated, t_ns, data from tape"
        " where execution_id = ? and attempt = ? and seq > ? and seq <= ? order by seq",
        (key.execution_id, key.attempt, after_seq, last_seq),
    ):
        records.append(Record(seq, STREAMS[stream], t_ns, data, bool(truncated)))
        size += len(data)
        if size >= limit_bytes:
            break
    return records


def _read_stream_page(
    c: sqlite3.Connection, key: PodKey, stream: Stream, after_seq: int, offset: int, start: int, end: int
) -> list[tuple[int, int, bytes | None]]:
    """Return (seq, size, data) of the stream's records; data is None where they lie before `start`."""
    page: list[tuple[int, int, bytes | None]] = []
    taken = 0
    for seq, size in c.execute(
        "select seq, size from tape where execution_id = ? and attempt = ? and seq > ? and stream = ? order by seq",
        (key.execution_id, key.attempt, after_seq, _NUMBER[stream]),
    ):
        data: bytes | None = None
        if offset + size > start:
            data = c.execute(
                "select data from tape where execution_id = ? and attempt = ? and seq = ?",
                (key.execution_id, key.attempt, seq),
            ).fetchone()[0]
            taken += size
        page.append((seq, size, data))
        offset += size
        if offset >= end or taken >= PAGE_BYTES:
            break
    return page


def _digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class SqliteBlobStore:
    """`BlobStore` over the `blob` table."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def put(self, data: bytes) -> str:
        large = len(data) > HASHED_AT_ONCE_BYTES
        sha256 = await asyncio.to_thread(_digest_of, data) if large else _digest_of(data)
        now = self._clock.now().timestamp()
        # The time is renewed, so that a sweep cannot take a blob between this and the document that names it.
        upsert = "insert into blob values (?,?,?) on conflict (sha256) do update set created_at = excluded.created_at"
        await self._database.write(lambda c: c.execute(upsert, (sha256, now, data)).rowcount)
        return sha256

    async def get(self, sha256: str) -> bytes | None:
        row = await self._database.read(
            lambda c: c.execute("select data from blob where sha256 = ?", (sha256,)).fetchone()
        )
        return row[0] if row else None

    async def ready(self) -> None:
        await self._database.read(lambda c: c.execute("select 1").fetchone())

    async def sweep(self, created_before: datetime) -> int:
        cutoff = created_before.timestamp()
        return await self._database.write(
            lambda c: (
                c.execute(
                    "delete from blob where created_at < ?"
                    " and not exists (select 1 from execution where blob_sha256 = blob.sha256)"
                    " and not exists (select 1 from artifact where artifact.sha256 = blob.sha256)",
                    (cutoff,),
                ).rowcount
            )
        )
