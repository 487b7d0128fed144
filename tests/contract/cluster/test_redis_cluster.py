"""A node of a Redis Cluster serves what the adapters keep in Redis: no call of theirs needs keys of two slots.

The node has the slots of a few keys, and the tests use no others; whatever else a script touches is refused.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any, cast

import pytest
import redis as blocking
from redis.asyncio import Redis as Client
from redis.exceptions import RedisError

from runtape.adapters.embedded.clock import Uuid7Ids
from runtape.adapters.redis import admission as redis_admission
from runtape.adapters.redis.admission import RedisAdmissionQueue, script_text
from runtape.adapters.redis.connection import connect
from runtape.adapters.redis.rate_limiter import PREFIX as LIMIT_PREFIX
from runtape.adapters.redis.rate_limiter import RedisRateLimiter
from runtape.adapters.redis.seen_keys import RedisSeenKeys, mark_of
from runtape.ports.admission import AdmissionQueue, Capacity
from runtape.ports.clock import Clock
from runtape.runtime.queue_keeper import QueueKeeper
from tests.builders import EXECUTION
from tests.contract.cluster.test_redis_admission import AtOnce
from tests.contract.cluster.test_router import hears, process
from tests.contract.suites import admission
from tests.contract.suites.admission import a_capacity, an_entry
from tests.contract.suites.live_feed import FAR_S
from tests.contract.test_rate_limiter import TEN_A_MINUTE
from tests.contract.test_seen_keys import ALICE
from tests.rig.redis import ClusterRedis

pytestmark = pytest.mark.needs("redis-unpacked")
SERVED = (redis_admission.PREFIX, f"{LIMIT_PREFIX}a", mark_of(ALICE, "k"))
_queues = count(1)
_nodes: list[ClusterRedis] = []


@pytest.fixture(autouse=True, scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterRedis]:
    node = ClusterRedis(tmp_path_factory.mktemp("redis-cluster"), SERVED).start()
    _nodes.append(node)
    yield node
    _nodes.clear()
    node.stop()


@pytest.fixture
async def client(node: ClusterRedis) -> AsyncIterator[Client]:
    client = connect(node.url)
    yield client
    await client.aclose()


def make(capacity: Capacity, clock: Clock) -> AdmissionQueue:
    script = AtOnce(blocking.Redis.from_url(_nodes[0].url).register_script(script_text()))
    return RedisAdmissionQueue(script, capacity, prefix=f"{redis_admission.PREFIX}{next(_queues)}:", now=clock.now)


class TestAdmission(admission.AdmissionContract):
    def make(self, capacity: Capacity, clock: Clock) -> AdmissionQueue:
        return make(capacity, clock)


TestAdmissionMachine = admission.admission_machine(make)


class NoSagas:
    """Stands for what takes the sagas over, and begins those that may run; there are none."""

    def __init__(self) -> None:
        self.taken_over = asyncio.Event()

    async def restore(self) -> None: ...

    async def admit_waiting(self) -> None:
        self.taken_over.set()


async def test_a_process_makes_its_queue_and_uses_it(client: Client) -> None:
    keeper = QueueKeeper(client, Uuid7Ids())
    script: Any = client.register_script(script_text())
    queue = RedisAdmissionQueue(script, a_capacity(running=1), on_forgotten=keeper.forgotten)
    sagas = cast(Any, NoSagas())
    making = asyncio.create_task(keeper.run(queue, sagas, sagas))
    await asyncio.wait_for(sagas.taken_over.wait(), 10)
    assert [await queue.offer(an_entry()) for _ in range(2)] == [True, False]
    making.cancel()
    await asyncio.gather(making, return_exceptions=True)


@pytest.mark.parametrize("key", [f"{LIMIT_PREFIX}b", "runtape:admission:built", "built"])
def test_other_keys_are_refused(node: ClusterRedis, key: str) -> None:
    with blocking.Redis.from_url(node.url) as client:
        with pytest.raises(RedisError):
            client.get(key)
        with pytest.raises(RedisError, match="Script"):
            client.eval(f"return redis.call('GET', '{key}')", 1, redis_admission.PREFIX)


async def test_a_bucket_is_one_key(client: Client) -> None:
    limiter = RedisRateLimiter(client)
    assert [(await limiter.take("a", TEN_A_MINUTE)).allowed for _ in range(11)] == [True] * 10 + [False]
    assert not (await limiter.peek("a", TEN_A_MINUTE)).allowed


async def test_a_mark_is_one_key(client: Client) -> None:
    keys = RedisSeenKeys(client)
    assert [await keys.add(ALICE, "k") for _ in range(2)] == [True, False]


async def test_nudges_go_from_one_process_to_another(node: ClusterRedis) -> None:
    async with process(node, "a") as publisher, process(node, "b") as other:
        reader = other.subscribe(EXECUTION)
        assert await asyncio.wait_for(reader.next(FAR_S), 10) is None, "its subscription has begun"
        assert await hears(publisher, EXECUTION, reader)
        reader.close()
