"""Keys that Redis remembers keep the contract of their port, for an hour, and are nobody's business there."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis as Client

from runtape.adapters.redis.connection import connect
from runtape.adapters.redis.seen_keys import KEPT_S, PREFIX, RedisSeenKeys
from runtape.domain.ids import UserId
from runtape.ports.errors import Unavailable
from runtape.ports.idempotency import SeenKeys
from tests.contract.cluster.test_redis_limits import forget_all
from tests.contract.test_seen_keys import ALICE, SeenKeysContract
from tests.rig.part import free_port
from tests.rig.redis import Redis

pytestmark = pytest.mark.needs("redis")


@pytest.fixture
async def client(redis_part: Redis) -> AsyncIterator[Client]:
    client = connect(redis_part.url)
    await forget_all(client, PREFIX)
    yield client
    await client.aclose()


class TestRedisSeenKeys(SeenKeysContract):
    @pytest.fixture(autouse=True)
    def _place(self, client: Client) -> None:
        self._client = client

    def make(self) -> SeenKeys:
        return RedisSeenKeys(self._client)


async def test_processes_share_what_they_have_seen(redis_part: Redis, client: Client) -> None:
    other = connect(redis_part.url)
    assert await RedisSeenKeys(client).add(ALICE, "k")
    assert not await RedisSeenKeys(other).add(ALICE, "k")
    await other.aclose()


async def test_what_was_forgotten_is_new(client: Client) -> None:
    keys = RedisSeenKeys(client)
    await keys.add(ALICE, "k")
    await forget_all(client, PREFIX)
    assert await keys.add(ALICE, "k")


async def test_a_mark_goes_after_an_hour_and_says_nothing_of_the_key(client: Client) -> None:
    keys = RedisSeenKeys(client)
    for _ in range(2):  # who comes again does not keep it longer
        await keys.add(UserId("a-user"), "order 4711 of somebody")
    [mark] = [key async for key in client.scan_iter(f"{PREFIX}*")]
    assert len(mark) == len(PREFIX) + 22
    assert 0 < await client.ttl(mark) <= KEPT_S == 3600
    assert await client.get(mark) == b""
    assert 0 < (await client.memory_usage(mark) or 0) <= 128


async def test_a_redis_that_is_gone_is_told_as_such() -> None:
    client = connect(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable):
        await RedisSeenKeys(client).add(ALICE, "k")
    await client.aclose()
