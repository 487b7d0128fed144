"""Where pods are made is away: starts wait for it under their leases, and no run fails or is lost for that."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from runtape.application import retrying, running
from runtape.application.flow import execution_change
from runtape.domain import execution as executions
from runtape.domain.execution import GIVEN_BACK, MAX_ATTEMPTS
from runtape.domain.ids import ExecutionId
from runtape.ports.errors import Permanent, Transient, Unavailable
from runtape.ports.pod_runtime import PodKey, PodSpec
from tests.application.world import ALICE, CAPACITY, World, a_world
from tests.contract.embedded.basic import quick_place

LONG_S = 3600.0
WITHIN_S = 5.0
"""What is to happen at once does, however slow the machine is."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.0)


class Away:
    """Pods that cannot be made while `away`, and are asked for again after `pause_s`."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.inner: Any = None
        self.away = True
        self.pause_s = pause_s
        self.asked: list[tuple[PodKey, datetime]] = []

    def __call__(self, inner: Any) -> Any:
        self.inner = inner
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
        self.asked.append((PodKey(spec.execution_id, attempt), lease_expires_at))
        if self.away:
            raise Unavailable("the cluster is away", retry_after_s=self.pause_s)
        await self.inner.start(spec, attempt, lease_expires_at)

    async def until_asked(self, world: World, times: int = 1) -> None:
        async def enough() -> bool:
            return len(self.asked) >= times

        await world.until(enough)


async def test_what_every_start_meets_alike_is_waited_for_longer_than_a_start_is_tried(folder: Path) -> None:
    pods = Away()
    with capture_logs() as logs:
        async with a_world(folder, wrap_pods=pods) as world:
            await world.start()
            first, second = await world.submit("print a"), await world.submit("print b")
            await pods.until_asked(world, 8 * running.START_TRIES)
            pods.away = False
            for each in (first, second):
                execution = await world.until_stored(each)
                assert (execution.status, execution.attempt) == ("completed", 1)
            assert len(world.pods.started) == 2
    told = [line for line in logs if line["event"] == "pod.start_waits"]
    assert [(line["log_level"], line["error"]) for line in told] == [("warning", "the cluster is away")], (
        "once in some seconds, by a clock that stands here"
    )
    assert not [line for line in logs if line["event"] == "step.retried"]


async def test_what_is_not_met_by_every_start_is_counted_beside_the_waiting(folder: Path) -> None:
    class Both(Away):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            self.asked.append((PodKey(spec.execution_id, attempt), lease_expires_at))
            raise Unavailable("away") if len(self.asked) % 3 else Transient("busy")

    pods = Both()
    async with a_world(folder, wrap_pods=pods) as world:
        await world.start()
        execution = await world.until_stored(await world.submit())
        assert execution.outcome is not None
        assert (execution.status, execution.outcome.reason, execution.attempt) == ("failed", "start_failed", 3)
        assert len(pods.asked) == 3 * 3 * running.START_TRIES


async def test_no_more_runs_are_taken_on_than_there_are_places(folder: Path) -> None:
    pods = Away()
    async with a_world(folder, wrap_pods=pods) as world:
        await world.start()
        runs = [await world.submit(f"print {number}") for number in range(CAPACITY.running + 3)]
        await pods.until_asked(world, 10 * len(runs))
        assert len({key for key, _ in pods.asked}) == world.worker.busy == CAPACITY.running
        pods.away = False
        for each in runs:
            assert (await world.until_stored(each)).status == "completed"


async def test_a_run_that_is_cancelled_while_it_waits_ends_at_once(folder: Path) -> None:
    pods = Away(LONG_S)
    async with a_world(folder, wrap_pods=pods) as world:
        await world.start()
        execution_id = await world.submit()
        await pods.until_asked(world)
        await world.submissions.cancel(ALICE, execution_id, None)
        async with asyncio.timeout(WITHIN_S):
            execution = await world.until_stored(execution_id)
        assert (execution.status, execution.attempt) == ("cancelled", 1)
        await world.until_quiet()
        assert world.pods.started == [] and not world.worker.busy


async def test_a_run_that_waits_is_cancelled_also_when_the_command_for_it_was_lost(folder: Path) -> None:
    pods = Away(LONG_S)
    async with a_world(folder, wrap_pods=pods) as world:
        await world.start()
        execution_id = await world.submit()
        await pods.until_asked(world)
        waiting = await world.get(execution_id)
        asked = executions.cancel(waiting, "alice", None, world.clock.now())
        await world.stores.unit_of_work.commit([replace(execution_change(waiting, asked), messages=())])
        await world.worker.tidy_up()
        assert (await world.until_stored(execution_id)).status == "cancelled"


class TestLeases:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(running, "LEASE_EXTENSIONS", 10**9)

    async def test_a_start_waits_under_a_lease_that_is_extended(self, folder: Path) -> None:
        pods = Away()
        async with a_world(folder, wrap_pods=pods) as world:
            await world.start()
            world.tasks.spawn(world.worker.extend_leases(), "leases")
            execution_id = await world.submit("print a")
            await pods.until_asked(world)
            for _ in range(10):
                world.clock.advance(20)
                await _extended(world, execution_id)
                await world.sweeper.sweep()
            pods.away = False
            assert (await world.until_stored(execution_id)).attempt == 1
            assert pods.asked[-1][1] == world.clock.now() + running.LEASE_TTL, "its program lasts beyond the first one"

    async def test_a_start_whose_lease_is_lost_waits_no_more(self, folder: Path) -> None:
        pods = Away(LONG_S)
        async with a_world(folder, wrap_pods=pods) as world:
            await world.start()
            execution_id = await world.submit()
            await pods.until_asked(world)
            waiting = await world.get(execution_id)
            lost = executions.interrupt(waiting, 1, "lease_expired", 0, world.clock.now())
            # As if another process had taken the attempt for dead.
            await world.stores.unit_of_work.commit([replace(execution_change(waiting, lost), messages=())])
            world.tasks.spawn(world.worker.extend_leases(), "leases")

            async def given_up() -> bool:
                return not world.worker.busy

            await world.until(given_up)
            assert (await world.get(execution_id)).version == waiting.version + 1

    async def test_a_start_that_waits_while_nobody_extends_its_lease_is_none_of_this_process_any_more(
        self, folder: Path
    ) -> None:
        pods = Away()
        async with a_world(folder, wrap_pods=pods) as world:
            await world.start()
            execution_id = await world.submit()
            await pods.until_asked(world)
            world.clock.advance(running.LEASE_TTL.total_seconds() + 1)
            await world.until_status(execution_id, "running")

            async def begun_again() -> bool:
                return (await world.get(execution_id)).attempt == 2

            await world.until(begun_again)
            pods.away = False
            assert (await world.until_stored(execution_id)).status == "completed"
            assert [key.attempt for key in world.pods.started] == [2]


async def _extended(world: World, execution_id: ExecutionId) -> None:
    async def up_to_date() -> bool:
        lease = (await world.get(execution_id)).lease
        live = world.worker._live[PodKey(execution_id, 1)]  # pyright: ignore[reportPrivateUsage]
        wanted = world.clock.now() + running.LEASE_TTL
        return lease is not None and lease.expires_at == live.expires_at == wanted

    await world.until(up_to_date)


async def test_what_waits_when_its_process_is_to_end_is_given_back_and_runs_elsewhere(folder: Path) -> None:
    pods = Away(LONG_S)
    async with a_world(folder, fused=False, wrap_pods=pods) as world:
        await world.start()
        waits, comes = await world.submit("print a"), await world.submit("print b")
        await pods.until_asked(world, 2)
        await _consume_no_more()
        async with asyncio.timeout(WITHIN_S):
            world.worker.leave()

            async def gone() -> bool:
                return not world.worker.busy

            await world.until(gone)
        for each in (waits, comes):
            execution = await world.get(each)
            assert (execution.status, execution.attempt, execution.history[-1].reason) == ("queued", 1, GIVEN_BACK)
    async with a_world(folder, fused=False, owner="worker-2") as world:
        await world.start(alone=False)
        for each in (waits, comes):
            execution = await world.until_stored(each)
            assert (execution.status, execution.attempt) == ("completed", 2)


async def test_what_has_to_wait_only_after_its_process_was_told_to_end_is_given_back_too(folder: Path) -> None:
    reached, go = asyncio.Event(), asyncio.Event()

    class Late(Away):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            reached.set()
            await go.wait()
            raise Unavailable("away", retry_after_s=LONG_S)

    async with a_world(folder, fused=False, wrap_pods=Late()) as world:
        await world.start()
        execution_id = await world.submit()
        await reached.wait()
        await _consume_no_more()
        world.worker.leave()
        go.set()
        execution = await world.until_status(execution_id, "queued")
        assert execution.history[-1].reason == GIVEN_BACK


async def test_what_comes_to_a_process_that_is_to_end_waits_for_nothing_and_is_no_failure(folder: Path) -> None:
    pods = Away(LONG_S)
    async with a_world(folder, fused=False, wrap_pods=pods) as world:
        await world.start()
        world.worker.leave()
        execution_id = await world.submit()

        async def given_back_often() -> bool:
            return (await world.get(execution_id)).attempt > 2 * MAX_ATTEMPTS

        await world.until(given_back_often)
        pods.away = False
        assert (await world.until_stored(execution_id)).status == "completed"


async def _consume_no_more() -> None:
    """End the consumer of the worker's commands, as a process does that is to end."""
    consuming = [task for task in asyncio.all_tasks() if task.get_name() == running.GROUP]
    assert consuming
    for task in consuming:
        task.cancel()
    await asyncio.gather(*consuming, return_exceptions=True)


async def test_what_waits_is_given_back_although_the_store_is_away_as_well(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = Away(LONG_S)
    async with a_world(folder, fused=False, wrap_pods=pods) as world:
        await world.start()
        execution_id = await world.submit()
        await pods.until_asked(world)
        await _consume_no_more()
        perform, failures = world.flow.perform, [Unavailable("the store is away"), Transient("busy")]

        async def performed(decide: Any) -> Any:
            if failures:
                raise failures.pop()
            return await perform(decide)

        monkeypatch.setattr(world.flow, "perform", performed)
        world.worker.leave()
        execution = await world.until_status(execution_id, "queued")
        assert execution.history[-1].reason == GIVEN_BACK
        assert failures == []


async def test_what_cannot_be_waited_for_fails_as_before(folder: Path) -> None:
    class Broken(Away):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            raise Permanent("no user namespaces")

    async with a_world(folder, wrap_pods=Broken()) as world:
        await world.start()
        execution = await world.until_stored(await world.submit())
        assert execution.outcome is not None and execution.outcome.reason == "start_failed"


async def test_a_pod_that_cannot_be_removed_now_is_told_as_what_is_made_up_for(folder: Path) -> None:
    class Stuck(Away):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            await self.inner.start(spec, attempt, lease_expires_at)

        async def remove(self, key: PodKey) -> None:
            if self.away:
                raise Unavailable("the cluster is away")
            await self.inner.remove(key)

    pods = Stuck()
    with capture_logs() as logs:
        async with a_world(folder, wrap_pods=pods) as world:
            await world.start()
            await world.until_stored(await world.submit())
            await world.until_quiet()
            assert await world.pods.list() != []
            pods.away = False
            await world.worker.tidy_up()
            assert await world.pods.list() == []
    (told,) = [line for line in logs if line["event"] == "pod.not_removed"]
    assert told["log_level"] == "warning" and "tried again within 10 s" in told["then"]


async def test_a_pod_that_cannot_be_removed_keeps_no_other_from_it(folder: Path) -> None:
    class Stuck(Away):
        stuck: PodKey | None = None

        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            await self.inner.start(spec, attempt, lease_expires_at)

        async def remove(self, key: PodKey) -> None:
            if self.away or key == self.stuck:
                raise Permanent("an admission policy")
            await self.inner.remove(key)

    pods = Stuck()
    async with a_world(folder, wrap_pods=pods) as world:
        await world.start()
        for _ in range(3):
            await world.until_stored(await world.submit())
        await world.until_quiet()
        first, second, third = await world.pods.list()
        pods.away, pods.stuck = False, second
        with pytest.raises(Permanent, match="an admission policy"):
            await world.worker.tidy_up()
        assert await world.pods.list() == [second], (first, third)
