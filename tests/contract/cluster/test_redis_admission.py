"""The admission queue in Redis keeps the contract of its port, move for move, and is made again when Redis forgets."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import pytest
import redis as blocking
from redis.commands.core import Script as BlockingScript

from runtape.adapters.redis.admission import RedisAdmissionQueue, script_text
from runtape.ports.admission import AdmissionQueue, Capacity, Gate
from runtape.ports.clock import Clock
from runtape.ports.errors import Transient
from tests.clocks import START
from tests.contract.suites import admission, fairness
from tests.contract.suites.admission import a_capacity, an_entry
from tests.rig.redis import Redis

pytestmark = pytest.mark.needs("redis")
_queues = count(1)
_parts: list[Redis] = []


class AtOnce:
    """The script by a client that blocks: a queue of it belongs to no event loop."""

    def __init__(self, script: BlockingScript) -> None:
        self._script = script
        self._built: set[str] = set()

    async def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Any:
        if keys[0] not in self._built:
            self._built.add(keys[0])
            self._script(keys=keys, args=["built", *args[1:6]])
        return self._script(keys=keys, args=args)


def make(capacity: Capacity, clock: Clock) -> AdmissionQueue:
    script = AtOnce(blocking.Redis.from_url(_parts[0].url).register_script(script_text()))
    return RedisAdmissionQueue(script, capacity, prefix=f"{{test{next(_queues)}}}:", now=clock.now)


@pytest.fixture(autouse=True, scope="module")
def _part(redis_part: Redis) -> Iterator[None]:
    _parts.append(redis_part)
    yield
    _parts.clear()


class InRedis:
    def make(self, capacity: Capacity, clock: Clock) -> AdmissionQueue:
        return make(capacity, clock)


class TestAdmission(InRedis, admission.AdmissionContract): ...


TestAdmissionMachine = admission.admission_machine(make)


class TestFairness(InRedis, fairness.FairnessContract): ...


def a_forgetful_queue(redis_part: Redis, forgotten: list[int]) -> tuple[RedisAdmissionQueue, blocking.Redis]:
    client = blocking.Redis.from_url(redis_part.url)
    script = client.register_script(script_text())

    async def call(*, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return script(keys=keys, args=args)

    queue = RedisAdmissionQueue(
        call, a_capacity(running=1), prefix=f"{{test{next(_queues)}}}:", on_forgotten=lambda: forgotten.append(1)
    )
    return queue, client


def forget(client: blocking.Redis) -> None:
    """Let Redis forget all queues."""
    for key in client.scan_iter("{test*"):
        client.delete(key)


async def test_nobody_is_let_through_until_the_sagas_have_been_taken_over(redis_part: Redis) -> None:
    forgotten: list[int] = []
    queue, client = a_forgetful_queue(redis_part, forgotten)
    held, waits, late = an_entry(), an_entry(), an_entry()
    for call in (queue.offer(late), queue.enqueue(late), queue.grant(), queue.survey()):
        with pytest.raises(Transient, match="anew"):
            await call
    assert (await queue.room(late.project_id)).accepts, "what is accepted waits in the store"
    assert await queue.place(late.execution_id) is None
    assert len(forgotten) == 6
    for _ in range(2):
        await queue.set_gate(Gate.OPEN)
        await queue.restore([held], admitted=True)
        await queue.restore([waits], admitted=False)
        await queue.built()
        assert not await queue.offer(late)
        assert (await queue.survey()).running == 1
        assert await queue.grant() == []
        forget(client)
        with pytest.raises(Transient):
            await queue.offer(late)


async def test_it_goes_by_the_time_of_the_server(redis_part: Redis) -> None:
    queue, _ = a_forgetful_queue(redis_part, [])
    await queue.built()
    assert await queue.offer(an_entry(since=START))
    assert await queue.held(3600) == []
    assert len(await queue.held(-1)) == 1
