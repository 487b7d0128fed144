"""What the workers of a cluster say that they can run, in MongoDB, and pods for a process that runs none."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

import msgspec
from pymongo import DESCENDING

from runtape.adapters.mongo.connection import Store, transient
from runtape.adapters.mongo.indexes import WORKERS
from runtape.domain.tape import Record
from runtape.domain.times import microseconds
from runtape.ports.clock import Clock
from runtape.ports.errors import Permanent, Transient
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodKey, PodSpec, Runtime

ANNOUNCE_INTERVAL_S = 10.0
FORGOTTEN_AFTER = timedelta(seconds=45)
_KNOWN = 1_000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[Runtime, ...]).decode


class AnnouncedRuntimes:
    """The collection ``workers``: a document for each, renewed while it lives."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._rows = store[WORKERS]
        self._clock = clock

    async def announce(self, owner: str, runtimes: Sequence[Runtime]) -> None:
        """Say that the worker `owner` lives and can run `runtimes`.  Raises: Transient."""
        row = {"seen_us": microseconds(self._clock.now()), "runtimes": _encode(runtimes)}
        with transient():
            await self._rows.replace_one({"_id": owner}, row, upsert=True)

    async def withdraw(self, owner: str) -> None:
        """Say that the worker takes nothing any more.  Raises: Transient."""
        with transient():
            await self._rows.update_one({"_id": owner}, {"$set": {"seen_us": 0}})

    async def common(self) -> Sequence[Runtime]:
        """Return what every worker that lives can run: nobody chooses which of them it will be.

        While none lives it is what the last one could: what is accepted waits.  Raises: Transient.
        """
        with transient():
            rows = await self._rows.find().sort("seen_us", DESCENDING).limit(_KNOWN).to_list()
        if not rows:
            return ()
        since_us = self._since_us()
        offers = [_decode(row["runtimes"]) for row in rows if row["seen_us"] >= since_us or row is rows[0]]
        everywhere = set(offers[0]).intersection(*offers[1:])
        return [runtime for runtime in offers[0] if runtime in everywhere]

    async def alive(self) -> int:
        """Return how many workers live.  Raises: Transient."""
        with transient():
            return await self._rows.count_documents({"seen_us": {"$gte": self._since_us()}})

    async def forget(self, older_than: timedelta) -> None:
        """Remove those that were not seen for that long, but for the last one.  Raises: Transient."""
        with transient():
            last = await self._rows.find_one({}, {"_id": 1}, sort=[("seen_us", DESCENDING)])
            if last is not None:
                before_us = microseconds(self._clock.now() - older_than)
                await self._rows.delete_many({"seen_us": {"$lt": before_us}, "_id": {"$ne": last["_id"]}})

    def _since_us(self) -> int:
        return microseconds(self._clock.now() - FORGOTTEN_AFTER)


class NoPods:
    """`PodRuntime` of a process that runs no program: it knows what the workers can run."""

    def __init__(self, announced: AnnouncedRuntimes) -> None:
        self._announced = announced

    async def runtimes(self) -> Sequence[Runtime]:
        return await self._announced.common()

    async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
        raise Permanent("this process runs no programs")

    async def records(self, key: PodKey, after_seq: int = 0) -> AsyncIterator[tuple[Record, ...]]:
        for none in ():
            yield none

    async def artifacts(self, key: PodKey) -> AsyncIterator[PodArtifact]:
        for none in ():
            yield none

    async def extend(self, key: PodKey, lease_expires_at: datetime) -> None: ...

    async def kill(self, key: PodKey) -> None: ...

    async def remove(self, key: PodKey) -> None: ...

    async def list(self) -> Sequence[PodKey]:
        return ()

    async def watch(self) -> AsyncIterator[PodEnded]:
        await asyncio.Event().wait()
        for none in ():
            yield none

    async def ready(self) -> None:
        if not await self._announced.alive():
            raise Transient("no worker has said within 45 s that it can run anything")

    async def close(self) -> None: ...
