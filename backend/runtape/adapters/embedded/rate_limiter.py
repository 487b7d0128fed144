"""Rate limits in this process: the generic cell rate algorithm (ITU-T I.371, in its virtual scheduling form).

Theory of operation
===================
A bucket is one number, its *theoretical arrival time*: when it will be full again.  A call moves it on by one
emission interval (period / limit), from now when it lies in the past, and is refused when that would bring it
further ahead than `limit` intervals.  A bucket whose time has passed is the same as one that was never used, so
nothing has to be refilled and idle keys can be forgotten.

Times are whole nanoseconds: with floats the last call of a burst would depend on rounding.
"""

from collections import OrderedDict

from runtape.ports.clock import Clock
from runtape.ports.limits import Allowance, Decision

MAX_KEYS = 65_536
"""Buckets kept, about 10 MiB; beyond that the one that was least recently drawn from is forgotten."""


class GcraRateLimiter:
    """`RateLimiter` by `clock`, with at most `max_keys` buckets."""

    def __init__(self, clock: Clock, *, max_keys: int = MAX_KEYS) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._full_at_ns: OrderedDict[str, int] = OrderedDict()

    async def take(self, key: str, allowance: Allowance) -> Decision:
        now = round(self._clock.monotonic_s() * 1e9)
        limit = allowance.limit
        interval = max(int(allowance.period_s * 1e9) // limit, 1)
        full_at = max(self._full_at_ns.get(key, now), now)
        after = full_at + interval
        room = limit * interval - (after - now)
        if room < 0:
            return Decision(False, limit, 0, (full_at - now) / 1e9, -room / 1e9)
        self._full_at_ns[key] = after
        self._full_at_ns.move_to_end(key)
        self._forget(now)
        return Decision(True, limit, room // interval, (after - now) / 1e9, 0.0)

    async def peek(self, key: str, allowance: Allowance) -> Decision:
        now = round(self._clock.monotonic_s() * 1e9)
        limit = allowance.limit
        interval = max(int(allowance.period_s * 1e9) // limit, 1)
        full_at = max(self._full_at_ns.get(key, now), now)
        room = limit * interval - (full_at - now)
        wait = max(interval - room, 0)
        return Decision(not wait, limit, room // interval, (full_at - now) / 1e9, wait / 1e9)

    def _forget(self, now: int) -> None:
        """Drop up to two of the longest unused buckets if they are full again, or if there are too many."""
        buckets = self._full_at_ns
        for _ in range(2):
            key = next(iter(buckets))
            if buckets[key] > now and len(buckets) <= self._max_keys:
                return
            del buckets[key]
