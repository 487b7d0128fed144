"""Making the shared admission queue from the sagas when Redis has none: at the first start, or when it forgot.

One process does it at a time, under a key that expires; the others wait.  Nobody is let through meanwhile.
"""

import asyncio

import structlog
from redis.asyncio import Redis

from runtape.adapters.redis.admission import PREFIX, RedisAdmissionQueue
from runtape.adapters.redis.connection import transient
from runtape.application.admission import Admission
from runtape.application.admission_control import AdmissionControl
from runtape.ports.clock import Ids
from runtape.ports.errors import Transient

log = structlog.get_logger(__name__)

LOOK_INTERVAL_S = 1.0
MAKING_S = 60
"""How long one process may take, until another one begins."""

_MAKING = f"{PREFIX}making"
_BUILT = f"{PREFIX}built"


class QueueKeeper:
    """Sees to it that there is a queue; `run` as a task where the sagas are followed."""

    def __init__(self, redis: Redis, ids: Ids) -> None:
        self._redis = redis
        self._me = ids.new_id()
        self._noticed = asyncio.Event()

    def forgotten(self) -> None:
        """Say that Redis has no queue."""
        self._noticed.set()

    async def run(self, queue: RedisAdmissionQueue, admission: Admission, control: AdmissionControl) -> None:
        """Make the queue whenever there is none; runs until cancelled."""
        while True:
            try:
                await self._look(queue, admission, control)
            except Transient as error:
                log.warning("admission.not_made", error=str(error))
            self._noticed.clear()
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._noticed.wait()
            except TimeoutError:
                continue

    async def _look(self, queue: RedisAdmissionQueue, admission: Admission, control: AdmissionControl) -> None:
        with transient():
            if await self._redis.exists(_BUILT):
                return
            if not await self._redis.set(_MAKING, self._me, nx=True, ex=MAKING_S):
                return
        try:
            await control.restore()
            await admission.restore()
            await queue.built()
            log.info("admission.made")
        finally:
            with transient():
                await self._redis.delete(_MAKING)
        await admission.admit_waiting()
