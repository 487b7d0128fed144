"""Allowances over time."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Allowance:
    """`limit` calls in `period_s` seconds."""

    limit: int
    period_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What a call was told: `remaining` calls could follow at once, all of them again after `reset_s`."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float


class RateLimiter(Protocol):
    """A bucket per key that refills evenly (GCRA): bursts up to the limit, the limit per period on average."""

    async def take(self, key: str, allowance: Allowance) -> Decision:
        """Use one call of `key`, if it has one; a refused call uses none.  Raises: Transient."""
        ...

    async def peek(self, key: str, allowance: Allowance) -> Decision:
        """Return how the bucket of `key` stands and use nothing: `allowed` if a call would be.  Raises: Transient."""
        ...
