"""Nudges between processes: what one publishes the readers of another hear, and whoever may have missed some looks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from runtape.adapters.embedded.live_feed import InProcessLiveFeed
from runtape.adapters.redis.bus import SSERedisBus
from runtape.adapters.redis.connection import connect
from runtape.adapters.redis.router import PartitionedSSERouter, partition_of
from runtape.domain.ids import ExecutionId
from runtape.ports.live import LiveFeed, OutputNudge, Subscription, Watched
from tests.builders import EXECUTION
from tests.contract.suites.live_feed import FAR_S, LiveFeedContract, output
from tests.rig.choice import our_redis
from tests.rig.redis import Redis

pytestmark = pytest.mark.needs("redis")


@asynccontextmanager
async def process(part: Redis, name: str) -> AsyncIterator[PartitionedSSERouter]:
    """A router as one process has it."""
    client = connect(part.url)
    router = PartitionedSSERouter(InProcessLiveFeed(), SSERedisBus(client, channels(part)), name)
    task = asyncio.create_task(router.run())
    try:
        yield router
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.aclose()


def channels(part: Redis) -> str:
    """Return what the names of channels begin with."""
    return f"{part.scope}runtape:live:"


async def hears(feed: LiveFeed, watched_id: ExecutionId, reader: Subscription) -> bool:
    """Whether the reader hears of what is published, after whatever it is told to look for."""
    for seq in range(1, 41):
        feed.publish(watched_id, output(seq))
        if await reader.next(0.5) is not None:
            return True
    return False


class Across:
    """A feed with its publishers in one process and its readers in another."""

    def __init__(self, publisher: LiveFeed, readers: LiveFeed) -> None:
        self.publish = publisher.publish
        self.watched = readers.watched
        self.subscribe = readers.subscribe
        self._both = (publisher, readers)

    def close(self) -> None:
        for feed in self._both:
            feed.close()


class TestAcrossProcesses(LiveFeedContract):
    @pytest.fixture(autouse=True)
    async def _place(self, redis_part: Redis) -> AsyncIterator[None]:
        self._listened: set[int] = set()
        async with process(redis_part, "a") as self._a, process(redis_part, "b") as self._b:
            yield

    def make(self) -> LiveFeed:
        return Across(self._a, self._b)

    async def subscribe(self, feed: LiveFeed, watched_id: Watched) -> Subscription:
        reader = feed.subscribe(watched_id)
        if partition_of(watched_id) in self._listened:
            return reader
        self._listened.add(partition_of(watched_id))
        probe = OutputNudge(0, 0, 0, ())
        async with asyncio.timeout(FAR_S):  # until it hears; what is told while nobody listens is lost
            while True:
                feed.publish(watched_id, probe)
                if await reader.next(0.02) == probe:
                    break
        while await reader.next(0.05) is not None:
            pass
        return reader

    async def delivered(self, feed: LiveFeed) -> None:
        marker = await self.subscribe(feed, ExecutionId("marker"))
        assert await hears(feed, ExecutionId("marker"), marker)

    async def test_it_knows_who_watches(self) -> None:
        assert self._a.watched(EXECUTION), "somebody may watch elsewhere"


@pytest.mark.needs("own")
async def test_a_process_hears_itself_once_and_without_redis(tmp_path: Path) -> None:
    part = our_redis(tmp_path).start()
    async with process(part, "a") as router:
        reader = router.subscribe(EXECUTION)
        assert await asyncio.wait_for(reader.next(FAR_S), 10) is None, "its subscription has begun"
        router.publish(EXECUTION, output(1))
        assert await reader.next(FAR_S) == output(1)
        assert await reader.next(0.3) is None
        part.kill()
        router.publish(EXECUTION, output(2))
        assert await reader.next(FAR_S) == output(2)
        reader.close()
    part.stop()


@pytest.mark.needs("own")
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_readers_look_after_redis_was_away_and_hear_again(tmp_path: Path, how: str) -> None:
    part = our_redis(tmp_path).start()
    async with process(part, "a") as publisher, process(part, "b") as other:
        readers = [other.subscribe(ExecutionId(f"e{number}")) for number in range(20)]
        for reader in readers:
            assert await asyncio.wait_for(reader.next(FAR_S), 10) is None
        getattr(part, how)()
        publisher.publish(ExecutionId("e0"), output(1))  # nobody waits for it
        await asyncio.sleep(7 if how == "pause" else 0.1)
        part.start() if how == "kill" else part.resume()
        for reader in readers:
            while await asyncio.wait_for(reader.next(FAR_S), 20) is not None:
                pass  # told to look
        assert await hears(publisher, ExecutionId("e7"), readers[7])
    part.stop()


async def test_readers_that_come_while_others_are_being_subscribed_hear(redis_part: Redis) -> None:
    async with process(redis_part, "a") as publisher, process(redis_part, "b") as other:
        readers: list[tuple[ExecutionId, Subscription]] = []
        for number in range(200):
            execution_id = ExecutionId(f"e{number}")
            readers.append((execution_id, other.subscribe(execution_id)))
            await asyncio.sleep(0)
        for execution_id, reader in readers:
            assert await hears(publisher, execution_id, reader)
            reader.close()


@pytest.mark.needs("own")
async def test_connections_do_not_grow_with_readers(redis_part: Redis) -> None:
    client = connect(redis_part.url)
    async with process(redis_part, "a") as router:
        before = len(await client.client_list())
        readers = [router.subscribe(ExecutionId(f"e{number}")) for number in range(1000)]
        assert await asyncio.wait_for(readers[-1].next(FAR_S), 10) is None
        assert len(await client.client_list()) <= before + 1
        listened = await client.pubsub_channels(f"{channels(redis_part)}*")
        assert len(listened) == len({partition_of(ExecutionId(f"e{number}")) for number in range(1000)})
        for reader in readers:
            reader.close()
        async with asyncio.timeout(10):
            while await client.pubsub_channels(f"{channels(redis_part)}*"):  # noqa: ASYNC110  # Redis tells nobody of that
                await asyncio.sleep(0.01)
    await client.aclose()


async def test_what_cannot_be_read_is_looked_for(redis_part: Redis) -> None:
    client = connect(redis_part.url)
    async with process(redis_part, "a") as router:
        reader = router.subscribe(EXECUTION)
        assert await asyncio.wait_for(reader.next(FAR_S), 10) is None
        for message in (b"", b"\xff", b"[1]", msgspec.msgpack.encode(["z", EXECUTION, "output", "?"])):
            await client.publish(f"{channels(redis_part)}{partition_of(EXECUTION)}", message)
            assert await asyncio.wait_for(reader.next(FAR_S), 10) is None
        reader.close()
    await client.aclose()
