"""Which idempotency keys somebody has come with, known to all processes.

A mark per user and key, which one command looks for and leaves, and which goes by the server's time.  What Redis
forgets, and what it still remembers of an execution that was deleted, costs one call of the store and nothing else.
"""

import hashlib
from base64 import urlsafe_b64encode
from typing import Final

from redis.asyncio import Redis

from runtape.adapters.redis.connection import transient
from runtape.domain.ids import UserId

PREFIX: Final = "runtape:seen:"
KEPT_S: Final = 3600
"""How long a mark stays.  Clients repeat themselves within seconds or minutes; whom it has gone for by then is refused
by the store's index and looked up, as if Redis had forgotten it."""
_DIGEST_BYTES: Final = 16


class RedisSeenKeys:
    """`SeenKeys` in one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, user_id: UserId, key: str) -> bool:
        with transient():
            return await self._redis.set(mark_of(user_id, key), b"", nx=True, ex=KEPT_S) is not None


def mark_of(user_id: UserId, key: str) -> str:
    """Return what the mark is called: keys may be long, and say what is nobody's business in Redis."""
    digest = hashlib.blake2b(f"{user_id}\0{key}".encode(), digest_size=_DIGEST_BYTES).digest()
    return PREFIX + urlsafe_b64encode(digest).rstrip(b"=").decode()
