"""Idempotency keys are looked up in the store, all of them, while nobody can say which ones are new."""

from runtape.application.breaker import Breaker
from runtape.domain.ids import UserId
from runtape.ports.clock import Clock
from runtape.ports.idempotency import SeenKeys


class FallbackSeenKeys:
    """`SeenKeys` over shared ones, by which no key is new while those do not answer."""

    def __init__(self, shared: SeenKeys, clock: Clock) -> None:
        self._shared = shared
        self._breaker = Breaker(clock, gone="idempotency.looks_every_key_up", back="idempotency.knows_new_keys_again")

    async def add(self, user_id: UserId, key: str) -> bool:
        return bool(await self._breaker.ask(lambda: self._shared.add(user_id, key)))
