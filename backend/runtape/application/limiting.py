"""Rate limits that hold, if less exactly, while what all processes share does not answer."""

from runtape.application.breaker import Breaker
from runtape.ports.clock import Clock
from runtape.ports.limits import Allowance, Decision, RateLimiter


class FallbackRateLimiter:
    """`RateLimiter` over a shared one, and over one of this process alone while that one does not answer.

    Then each process allows what all of them should: a limit is as many times as high as there are processes, and no
    request is refused because nobody could count it.
    """

    def __init__(self, shared: RateLimiter, own: RateLimiter, clock: Clock) -> None:
        self._shared = shared
        self._own = own
        self._breaker = Breaker(clock, gone="limits.of_this_process", back="limits.shared_again")

    async def take(self, key: str, allowance: Allowance) -> Decision:
        shared = await self._breaker.ask(lambda: self._shared.take(key, allowance))
        return shared or await self._own.take(key, allowance)

    async def peek(self, key: str, allowance: Allowance) -> Decision:
        shared = await self._breaker.ask(lambda: self._shared.peek(key, allowance))
        return shared or await self._own.peek(key, allowance)
