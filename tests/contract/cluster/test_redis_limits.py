"""The shared rate limiter keeps the contract of its port, and says so when Redis does not answer."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis as Client

from runtape.adapters.redis.connection import connect
from runtape.adapters.redis.rate_limiter import PREFIX, RedisRateLimiter
from runtape.ports.clock import Clock
from runtape.ports.errors import Transient
from runtape.ports.limits import Allowance, Decision, RateLimiter
from tests.contract.test_rate_limiter import TEN_A_MINUTE, RateLimiterContract
from tests.rig.choice import our_redis
from tests.rig.redis import Redis

pytestmark = pytest.mark.needs("redis")


@pytest.fixture
async def client(redis_part: Redis) -> AsyncIterator[Client]:
    client = connect(redis_part.url)
    await forget_all(client)
    yield client
    await client.aclose()


async def forget_all(client: Client, prefix: str = PREFIX) -> None:
    """Let Redis forget all keys of that prefix: the buckets, unless another is given."""
    async for key in client.scan_iter(f"{prefix}*"):
        await client.delete(key)


class ByManualClock:
    """A limiter whose script reads the time of a clock that stands still from two keys."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._inner = RedisRateLimiter(client, time="redis.call('MGET', 'now:s', 'now:us')")

    async def take(self, key: str, allowance: Allowance) -> Decision:
        await self._tell()
        return await self._inner.take(key, allowance)

    async def peek(self, key: str, allowance: Allowance) -> Decision:
        await self._tell()
        return await self._inner.peek(key, allowance)

    async def _tell(self) -> None:
        seconds, microseconds = divmod(round(self._clock.monotonic_s() * 1e6), 1_000_000)
        await self._client.mset({"now:s": seconds, "now:us": microseconds})


class TestRedisRateLimiter(RateLimiterContract):
    @pytest.fixture(autouse=True)
    def _place(self, client: Client) -> None:
        self._client = client

    def make(self, clock: Clock) -> RateLimiter:
        return ByManualClock(self._client, clock)


async def test_processes_share_a_bucket_by_the_time_of_the_server(redis_part: Redis, client: Client) -> None:
    other = connect(redis_part.url)
    limiters = [RedisRateLimiter(client), RedisRateLimiter(other)]
    decisions = [await limiters[number % 2].take("a", TEN_A_MINUTE) for number in range(12)]
    assert [decision.allowed for decision in decisions] == [True] * 10 + [False] * 2
    assert 5 < decisions[-1].retry_after_s <= 6
    assert 50_000 < await client.pttl(f"{PREFIX}a") <= 60_000
    await other.aclose()


async def test_a_bucket_that_was_forgotten_is_full(client: Client) -> None:
    limiter = RedisRateLimiter(client)
    for _ in range(11):
        await limiter.take("a", TEN_A_MINUTE)
    await forget_all(client)
    assert (await limiter.take("a", TEN_A_MINUTE)).remaining == 9


@pytest.mark.needs("own")
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_redis_that_does_not_answer_is_told_as_such(tmp_path: Path, how: str) -> None:
    part = our_redis(tmp_path).start()
    client = connect(part.url)
    limiter = RedisRateLimiter(client)
    await limiter.take("a", TEN_A_MINUTE)
    getattr(part, how)()
    with pytest.raises(Transient, match="Redis does not answer"):
        await limiter.take("a", TEN_A_MINUTE)
    part.start() if how == "kill" else part.resume()
    assert (await limiter.take("a", TEN_A_MINUTE)).allowed
    await client.aclose()
    part.stop()
