"""The wall clock is set, or the store fails for long: no attempt is taken for lost that this process holds."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtape.application import retrying, sweeping
from runtape.application.retrying import persistently
from runtape.ports.errors import Permanent, Transient
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import Change, Durability
from tests.application.world import a_world
from tests.builders import EXECUTION, requested
from tests.contract.embedded.basic import quick_place

HOUR_S = 3600.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture(params=[True, False], ids=["fused", "stepwise"])
def fused(request: pytest.FixtureRequest) -> bool:
    return request.param


async def test_attempt_whose_lease_has_run_out_by_a_jump_alone_goes_on(folder: Path, fused: bool) -> None:
    async with a_world(folder, fused=fused) as world:
        await world.start()
        execution_id = await world.submit("print a\nwait go\nprint b")
        await world.until_started(PodKey(execution_id, 1))
        world.clock.jump(HOUR_S)
        await world.sweeper.sweep()
        world.pods.let("go")
        execution = await world.until_stored(execution_id)
        assert (execution.status, execution.attempt) == ("completed", 1)
        assert world.pods.started == [PodKey(execution_id, 1)]


async def test_end_that_cannot_be_stored_for_long_is_stored_in_the_end(
    folder: Path, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the lease has time for, and more often than anybody would count."""
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.0)
    refused = 0

    class Full:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def commit(self, changes: Any, handled_by: Any = frozenset()) -> None:
            nonlocal refused
            ends = any(change.document.outcome is not None for change in changes if hasattr(change.document, "outcome"))
            if ends and refused < 100:
                refused += 1
                raise Transient("disk full")
            await self.inner.commit(changes, handled_by)

    async with a_world(folder, fused=fused, wrap=lambda s: replace(s, unit_of_work=Full(s.unit_of_work))) as world:
        await world.start()
        execution_id = await world.submit("print a")

        async def tried() -> bool:
            return refused > 10

        await world.until(tried)
        world.clock.advance(60)
        await world.sweeper.sweep()
        execution = await world.until_stored(execution_id)
        assert (refused, execution.status, execution.attempt) == (100, "completed", 1)


async def test_what_was_lost_before_the_clock_was_set_back_is_found_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "SWEEP_INTERVAL_S", 0.0)
    async with a_world(folder) as world:
        await world.start()
        world.tasks.spawn(world.sweeper.run(), "sweep")
        lost = Change(document=requested(), expected_version=0, messages=(), durability=Durability.POWER)
        await world.stores.unit_of_work.commit([lost])
        world.clock.jump(-HOUR_S)
        assert (await world.until_stored(EXECUTION)).status == "completed"


async def test_clock_that_was_set_forward_makes_no_blob_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "SWEEP_INTERVAL_S", 0.0)
    swept = 0

    class Counted:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        async def sweep(self, created_before: Any) -> int:
            nonlocal swept
            count = await self.inner.sweep(created_before)
            swept += 1
            return count

    async with a_world(folder, wrap=lambda s: replace(s, blobs=Counted(s.blobs))) as world:
        sha256 = await world.stores.blobs.put(b"of a request that is under way")
        world.tasks.spawn(world.sweeper.run(), "sweep")
        ahead_s = world.sweeper._ahead_s  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(0)
        world.clock.advance(sweeping.BLOB_INTERVAL.total_seconds() - 1)
        world.clock.jump(2 * HOUR_S)

        async def seen() -> bool:
            return world.sweeper._ahead_s == ahead_s + 2 * HOUR_S  # pyright: ignore[reportPrivateUsage]

        await world.until(seen)
        for _ in range(100):  # the sweep that has seen it goes on to its end
            await world.stores.blobs.ready()
        world.clock.advance(2)
        for _ in range(100):
            await world.stores.blobs.ready()
        assert swept == 0
        assert await world.stores.blobs.get(sha256) is not None
        world.clock.advance(sweeping.BLOB_INTERVAL.total_seconds())

        async def done() -> bool:
            return swept > 0

        await world.until(done)
        assert await world.stores.blobs.get(sha256) is None


async def test_step_is_tried_as_often_as_it_may_and_no_failure_but_a_transient_one_again() -> None:
    tries: list[Exception] = []

    def failing(error: Exception) -> Any:
        async def fail() -> None:
            tries.append(error)
            raise error

        return fail

    with pytest.raises(Transient):
        await persistently(failing(Transient("busy", retry_after_s=0.001)), "test", 2)
    assert len(tries) == 2
    with pytest.raises(Permanent):
        await persistently(failing(Permanent("broken")), "test")
    assert len(tries) == 3
