"""Rate limits that all processes share: the generic cell rate algorithm of the embedded limiter, as a script in Redis.

A bucket is a key that holds its theoretical arrival time in microseconds of the server's clock, and is gone once that
has passed: a bucket that is full again is the same as none.  What Redis forgets lets callers start anew with a full
allowance, which costs no run.
"""

from redis.asyncio import Redis

from runtape.adapters.redis.connection import transient
from runtape.ports.limits import Allowance, Decision

PREFIX = "runtape:limit:"

SERVER_TIME = "redis.call('TIME')"

# Returns whether the call is allowed, the room that is left and the time until the bucket is full, in microseconds.
# A bucket is kept for its whole period, which is as long as it can matter.
SCRIPT = """
local time = {time}
local now = time[1] * 1000000 + time[2]
local whole, interval, taken = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local after = full_at + interval
if after - now > whole then
    return {{0, whole - (full_at - now), full_at - now}}
end
if taken == 0 then
    return {{1, whole - (full_at - now), full_at - now}}
end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil(whole / 1000))
return {{1, whole - (after - now), after - now}}
"""


class RedisRateLimiter:
    """`RateLimiter` over the buckets in one Redis, by the `time` that the Lua expression tells: s and us."""

    def __init__(self, redis: Redis, time: str = SERVER_TIME) -> None:
        self._script = redis.register_script(SCRIPT.format(time=time))

    async def take(self, key: str, allowance: Allowance) -> Decision:
        return await self._ask(key, allowance, taken=1)

    async def peek(self, key: str, allowance: Allowance) -> Decision:
        return await self._ask(key, allowance, taken=0)

    async def _ask(self, key: str, allowance: Allowance, *, taken: int) -> Decision:
        limit = allowance.limit
        interval = max(int(allowance.period_s * 1e6) // limit, 1)
        with transient():
            allowed, room, full_in = await self._script(keys=[PREFIX + key], args=[limit * interval, interval, taken])
        wait = 0 if allowed else interval - room
        return Decision(bool(allowed), limit, room // interval, full_in / 1e6, wait / 1e6)
