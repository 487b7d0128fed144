"""The output of one run on its way from the pipes to its reader: merged, numbered, bounded.

Bytes wait in open records until a reader takes them.  What arrives on the same stream as the newest open record
joins it, up to `RECORD_BYTES`, so a program that prints byte by byte costs its reader few records, and a fast reader
still sees every piece at once.  A piece of the other stream begins a new record: the order in which the two streams
were printed is kept as far as two pipes can tell it.  Numbers are given when records are taken, times when their
first byte was read.
"""

import asyncio
from typing import Final

from runtape.domain.tape import RECORD_BYTES, Record, Stream

HIGH_WATER_BYTES: Final = 2 << 20
"""Waiting bytes above which the pipes are left full, so that the program waits."""


class _OpenRecord:
    """Pieces of one stream that will be one record."""

    __slots__ = ("pieces", "size_bytes", "stream", "t_ns")

    def __init__(self, stream: Stream, t_ns: int, piece: bytes) -> None:
        self.stream = stream
        self.t_ns = t_ns
        self.pieces = [piece]
        self.size_bytes = len(piece)


class Output:
    """What one run has printed: records taken so far, and bytes that wait to be."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._records: list[Record] = []
        self._open: list[_OpenRecord] = []
        self._waiting_bytes = 0
        self._truncated: tuple[Stream, int] | None = None
        self._closed = False
        self._wake: asyncio.Future[None] | None = None
        self.total_bytes = 0

    @property
    def above_high_water(self) -> bool:
        return self._waiting_bytes > HIGH_WATER_BYTES

    @property
    def truncated(self) -> bool:
        """Whether more was printed than the limit allows."""
        return self._truncated is not None

    @property
    def last_seq(self) -> int:
        """``seq`` of the last record; known once the output is closed."""
        return len(self._records)

    def append(self, stream: Stream, t_ns: int, piece: bytes) -> bool:
        """Add a non-empty piece of at most `RECORD_BYTES`; false when it crossed the limit and was cut there."""
        if self._truncated is not None:
            return False
        room_bytes = self._limit_bytes - self.total_bytes
        if len(piece) > room_bytes:
            self._truncated = (stream, t_ns)
            piece = piece[:room_bytes]
        if piece:
            self._add(stream, t_ns, piece)
        self._wake_reader()
        return self._truncated is None

    def _add(self, stream: Stream, t_ns: int, piece: bytes) -> None:
        self.total_bytes += len(piece)
        self._waiting_bytes += len(piece)
        last = self._open[-1] if self._open else None
        if last is not None and last.stream is stream and last.size_bytes + len(piece) <= RECORD_BYTES:
            last.pieces.append(piece)
            last.size_bytes += len(piece)
        else:
            self._open.append(_OpenRecord(stream, t_ns, piece))

    def close(self) -> None:
        """Say that nothing will follow; what waits can still be taken."""
        self._number_open_records()
        if self._truncated is not None and not self._closed:
            stream, t_ns = self._truncated
            self._records.append(Record(len(self._records) + 1, stream, t_ns, b"", truncated=True))
        self._closed = True
        self._wake_reader()

    def take(self, after_seq: int) -> tuple[Record, ...]:
        """Return every record beyond `after_seq`, among them what waited; empty when there is none now."""
        self._number_open_records()
        self._waiting_bytes = 0
        return tuple(self._records[after_seq:])

    def exhausted(self, after_seq: int) -> bool:
        """Return whether nothing lies, or will ever lie, beyond `after_seq`."""
        return self._closed and after_seq >= len(self._records)

    def _number_open_records(self) -> None:
        for record in self._open:
            data = b"".join(record.pieces)
            self._records.append(Record(len(self._records) + 1, record.stream, record.t_ns, data))
        self._open.clear()

    async def wait(self) -> None:
        """Return when something was added or the output was closed since the last `take`."""
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def _wake_reader(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
