"""Argon2 hashing, with parameters that make it quick."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from runtape.adapters.embedded.passwords import CONCURRENT, Argon2Hasher
from runtape.ports.errors import Permanent


@pytest.fixture
async def hasher() -> AsyncIterator[Argon2Hasher]:
    hasher = Argon2Hasher(memory_kib=8, passes=1)
    yield hasher
    hasher.close()


@pytest.mark.parametrize("password", ["correct horse", "", "pässwörd \N{SNOWMAN}", "\ud800", "x" * 1024])
async def test_hash_matches_its_password_and_no_other(hasher: Argon2Hasher, password: str) -> None:
    hashed = await hasher.hash(password)
    assert await hasher.verify(password, hashed)
    assert not await hasher.verify(password + "x", hashed)


async def test_equal_passwords_have_different_hashes(hasher: Argon2Hasher) -> None:
    assert await hasher.hash("same") != await hasher.hash("same")


async def test_nobody_has_no_password_and_costs_a_real_verification(hasher: Argon2Hasher) -> None:
    parameters = (await hasher.hash("any")).rpartition("p=")[0]
    assert hasher._nobody.startswith(parameters)
    assert not await hasher.verify("", None)
    assert not hasher.outdated(hasher._nobody)


async def test_hash_of_other_parameters_still_matches_and_is_outdated(hasher: Argon2Hasher) -> None:
    stronger = Argon2Hasher(memory_kib=16, passes=2)
    hashed = await hasher.hash("old")
    assert await stronger.verify("old", hashed)
    assert stronger.outdated(hashed)
    assert not hasher.outdated(hashed)
    stronger.close()


async def test_damaged_hash_is_our_failure_and_does_not_show(hasher: Argon2Hasher) -> None:
    with pytest.raises(Permanent) as failure:
        await hasher.verify("any", "$argon2id$damaged")
    assert "damaged" in str(failure.value)
    assert "$argon2id" not in str(failure.value)


async def test_no_more_than_two_are_hashed_at_a_time() -> None:
    class Meeting(Argon2Hasher):
        three = threading.Barrier(CONCURRENT + 1, timeout=0.2)

        def _hash(self, password: str) -> str:
            try:
                self.three.wait()
            except threading.BrokenBarrierError:
                return "alone or in twos"
            return "three met"

    hasher = Meeting()
    answers = await asyncio.gather(*[hasher.hash("x") for _ in range(6)])
    hasher.close()
    assert set(answers) == {"alone or in twos"}
