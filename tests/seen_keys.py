"""Idempotency keys whose rememberer is often wrong."""

from random import Random

from runtape.domain.ids import UserId


class ForgetfulKeys:
    """`SeenKeys` that forgets everything now and then, and takes a key for known that is not."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._seen: set[tuple[UserId, str]] = set()

    async def add(self, user_id: UserId, key: str) -> bool:
        if self._random.random() < 0.2:
            self._seen.clear()
        first = (user_id, key) not in self._seen and self._random.random() < 0.8
        self._seen.add((user_id, key))
        return first
