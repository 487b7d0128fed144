"""Rate limits that hold, if less exactly, while what all processes share does not answer."""

import structlog

from runtape.ports.clock import Clock
from runtape.ports.errors import Transient
from runtape.ports.limits import Allowance, Decision, RateLimiter

log = structlog.get_logger(__name__)

ASK_AGAIN_S = 1.0
"""After a failure the shared limiter is left alone for so long: each request would wait for it."""


class FallbackRateLimiter:
    """`RateLimiter` over a shared one, and over one of this process alone while that one does not answer.

    Then each process allows what all of them should: a limit is as many times as high as there are processes, and no
    request is refused because nobody could count it.
    """

    def __init__(self, shared: RateLimiter, own: RateLimiter, clock: Clock) -> None:
        self._shared = shared
        self._own = own
        self._clock = clock
        self._left_alone_until_s: float | None = None

    async def take(self, key: str, allowance: Allowance) -> Decision:
        if self._asks_shared():
            try:
                return self._answered(await self._shared.take(key, allowance))
            except Transient as error:
                self._failed(error)
        return await self._own.take(key, allowance)

    async def peek(self, key: str, allowance: Allowance) -> Decision:
        if self._asks_shared():
            try:
                return self._answered(await self._shared.peek(key, allowance))
            except Transient as error:
                self._failed(error)
        return await self._own.peek(key, allowance)

    def _asks_shared(self) -> bool:
        return self._left_alone_until_s is None or self._clock.monotonic_s() >= self._left_alone_until_s

    def _answered(self, decision: Decision) -> Decision:
        if self._left_alone_until_s is not None:
            self._left_alone_until_s = None
            log.info("limits.shared_again")
        return decision

    def _failed(self, error: Transient) -> None:
        if self._left_alone_until_s is None:
            log.warning("limits.of_this_process", error=str(error))
        self._left_alone_until_s = self._clock.monotonic_s() + ASK_AGAIN_S
