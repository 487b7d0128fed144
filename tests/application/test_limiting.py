"""Limits while the shared limiter does not answer."""

from structlog.testing import capture_logs

from runtape.adapters.embedded.rate_limiter import GcraRateLimiter
from runtape.application.breaker import ASK_AGAIN_S
from runtape.application.limiting import FallbackRateLimiter
from runtape.ports.errors import Transient
from runtape.ports.limits import Allowance, Decision
from tests.clocks import ManualClock

TWO = Allowance(2, 60.0)


class Shared:
    """A limiter that counts who asks it, and can be gone."""

    def __init__(self, clock: ManualClock) -> None:
        self._inner = GcraRateLimiter(clock)
        self.gone = False
        self.asked = 0

    async def take(self, key: str, allowance: Allowance) -> Decision:
        self.asked += 1
        if self.gone:
            raise Transient("gone")
        return await self._inner.take(key, allowance)

    async def peek(self, key: str, allowance: Allowance) -> Decision:
        self.asked += 1
        if self.gone:
            raise Transient("gone")
        return await self._inner.peek(key, allowance)


async def test_this_process_counts_by_itself_while_nobody_else_does() -> None:
    clock = ManualClock()
    shared = Shared(clock)
    limiter = FallbackRateLimiter(shared, GcraRateLimiter(clock), clock)
    assert (await limiter.take("a", TWO)).remaining == 1
    shared.gone = True
    with capture_logs() as logs:
        decisions = [await limiter.take("a", TWO) for _ in range(3)]
        assert [decision.allowed for decision in decisions] == [True, True, False]
        assert not (await limiter.peek("a", TWO)).allowed
        assert shared.asked == 2, "it is left alone for a while"
        clock.advance(ASK_AGAIN_S)
        await limiter.take("a", TWO)
        assert shared.asked == 3
        shared.gone = False
        clock.advance(ASK_AGAIN_S)
        assert (await limiter.take("a", TWO)).remaining == 0
    assert [entry["event"] for entry in logs] == ["limits.of_this_process", "limits.shared_again"]
