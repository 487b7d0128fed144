"""One connection to Redis that listens, however many streams are open, and one that tells.

Theory of operation
===================
Channels are partitions.  `SSERedisBus` subscribes to those that its process wants and hands on what comes.  Redis
forgets what nobody listened to, so whoever may have missed something has to be told: `doubted` is called with a
partition whenever its subscription begins, also after a connection was lost, and for what could not be sent.

What is to be told waits in a queue of bounded size and is sent by one task in pipelines, so telling never waits.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from runtape.adapters.redis.connection import transient
from runtape.ports.errors import Transient

log = structlog.get_logger(__name__)

QUEUED = 10_000
"""Messages that may wait to be sent; beyond that the oldest are dropped."""
QUEUED_BYTES = 64 << 20
PIPELINE = 200
RECONNECT_S = 0.2
LISTEN_S = 1.0
SILENT_S = 5.0
"""After how long without any answer a connection is taken for lost; it is asked each `LISTEN_S`."""

Heard = Callable[[int, bytes], None]
Doubted = Callable[[int], None]


class SSERedisBus:
    """Sends and receives bytes by partition; `run` is to run as long as it is used."""

    def __init__(self, redis: Redis, prefix: str = "runtape:live:") -> None:
        self._redis = redis
        self._prefix = prefix
        self._wanted: set[int] = set()
        self._changed = asyncio.Event()
        self._outgoing: deque[tuple[int, bytes]] = deque()
        self._outgoing_bytes = 0
        self._has_outgoing = asyncio.Event()

    def listen(self, partitions: Collection[int]) -> None:
        """Be subscribed to exactly `partitions`, as soon as that can be."""
        self._wanted = set(partitions)
        self._changed.set()

    def tell(self, partition: int, message: bytes) -> None:
        """Send `message` to all who listen; never waits and never fails, and what cannot be sent is dropped."""
        self._outgoing.append((partition, message))
        self._outgoing_bytes += len(message)
        while len(self._outgoing) > QUEUED or self._outgoing_bytes > QUEUED_BYTES:
            self._outgoing_bytes -= len(self._outgoing.popleft()[1])
        self._has_outgoing.set()

    async def run(self, heard: Heard, doubted: Doubted) -> None:
        """Send and receive until cancelled, whatever becomes of Redis meanwhile."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send())
            group.create_task(self._receive(heard, doubted))

    async def _send(self) -> None:
        while True:
            await self._has_outgoing.wait()
            batch = [self._outgoing.popleft() for _ in range(min(len(self._outgoing), PIPELINE))]
            self._outgoing_bytes -= sum(len(message) for _, message in batch)
            if not self._outgoing:
                self._has_outgoing.clear()
            try:
                with transient():
                    async with self._redis.pipeline(transaction=False) as pipeline:
                        for partition, message in batch:
                            pipeline.publish(self._channel(partition), message)
                        await pipeline.execute()
            except Transient as error:
                # Not sent again: a nudge that comes late is worth no more than the look that readers take anyway.
                log.warning("bus.not_sent", messages=len(batch), error=str(error))
                await asyncio.sleep(error.retry_after_s or RECONNECT_S)

    async def _receive(self, heard: Heard, doubted: Doubted) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await self._follow(pubsub, heard, doubted)
            except Transient as error:
                log.warning("bus.not_heard", partitions=len(self._wanted), error=str(error))
                await asyncio.sleep(error.retry_after_s or RECONNECT_S)

    async def _follow(self, pubsub: PubSub, heard: Heard, doubted: Doubted) -> None:
        """Hand on what comes over one connection.  Raises: Transient."""
        with transient():
            await pubsub.connect()
        ended = asyncio.Event()
        subscribing = asyncio.create_task(self._keep_subscribed(pubsub, ended))
        loop = asyncio.get_running_loop()
        heard_at_s = loop.time()
        try:
            while True:
                with transient():
                    message = await pubsub.get_message(timeout=LISTEN_S)
                if subscribing.done():
                    subscribing.result()
                if message is None:
                    if pubsub.subscribed and loop.time() - heard_at_s > SILENT_S:
                        raise Transient(f"nothing heard for {SILENT_S:g} s")
                    if pubsub.subscribed:
                        with transient():
                            await pubsub.ping()
                    continue
                heard_at_s = loop.time()
                match message["type"]:
                    case "message":
                        heard(self._partition(message["channel"]), message["data"])
                    case "subscribe":
                        doubted(self._partition(message["channel"]))
        finally:
            # The client may swallow a cancellation that meets it in a call, so the task is told as well.
            ended.set()
            self._changed.set()
            subscribing.cancel()
            await asyncio.gather(subscribing, return_exceptions=True)

    async def _keep_subscribed(self, pubsub: PubSub, ended: asyncio.Event) -> None:
        present: set[int] = set()
        while not ended.is_set():
            self._changed.clear()
            wanted = set(self._wanted)  # it may be another before this is done
            with transient():
                if more := wanted - present:
                    await pubsub.subscribe(*map(self._channel, more))
                if fewer := present - wanted:
                    await pubsub.unsubscribe(*map(self._channel, fewer))
            present = wanted
            await self._changed.wait()

    def _channel(self, partition: int) -> str:
        return f"{self._prefix}{partition}"

    def _partition(self, channel: bytes) -> int:
        return int(channel.decode().removeprefix(self._prefix))
