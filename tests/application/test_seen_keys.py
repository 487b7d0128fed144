"""Idempotency while somebody says which keys are new: what that saves, and that it decides nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from runtape.application.breaker import ASK_AGAIN_S
from runtape.application.seen_keys import FallbackSeenKeys
from runtape.domain.errors import Draining, IdempotencyConflict, QueueFull
from runtape.domain.ids import UserId
from runtape.ports.admission import Gate
from runtape.ports.errors import Transient
from tests.application.world import ALICE, CAPACITY, World, a_submission, a_world
from tests.builders import a_principal
from tests.clocks import ManualClock
from tests.contract.embedded.basic import quick_place

BOB = a_principal("bob")


class Told:
    """`SeenKeys` that forgets when it is told to, and can be gone."""

    def __init__(self) -> None:
        self.seen: set[tuple[UserId, str]] = set()
        self.gone = False
        self.asked = 0

    async def add(self, user_id: UserId, key: str) -> bool:
        self.asked += 1
        if self.gone:
            raise Transient("gone")
        first = (user_id, key) not in self.seen
        self.seen.add((user_id, key))
        return first


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


def looks(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return the keys that are looked up in the store from now on."""
    found: list[tuple[Any, ...]] = []
    store = world.stores.executions
    inner = store.by_idempotency_key

    async def told(*words: Any) -> Any:
        found.append(words)
        return await inner(*words)

    monkeypatch.setattr(store, "by_idempotency_key", told)
    return found


async def test_a_key_that_nobody_has_used_is_not_looked_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world(folder, seen_keys=Told()) as world:
        found = looks(world, monkeypatch)
        first = await world.submit(idempotency_key="k")
        assert found == []
        assert await world.submit(idempotency_key="k") == first
        assert found == [(ALICE.user_id, "k")]
        assert await world.submissions.execute(BOB, a_submission(idempotency_key="k")) != first
        assert len(found) == 1


async def test_a_forgotten_key_stands_for_its_execution_and_is_remembered_again(folder: Path) -> None:
    keys = Told()
    async with a_world(folder, seen_keys=keys) as world:
        first = await world.submit(idempotency_key="k")
        keys.seen.clear()
        assert await world.submit(idempotency_key="k") == first
        assert keys.seen == {(ALICE.user_id, "k")}
        keys.seen.clear()
        with pytest.raises(IdempotencyConflict):
            await world.submit(idempotency_key="k", body_sha256="another")


@pytest.mark.parametrize(("gate", "refusal"), [(Gate.OPEN, QueueFull), (Gate.DRAINING, Draining)])
async def test_who_repeats_himself_is_refused_no_place(folder: Path, gate: Gate, refusal: type[Exception]) -> None:
    keys = Told()
    capacity = replace(CAPACITY, running=1, queued=1, queued_per_project=1)
    async with a_world(folder, capacity=capacity, seen_keys=keys) as world:
        await world.start()
        first = await world.submit("wait go", idempotency_key="k")
        await world.submit("wait go")
        await world.until_quiet()
        await world.queue.set_gate(gate)
        with pytest.raises(refusal):
            await world.submit("wait go", idempotency_key="new")
        keys.seen.clear()
        assert await world.submit("wait go", idempotency_key="k") == first
        keys.seen.clear()
        with pytest.raises(IdempotencyConflict):
            await world.submit("wait go", idempotency_key="k", body_sha256="another")


async def test_every_key_is_looked_up_while_nobody_remembers_any() -> None:
    clock, shared = ManualClock(), Told()
    keys = FallbackSeenKeys(shared, clock)
    assert await keys.add(ALICE.user_id, "a")
    shared.gone = True
    with capture_logs() as logs:
        assert [await keys.add(ALICE.user_id, each) for each in "bcd"] == [False] * 3
        assert shared.asked == 2, "it is left alone for a while"
        shared.gone = False
        clock.advance(ASK_AGAIN_S)
        assert [await keys.add(ALICE.user_id, each) for each in "ae"] == [False, True]
    assert [entry["event"] for entry in logs] == [
        "idempotency.looks_every_key_up",
        "idempotency.knows_new_keys_again",
    ]
