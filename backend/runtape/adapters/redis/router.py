"""`LiveFeed` over many processes: readers by partition, and one subscription per partition and process.

Theory of operation
===================
The readers of this process are those of a feed inside it, which is given: what is published here reaches them
directly.  It is told on the bus as well, for readers elsewhere, in the partition of what is watched; what comes from
there is published to the readers here, except what this process sent itself.

A partition is listened to while it has a reader here, so the number of connections to Redis does not grow with
readers.  A subscription begins some time after `subscribe` has returned, and connections get lost: whenever one begins,
all readers of the partition are told that they may have missed something, and look at the document and the tape.
"""

import hashlib
from collections import Counter
from typing import Protocol

import structlog

from runtape.adapters.redis.bus import SSERedisBus
from runtape.adapters.redis.nudges import Unreadable, decode, encode, nudge_of
from runtape.domain.ids import ExecutionId
from runtape.ports.live import LiveFeed, Nudge, Subscription, Watched

log = structlog.get_logger(__name__)

PARTITIONS = 64


def partition_of(watched_id: Watched, partitions: int = PARTITIONS) -> int:
    """Return the partition of `watched_id`, the same in every process."""
    return int.from_bytes(hashlib.blake2b(watched_id.encode(), digest_size=8).digest()) % partitions


class LocalFeed(LiveFeed, Protocol):
    """A feed for the readers of one process."""

    def doubt(self, watched_id: Watched) -> None:
        """Tell the readers that they may have missed something."""
        ...


class PartitionedSSERouter:
    """`LiveFeed` for the readers of all processes on one bus; `run` is to run as long as it is used."""

    def __init__(self, local: LocalFeed, bus: SSERedisBus, process: str) -> None:
        self._local = local
        self._bus = bus
        self._process = process
        self._readers: dict[int, Counter[Watched]] = {}

    async def run(self) -> None:
        """Carry nudges between this process and the others; runs until cancelled."""
        await self._bus.run(self._heard, self._doubted)

    def publish(self, watched_id: Watched, nudge: Nudge) -> None:
        self._local.publish(watched_id, nudge)
        self._bus.tell(partition_of(watched_id), encode(self._process, watched_id, nudge))

    def watched(self, watched_id: Watched) -> bool:
        return True  # nobody here knows who reads elsewhere

    def subscribe(self, watched_id: Watched) -> "_Shared":
        partition = partition_of(watched_id)
        readers = self._readers.get(partition)
        if readers is None:
            readers = self._readers[partition] = Counter()
            self._bus.listen(self._readers)
        readers[watched_id] += 1
        return _Shared(self, self._local.subscribe(watched_id), watched_id)

    def forget(self, watched_id: Watched) -> None:
        """Take note that a reader is gone."""
        partition = partition_of(watched_id)
        readers = self._readers[partition]
        readers[watched_id] -= 1
        if not readers[watched_id]:
            del readers[watched_id]
        if not readers:
            del self._readers[partition]
            self._bus.listen(self._readers)

    def close(self) -> None:
        self._local.close()

    def _heard(self, partition: int, message: bytes) -> None:
        try:
            envelope = decode(message)
            watched_id = ExecutionId(envelope.watched_id)
            if envelope.sender == self._process or not self._local.watched(watched_id):
                return
            self._local.publish(watched_id, nudge_of(envelope))
        except Unreadable as error:
            # Perhaps of a later version: its readers look for themselves.
            log.warning("nudge.unreadable", partition=partition, error=str(error))
            self._doubted(partition)

    def _doubted(self, partition: int) -> None:
        for watched_id in self._readers.get(partition, ()):
            self._local.doubt(watched_id)


class _Shared:
    """A reader here, which keeps its partition listened to until it is closed."""

    def __init__(self, router: PartitionedSSERouter, inner: Subscription, watched_id: Watched) -> None:
        self._router = router
        self._inner = inner
        self._watched_id = watched_id
        self._open = True

    async def next(self, timeout_s: float) -> Nudge | None:
        return await self._inner.next(timeout_s)

    def pending(self) -> Nudge | None:
        return self._inner.pending()

    def close(self) -> None:
        self._inner.close()
        if self._open:
            self._open = False
            self._router.forget(self._watched_id)
