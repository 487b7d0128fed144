"""One of several processes does what one is enough for, under a key in Redis that expires."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine

import structlog
from redis.asyncio import Redis

from runtape.adapters.redis.connection import transient
from runtape.ports.errors import Transient

log = structlog.get_logger(__name__)

LEASE_S = 15
RENEW_S = 5.0

_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('EXPIRE', KEYS[1], ARGV[2]) end return 0"
_GIVE_UP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Leading:
    """Runs a task while this process leads, as `me`.

    For a moment two may lead, when one stood still or Redis forgot: the work has to bear that.
    """

    def __init__(self, redis: Redis, name: str, me: str) -> None:
        self._redis = redis
        self._key = f"runtape:leads:{name}"
        self._me = me
        self._renew = redis.register_script(_RENEW)
        self._give_up = redis.register_script(_GIVE_UP)

    async def run(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Do `work` whenever this process leads; runs until cancelled."""
        while True:
            try:
                with transient():
                    leads = await self._redis.set(self._key, self._me, nx=True, ex=LEASE_S)
                if leads:
                    await self._lead(work)
            except Transient as error:
                log.warning("leading.not_asked", key=self._key, error=str(error))
            await asyncio.sleep(RENEW_S)

    async def _lead(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        task = asyncio.create_task(work())
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=RENEW_S)
                with transient():
                    if not await self._renew(keys=[self._key], args=[self._me, LEASE_S]):
                        return
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with contextlib.suppress(Transient), transient():
                await self._give_up(keys=[self._key], args=[self._me])
