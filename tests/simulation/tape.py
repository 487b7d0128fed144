"""A tape and blobs on a server that all processes share."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from runtape.domain.tape import Record, Stream
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import HEAD_BYTES, TapeSealed, TapeSummary
from tests.simulation.network import Remote
from tests.simulation.world import Life, World

WRITER_LOST_S = 6.0
"""When a process that died is no longer taken for the writer of its tapes."""


class TapeServer:
    """Records by attempt, and who is writing them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._records: dict[PodKey, dict[int, Record]] = {}
        self._writers: dict[PodKey, list[Life]] = {}
        self._waiting: dict[PodKey, list[tuple[int, asyncio.Future[bool]]]] = {}
        self._sealed: set[PodKey] = set()

    def open(self, key: PodKey, life: Life) -> None:
        """Take note that `life` is going to write."""
        self._writers.setdefault(key, []).append(life)

    def close(self, key: PodKey, life: Life) -> None:
        """Take note that `life` writes no more."""
        writers = self._writers.get(key, [])
        if life in writers:
            writers.remove(life)
            self._settle(key)

    def lost(self, life: Life) -> None:
        """Take note that a process has died."""
        for key, writers in list(self._writers.items()):
            if life in writers:
                writers.remove(life)
                self._settle(key)

    def append(self, key: PodKey, records: Sequence[Record]) -> None:
        held = self._records.setdefault(key, {})
        if key in self._sealed and any(record.seq not in held for record in records):
            raise TapeSealed(str(key))
        for record in records:
            held.setdefault(record.seq, record)
        self._settle(key)

    def seal(self, key: PodKey) -> TapeSummary:
        self._sealed.add(key)
        self._settle(key)
        return self.summary(key)

    def whole(self, key: PodKey) -> list[Record]:
        """Return the records up to the first that is missing."""
        held = self._records.get(key, {})
        found: list[Record] = []
        while (record := held.get(len(found) + 1)) is not None:
            found.append(record)
        return found

    def read(self, key: PodKey, after_seq: int, limit_bytes: int) -> Sequence[Record]:
        return self.whole(key)[after_seq : after_seq + 3]

    def bytes_of(self, key: PodKey, stream: Stream) -> bytes:
        """Return what one stream holds."""
        return b"".join(record.data for record in self.whole(key) if record.stream is stream)

    def summary(self, key: PodKey) -> TapeSummary:
        records = self.whole(key)
        out, err = (self.bytes_of(key, stream) for stream in Stream)
        return TapeSummary(
            last_seq=len(records),
            stdout_bytes=len(out),
            stderr_bytes=len(err),
            stdout_sha256=hashlib.sha256(out).hexdigest(),
            stderr_sha256=hashlib.sha256(err).hexdigest(),
            stdout_head=out[:HEAD_BYTES],
            stderr_head=err[:HEAD_BYTES],
            truncated=any(record.truncated for record in records),
        )

    def kept(self, key: PodKey) -> bool:
        return bool(self._records.get(key))

    def reached(self, key: PodKey, seq: int) -> "bool | asyncio.Future[bool]":
        if len(self.whole(key)) >= seq:
            return True
        if not self._writers.get(key) or key in self._sealed:
            return False
        future: asyncio.Future[bool] = self._world.loop.create_future()
        self._waiting.setdefault(key, []).append((seq, future))
        return future

    def _settle(self, key: PodKey) -> None:
        if key not in self._waiting:
            return
        last_seq, writing = len(self.whole(key)), bool(self._writers.get(key)) and key not in self._sealed
        for seq, future in self._waiting[key]:
            if not future.done() and (last_seq >= seq or not writing):
                future.set_result(last_seq >= seq)


class RemoteTape(Remote):
    """`TapeStore` over a `TapeServer`."""

    def open_tape(self, key: PodKey) -> None:
        """Say at once that this process writes."""
        self._server.open(key, self._life)

    async def close_tape(self, key: PodKey) -> None:
        """Say that this process writes no more."""
        await self._call("tape.close", self._server.close, (key, self._life), {}, True)

    async def read_stream(self, key: PodKey, stream: Stream, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes in one piece."""
        yield (await self._call("tape.read_stream", self._server.bytes_of, (key, stream), {}))[start:end]


class BlobServer:
    """Blobs by digest."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return sha256

    def get(self, sha256: str) -> bytes | None:
        return self.blobs.get(sha256)

    def ready(self) -> None:
        return

    def sweep(self, created_before: datetime) -> int:
        return 0
