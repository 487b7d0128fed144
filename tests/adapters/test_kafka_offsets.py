"""What may be committed while messages are done in any order."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from runtape.adapters.kafka.offsets import Offsets


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_nothing_that_is_not_done_is_ever_passed(gaps: list[int], random: object) -> None:
    """Offsets have gaps: a compacted or transactional log does not use all of them."""
    offsets = Offsets()
    outstanding = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    for offset in outstanding:
        offsets.delivered(offset)
    last = outstanding[-1]
    order = outstanding.copy()
    random.shuffle(order)  # type: ignore[attr-defined]
    for offset in order:
        assert offsets.committable is None or offsets.committable <= outstanding[0]
        offsets.done(offset)
        offsets.done(offset)
        outstanding.remove(offset)
        assert len(offsets) >= len(outstanding)
        if outstanding:
            assert offsets.committable is None or offsets.committable <= outstanding[0]
    assert offsets.committable == last + 1
    assert len(offsets) == 0


async def test_it_says_when_all_are_done() -> None:
    offsets = Offsets()
    await offsets.empty()
    for offset in (3, 4):
        offsets.delivered(offset)
    waiting = asyncio.ensure_future(offsets.empty())
    offsets.done(4)
    await asyncio.sleep(0)
    assert not waiting.done()
    offsets.done(3)
    await waiting
    assert offsets.committable == 5
