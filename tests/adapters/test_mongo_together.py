"""Lookups go together, and nobody is given what was read before he asked."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from runtape.adapters.mongo.together import MOST, Together
from runtape.ports.errors import Transient, Unavailable


class Shelf:
    """Things by number; each request waits until it is let go."""

    def __init__(self) -> None:
        self.things: dict[int, str] = {number: f"thing {number}" for number in range(500)}
        self.asked: list[Sequence[int]] = []
        self.answers: list[asyncio.Event] = []
        self.broken: Exception | None = None
        self.unreadable: int | None = None

    async def fetch(self, keys: Sequence[int]) -> Mapping[int, str]:
        self.asked.append(keys)
        found = {key: self.things[key] for key in keys if key in self.things}
        answer = asyncio.Event()
        self.answers.append(answer)
        await answer.wait()
        if self.broken is not None:
            raise self.broken
        if self.unreadable in keys:
            raise ValueError(f"thing {self.unreadable} cannot be read")
        return found

    async def let_go(self, number: int) -> None:
        while len(self.answers) <= number:  # noqa: ASYNC110
            await asyncio.sleep(0)
        self.answers[number].set()


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_by_itself_is_asked_for_at_once() -> None:
    shelf = Shelf()
    together = Together(shelf.fetch)
    asking = asyncio.create_task(together.get(7))
    await shelf.let_go(0)
    assert await asking == "thing 7"
    missing = asyncio.create_task(together.get(1000))
    await shelf.let_go(1)
    assert await missing is None
    assert shelf.asked == [[7], [1000]]


async def test_what_comes_meanwhile_goes_together_and_each_key_once() -> None:
    shelf = Shelf()
    together = Together(shelf.fetch)
    asking = [asyncio.create_task(together.get(1))]
    await turn()
    asking += [asyncio.create_task(together.get(number)) for number in (2, 3, 2, 2)]
    await turn()
    assert shelf.asked == [[1]]
    await shelf.let_go(0)
    await shelf.let_go(1)
    assert await asyncio.gather(*asking) == ["thing 1", "thing 2", "thing 3", "thing 2", "thing 2"]
    assert shelf.asked == [[1], [2, 3]]


async def test_nobody_is_given_what_was_read_before_he_asked() -> None:
    shelf = Shelf()
    together = Together(shelf.fetch)
    early = asyncio.create_task(together.get(1))
    await turn()
    shelf.things[1] = "another"
    late = asyncio.create_task(together.get(1))
    await shelf.let_go(0)
    await shelf.let_go(1)
    assert (await early, await late) == ("thing 1", "another")


async def test_a_request_has_so_many_keys_at_most() -> None:
    shelf = Shelf()
    together = Together(shelf.fetch)
    asking = [asyncio.create_task(together.get(number)) for number in range(MOST + 20)]
    await shelf.let_go(0)
    await shelf.let_go(1)
    assert await asyncio.gather(*asking) == [f"thing {number}" for number in range(MOST + 20)]
    assert [len(keys) for keys in shelf.asked] == [MOST, 20]


async def test_who_leaves_takes_nothing_from_the_others() -> None:
    shelf = Shelf()
    together = Together(shelf.fetch)
    leaves, stays = (asyncio.create_task(together.get(1)) for _ in range(2))
    await turn()
    leaves.cancel()
    await turn()
    await shelf.let_go(0)
    assert await stays == "thing 1"


async def test_a_failure_is_that_of_those_who_asked_and_of_nobody_else() -> None:
    shelf = Shelf()
    together = Together(shelf.fetch)
    shelf.broken = Transient("refused")
    first = [asyncio.create_task(together.get(1))]
    await turn()
    second = asyncio.create_task(together.get(1))
    await shelf.let_go(0)
    for each in first:
        with pytest.raises(Transient, match="refused"):
            await each
    shelf.broken = None
    await shelf.let_go(1)
    assert await second == "thing 1"


async def test_nobody_waits_for_what_is_away_as_long_again() -> None:
    shelf = Shelf()
    together = Together(shelf.fetch)
    shelf.broken = Unavailable("away")
    asking = [asyncio.create_task(together.get(1))]
    await turn()
    asking += [asyncio.create_task(together.get(number)) for number in range(3 * MOST)]
    await shelf.let_go(0)
    for each in asking:
        with pytest.raises(Unavailable, match="away"):
            await each
    assert shelf.asked == [[1]]


async def test_what_cannot_be_read_is_the_failure_of_who_asked_for_it() -> None:
    shelf = Shelf()
    together = Together(shelf.fetch)
    shelf.unreadable = 3
    asking = [asyncio.create_task(together.get(number)) for number in range(5)]
    for number in range(6):
        await shelf.let_go(number)
    told = await asyncio.gather(*asking, return_exceptions=True)
    assert [each for each in told if isinstance(each, str)] == [f"thing {number}" for number in (0, 1, 2, 4)]
    assert isinstance(told[3], ValueError)
    assert shelf.asked == [[0, 1, 2, 3, 4], [0], [1], [2], [3], [4]]
