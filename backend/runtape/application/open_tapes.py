"""What a process knows of the tapes that it appends to, without asking their store."""

import asyncio
import hashlib

from runtape.domain.tape import Record, Stream
from runtape.ports.stores import HEAD_BYTES, TapeSummary

STREAMS = (Stream.STDOUT, Stream.STDERR)
_NUMBER = {stream: number for number, stream in enumerate(STREAMS)}


class TapeDigest:
    """The running summary of one tape."""

    def __init__(self) -> None:
        self.last_seq = 0
        self.truncated = False
        self._sizes = [0, 0]
        self._hashes = [hashlib.sha256(), hashlib.sha256()]
        self._heads = [bytearray(), bytearray()]

    def add(self, record: Record) -> None:
        """Count the next record."""
        number = _NUMBER[record.stream]
        self.last_seq = record.seq
        self.truncated |= record.truncated
        self._sizes[number] += len(record.data)
        self._hashes[number].update(record.data)
        head = self._heads[number]
        if len(head) < HEAD_BYTES:
            head += record.data[: HEAD_BYTES - len(head)]

    def summary(self) -> TapeSummary:
        """Return what was counted so far."""
        return TapeSummary(
            last_seq=self.last_seq,
            stdout_bytes=self._sizes[0],
            stderr_bytes=self._sizes[1],
            stdout_sha256=self._hashes[0].hexdigest(),
            stderr_sha256=self._hashes[1].hexdigest(),
            stdout_head=bytes(self._heads[0]),
            stderr_head=bytes(self._heads[1]),
            truncated=self.truncated,
        )


class OpenTape(TapeDigest):
    """A tape that this process is appending to; its summary covers what is committed."""

    def __init__(self) -> None:
        super().__init__()
        self.waiters: list[tuple[int, asyncio.Future[bool]]] = []
        self.in_doubt = 0
        """Appends that were not told to be committed: under way, failed or left alone by their caller."""
        self.sealed = False

    async def reached(self, seq: int) -> bool:
        """Return True once every record up to `seq` is committed, False once nobody will append any more."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiters.append((seq, future))
        return await future

    def wake(self) -> None:
        """Tell those whose record has been reached."""
        if not self.waiters:
            return
        for seq, future in self.waiters:
            if seq <= self.last_seq and not future.done():
                future.set_result(True)
        self.waiters = [waiter for waiter in self.waiters if not waiter[1].done()]

    def abandon(self) -> None:
        """Tell all who wait that nobody will append any more."""
        for _, future in self.waiters:
            if not future.done():
                future.set_result(False)
