"""Which offset of a partition may be committed, when messages are done in any order."""

import asyncio
from collections import deque


class Offsets:
    """The deliveries of one partition, in order, and which of them are done.

    ``committable`` is the offset of the oldest that is not, or the one behind the newest: all before it are done.
    """

    def __init__(self) -> None:
        self._outstanding: deque[int] = deque()
        self._done: set[int] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.committable: int | None = None

    def delivered(self, offset: int) -> None:
        """Take note of a delivery, in the order of offsets."""
        self._outstanding.append(offset)
        self._empty.clear()

    def done(self, offset: int) -> None:
        """Take note that a delivery is done; twice is once."""
        self._done.add(offset)
        while self._outstanding and self._outstanding[0] in self._done:
            first = self._outstanding.popleft()
            self._done.discard(first)
            self.committable = first + 1
        if not self._outstanding:
            self._empty.set()

    async def empty(self) -> None:
        """Return once all are done."""
        await self._empty.wait()

    @property
    def oldest(self) -> int | None:
        """The oldest that is not done; None when all are."""
        return self._outstanding[0] if self._outstanding else None

    def __len__(self) -> int:
        return len(self._outstanding)
