"""What every `SeenKeys` does: it may forget, but of those who come at once it sends one ahead at most."""

import asyncio
from abc import ABC, abstractmethod

from runtape.adapters.embedded.seen_keys import NoSeenKeys
from runtape.domain.ids import UserId
from runtape.ports.idempotency import SeenKeys

ALICE, BOB = UserId("alice"), UserId("bob")


class SeenKeysContract(ABC):
    """The suite; `make` returns one that has seen nothing."""

    remembers = True
    """Whether anything is ever new to it."""

    @abstractmethod
    def make(self) -> SeenKeys: ...

    async def test_a_key_is_new_once_at_most(self) -> None:
        keys = self.make()
        assert [await keys.add(ALICE, "k") for _ in range(3)] == [self.remembers, False, False]

    async def test_of_those_who_come_at_once_one_is_the_first(self) -> None:
        keys = self.make()
        assert sum(await asyncio.gather(*(keys.add(ALICE, "k") for _ in range(20)))) == self.remembers

    async def test_keys_are_each_users_own_and_apart(self) -> None:
        keys = self.make()
        told = [await keys.add(user, key) for user, key in ((ALICE, "k"), (BOB, "k"), (ALICE, "l"), (ALICE, "k\0"))]
        assert told == [self.remembers] * 4

    async def test_any_key_will_do(self) -> None:
        keys = self.make()
        for key in ("ä" * 127, "k" * 255, "{a}:*", "\n"):
            assert [await keys.add(ALICE, key) for _ in range(2)] == [self.remembers, False]


class TestNoSeenKeys(SeenKeysContract):
    remembers = False

    def make(self) -> SeenKeys:
        return NoSeenKeys()
