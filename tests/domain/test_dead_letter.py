"""When dead letters are retried, and what a retry makes of them."""

from datetime import timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given

from runtape.domain.dead_letter import (
    DEFAULT_POLICIES,
    DEFAULT_POLICY,
    PARKED,
    Failure,
    FailureKind,
    LetterStatus,
    RetryPolicy,
    Strategy,
    bury,
    failed_again,
    give_up,
    spread_of,
    try_again,
)
from tests.builders import a_raw_message
from tests.clocks import START

BROKEN = Failure(kind=FailureKind.POISON, cause="KeyError: 'x'", stack_digest="d", attempts=3)
FIXED = RetryPolicy(strategy=Strategy.FIXED, max_retries=2, base_delay_s=10, max_delay_s=0, jitter=0)

policies = st.builds(
    RetryPolicy,
    strategy=st.sampled_from(Strategy),
    max_retries=st.integers(0, 100),
    base_delay_s=st.floats(0, 86_400),
    max_delay_s=st.floats(0, 86_400),
    multiplier=st.floats(1, 10),
    jitter=st.floats(0, 1),
)


@given(policies, st.integers(0, 200), st.floats(0, 1, exclude_max=True))
def test_delay_lies_within_the_bounds_of_its_policy(policy: RetryPolicy, retries: int, spread: float) -> None:
    delay_s = policy.delay_s(retries, spread)
    if retries >= policy.max_retries or policy.strategy is Strategy.MANUAL:
        assert delay_s is None
        return
    assert delay_s is not None
    middle = {
        Strategy.IMMEDIATE: 0.0,
        Strategy.FIXED: policy.base_delay_s,
        Strategy.EXPONENTIAL: min(policy.base_delay_s * policy.multiplier**retries, policy.max_delay_s),
    }[policy.strategy]
    assert middle * (1 - policy.jitter) - 1e-6 <= delay_s <= middle * (1 + policy.jitter) + 1e-6


@pytest.mark.parametrize(
    ("topic", "delays"),
    [
        ("execution.events.v1", [30, 60, 120, 240, 300, None]),
        ("pod.commands.v1", [30, 60, 120, 240, 300, None]),
        ("pod.events.v1", [60, 180, 540, None]),
        ("any.other.v1", [60, 150, 375, 937.5, None]),
    ],
)
def test_defaults_are_those_that_are_told(topic: str, delays: list[float | None]) -> None:
    policy = DEFAULT_POLICIES.get(topic, DEFAULT_POLICY)
    assert [policy.delay_s(retries, 0.5) for retries in range(len(delays))] == delays
    assert policy.jitter == 0.1


def test_spread_is_the_same_each_time_and_even() -> None:
    values = [spread_of("group", "topic", offset) for offset in range(1000)]
    assert values == [spread_of("group", "topic", offset) for offset in range(1000)]
    assert all(0 <= each < 1 for each in values)
    assert [400 < sum(low <= each < low + 0.5 for each in values) < 600 for low in (0, 0.5)] == [True, True]
    assert spread_of("\ud800") < 1


def test_what_failed_is_scheduled_and_what_waits_behind_it_is_not() -> None:
    failed = bury(a_raw_message(), None, "group", BROKEN, FIXED, START)
    assert (failed.status, failed.next_retry_at) == (LetterStatus.SCHEDULED, START + timedelta(seconds=10))
    assert (failed.attempts, failed.retries, failed.cause, failed.stack_digest) == (3, 0, "KeyError: 'x'", "d")
    behind = bury(a_raw_message(2), None, "group", PARKED, FIXED, START)
    assert (behind.status, behind.next_retry_at, behind.attempts) == (LetterStatus.PENDING, None, 0)
    assert failed.open
    assert behind.open


def test_retries_are_counted_before_they_are_made_and_end_with_the_policy() -> None:
    letter = bury(a_raw_message(), None, "group", BROKEN, FIXED, START)
    later = START + timedelta(seconds=10)
    tried = try_again(letter, FIXED, later)
    assert (tried.attempts, tried.retries, tried.first_at, tried.last_at) == (4, 1, START, later)
    assert tried.next_retry_at == later + timedelta(seconds=10)
    last = try_again(tried, FIXED, later)
    assert (last.retries, last.status, last.next_retry_at) == (2, LetterStatus.PENDING, None)
    again = failed_again(last, Failure(kind=FailureKind.TRANSIENT, cause="busy", stack_digest="e", attempts=5))
    assert (again.failure, again.cause, again.stack_digest, again.attempts) == ("transient", "busy", "e", 5)
    assert give_up(tried).status is LetterStatus.PENDING
    assert give_up(tried).next_retry_at is None
