"""What every `RateLimiter` does, and the in-process one against a model of ten lines."""

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from fractions import Fraction

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from runtape.adapters.embedded.rate_limiter import GcraRateLimiter
from runtape.ports.clock import Clock
from runtape.ports.limits import Allowance, Decision, RateLimiter
from tests.clocks import ManualClock

TEN_A_MINUTE = Allowance(10, 60.0)


class RateLimiterContract(ABC):
    """The suite; `make` returns a limiter that goes by `clock`."""

    @abstractmethod
    def make(self, clock: Clock) -> RateLimiter: ...

    async def test_burst_has_exactly_the_limit(self) -> None:
        limiter = self.make(ManualClock())
        decisions = [await limiter.take("a", TEN_A_MINUTE) for _ in range(12)]
        assert [decision.allowed for decision in decisions] == [True] * 10 + [False] * 2
        assert [decision.remaining for decision in decisions] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]

    async def test_keys_are_apart(self) -> None:
        limiter = self.make(ManualClock())
        for _ in range(11):
            await limiter.take("a", TEN_A_MINUTE)
        assert (await limiter.take("b", TEN_A_MINUTE)).remaining == 9

    async def test_calls_come_back_evenly(self) -> None:
        clock = ManualClock()
        limiter = self.make(clock)
        for _ in range(10):
            await limiter.take("a", TEN_A_MINUTE)
        for _ in range(3):
            clock.advance(5.9)
            assert not (await limiter.take("a", TEN_A_MINUTE)).allowed
            clock.advance(0.1)
            assert (await limiter.take("a", TEN_A_MINUTE)).allowed

    async def test_refused_calls_use_nothing(self) -> None:
        clock = ManualClock()
        limiter = self.make(clock)
        for _ in range(500):
            await limiter.take("a", TEN_A_MINUTE)
        clock.advance(60)
        decisions = [await limiter.take("a", TEN_A_MINUTE) for _ in range(11)]
        assert sum(decision.allowed for decision in decisions) == 10

    async def test_idle_time_saves_up_no_more_than_the_limit(self) -> None:
        clock = ManualClock()
        limiter = self.make(clock)
        await limiter.take("a", TEN_A_MINUTE)
        clock.advance(100_000)
        decisions = [await limiter.take("a", TEN_A_MINUTE) for _ in range(20)]
        assert sum(decision.allowed for decision in decisions) == 10

    async def test_times_told_are_true(self) -> None:
        clock = ManualClock()
        limiter = self.make(clock)
        for _ in range(9):
            await limiter.take("a", TEN_A_MINUTE)
        last = await limiter.take("a", TEN_A_MINUTE)
        assert last.reset_s == pytest.approx(60)
        assert last.retry_after_s == 0
        refused = await limiter.take("a", TEN_A_MINUTE)
        assert refused.retry_after_s == pytest.approx(6)
        clock.advance(refused.retry_after_s + 1e-6)
        assert (await limiter.take("a", TEN_A_MINUTE)).allowed
        clock.advance(refused.reset_s)
        assert (await limiter.take("a", TEN_A_MINUTE)).remaining == 9

    async def test_peek_tells_what_a_call_would_meet_and_uses_nothing(self) -> None:
        clock = ManualClock()
        limiter = self.make(clock)
        for remaining in range(10, 0, -1):
            for _ in range(3):
                seen = await limiter.peek("a", TEN_A_MINUTE)
                assert (seen.allowed, seen.limit, seen.remaining, seen.retry_after_s) == (True, 10, remaining, 0)
            await limiter.take("a", TEN_A_MINUTE)
        clock.advance(2)
        refused, seen = await limiter.take("a", TEN_A_MINUTE), await limiter.peek("a", TEN_A_MINUTE)
        assert seen == refused
        assert not seen.allowed
        assert seen.retry_after_s == pytest.approx(4)

    @pytest.mark.parametrize("limit", [1, 3, 7, 600, 3000])
    async def test_limit_that_does_not_divide_the_period_holds_exactly(self, limit: int) -> None:
        limiter = self.make(ManualClock())
        decisions = [await limiter.take("a", Allowance(limit, 60.0)) for _ in range(limit + 1)]
        assert sum(decision.allowed for decision in decisions) == limit
        assert decisions[-1].limit == limit


class TestGcra(RateLimiterContract):
    def make(self, clock: Clock) -> RateLimiter:
        return GcraRateLimiter(clock)

    async def test_idle_keys_are_forgotten(self) -> None:
        clock = ManualClock()
        limiter = GcraRateLimiter(clock)
        for number in range(1000):
            await limiter.take(str(number), TEN_A_MINUTE)
        clock.advance(7)
        for _ in range(1000):
            clock.advance(7)
            await limiter.take("a", TEN_A_MINUTE)
        assert len(limiter._full_at_ns) == 1

    async def test_keys_are_bounded_and_the_longest_unused_goes_first(self) -> None:
        limiter = GcraRateLimiter(ManualClock(), max_keys=3)
        for key in ("a", "b", "c", "a", "d"):
            await limiter.take(key, TEN_A_MINUTE)
        assert (await limiter.take("a", TEN_A_MINUTE)).remaining == 7
        assert (await limiter.take("b", TEN_A_MINUTE)).remaining == 9
        assert len(limiter._full_at_ns) == 3


class TokenBucket:
    """The model: a bucket of `limit` tokens that fills evenly, in exact arithmetic."""

    def __init__(self, limit: int, period_ms: int) -> None:
        self.limit, self.rate = limit, Fraction(limit, period_ms)
        self.tokens = Fraction(limit)

    def pass_time(self, ms: int) -> None:
        self.tokens = min(Fraction(self.limit), self.tokens + ms * self.rate)

    def take(self) -> bool:
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class GcraAgainstModel(RuleBasedStateMachine):
    """Periods are multiples of the limit in ms, so that the limiter's whole nanoseconds are exact too."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.limiter = GcraRateLimiter(self.clock)
        self.allowances: dict[str, Allowance] = {}
        self.models: dict[str, TokenBucket] = {}

    @initialize(shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 50)), min_size=1, max_size=3))
    def make_buckets(self, shapes: list[tuple[int, int]]) -> None:
        for number, (limit, interval_ms) in enumerate(shapes):
            self.allowances[str(number)] = Allowance(limit, limit * interval_ms / 1000)
            self.models[str(number)] = TokenBucket(limit, limit * interval_ms)

    @rule(ms=st.integers(1, 200))
    def pass_time(self, ms: int) -> None:
        self.clock.advance(ms / 1000)
        for model in self.models.values():
            model.pass_time(ms)

    @precondition(lambda self: self.models)
    @rule(pick=st.integers(0, 2), calls=st.integers(1, 15))
    def take(self, pick: int, calls: int) -> None:
        key = list(self.models)[pick % len(self.models)]
        model = self.models[key]
        for _ in range(calls):
            assert self._told(self.limiter.peek(key, self.allowances[key])).remaining == int(model.tokens)
            decision = self._told(self.limiter.take(key, self.allowances[key]))
            assert decision.allowed == model.take()
            assert decision.remaining == int(model.tokens)
            missing_ms = (model.limit - model.tokens) / model.rate
            assert decision.reset_s == pytest.approx(float(missing_ms) / 1000, abs=1e-6)
            if not decision.allowed:
                wait_ms = (1 - model.tokens) / model.rate
                assert decision.retry_after_s == pytest.approx(float(wait_ms) / 1000, abs=1e-6)

    def _told(self, call: Coroutine[object, object, Decision]) -> Decision:
        """Run `call` without an event loop: the limiter waits for nothing."""
        try:
            call.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("the limiter waited for something")


TestGcraAgainstModel = GcraAgainstModel.TestCase
