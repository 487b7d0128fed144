"""The worker and the monitor: leases, output on the tape, and what they do when a part fails them."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from runtape.application import retrying, running
from runtape.application.flow import execution_change
from runtape.application.streaming import Cursor, Frame
from runtape.domain import execution as executions
from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from runtape.domain.tape import Record
from runtape.ports.errors import Permanent, SandboxUnavailable, Transient
from runtape.ports.live import OutputNudge
from runtape.ports.pod_runtime import PodEnded, PodKey, PodRuntime, PodSpec, PodStart
from tests.application.world import ALICE, World, a_world
from tests.builders import EXITED
from tests.contract.embedded.basic import quick_place


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(running, "FLUSH_INTERVAL_S", 0.0)


class Wrapped:
    """A port whose methods a test replaces one by one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def test_a_start_that_fails_for_a_moment_is_tried_again(folder: Path) -> None:
    calls: list[int] = []

    class Hesitant(Wrapped):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            calls.append(attempt)
            if len(calls) < 3:
                raise Transient("busy")
            await self.inner.start(spec, attempt, lease_expires_at)

    async with a_world(folder, wrap_pods=Hesitant) as world:
        await world.start()
        assert (await world.until_stored(await world.submit())).attempt == 1
        assert calls == [1, 1, 1]


async def test_a_reader_is_told_before_the_output_that_the_pod_was_made_for_its_program(folder: Path) -> None:
    go = asyncio.Event()

    class Slow(Wrapped):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> PodStart:
            await go.wait()
            await self.inner.start(spec, attempt, lease_expires_at)
            return PodStart.COLD

    async with a_world(folder, wrap_pods=Slow) as world:
        await world.start()
        execution_id = await world.submit("print a")
        reading = asyncio.ensure_future(world.frames(execution_id))
        await asyncio.sleep(0)
        go.set()
        frames = await reading
        assert [frame.body for frame in frames if frame.cursor is None] == [
            f'{{"event_type":"execution_pod","execution_id":"{execution_id}","attempt":1,"start":"cold"}}'.encode()
        ]
        assert [frame.event for frame in frames if frame.cursor is None or frame.event == "output"] == [None, "output"]


@pytest.mark.parametrize("error", [Transient("busy"), SandboxUnavailable("no user namespaces")])
async def test_a_start_that_keeps_failing_is_our_failure_after_three_attempts(folder: Path, error: Exception) -> None:
    class Broken(Wrapped):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            raise error

    async with a_world(folder, wrap_pods=Broken) as world:
        await world.start()
        execution = await world.until_stored(await world.submit())
        assert execution.outcome is not None
        assert (execution.status, execution.outcome.reason, execution.attempt) == ("failed", "start_failed", 3)
        await world.until_quiet()


async def test_a_tape_that_cannot_be_written_for_a_moment_loses_nothing(folder: Path) -> None:
    failing = [1, 2, 3]

    class Stuttering(Wrapped):
        async def append(self, key: PodKey, records: Sequence[Record]) -> None:
            if failing:
                failing.pop()
                raise Transient("disk full")
            await self.inner.append(key, records)

    async with a_world(folder, wrap=lambda s: replace(s, tape=Stuttering(s.tape))) as world:
        await world.start()
        execution_id = await world.submit("print a\nprint b")
        assert (await world.until_stored(execution_id)).status == "completed"
        assert await world.printed(execution_id) == b"a\nb\n"


async def test_a_tape_that_stays_unwritable_ends_each_attempt_and_the_loss_is_told(folder: Path) -> None:
    class Broken(Wrapped):
        async def append(self, key: PodKey, records: Sequence[Record]) -> None:
            raise Permanent("the tape was made by a newer version")

    async with a_world(folder, wrap=lambda s: replace(s, tape=Broken(s.tape))) as world:
        await world.start()
        execution = await world.until_stored(await world.submit("print a\nwait never"))
        assert execution.outcome is not None
        assert (execution.outcome.kind, execution.outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "output_lost")
        assert (execution.attempt, execution.last_seq) == (3, 0)
        await world.until_quiet()
        assert await world.pods.list() == []


async def test_a_worker_that_breaks_while_it_starts_does_not_hold_its_lease_for_ever(folder: Path) -> None:
    class Forgetful(Wrapped):
        broken = False

        async def get(self, execution_id: Any) -> Any:
            if self.broken:
                self.broken = False
                raise RuntimeError("broken")
            return await self.inner.get(execution_id)

    class Breaking(Wrapped):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            await self.inner.start(spec, attempt, lease_expires_at)
            if attempt == 1:
                store.broken = True

    def wrap(stores: Any) -> Any:
        nonlocal store
        store = Forgetful(stores.executions)
        return replace(stores, executions=store)

    store = Forgetful(None)
    async with a_world(folder, wrap=wrap, wrap_pods=Breaking, expect_failures=True) as world:
        await world.start()
        execution_id = await world.submit("print a\nwait go")

        async def failed() -> bool:
            return bool(world.failures)

        await world.until(failed)
        assert [str(failure) for failure in world.failures] == ["broken"]
        world.clock.advance(36)
        await world.sweeper.sweep()
        world.pods.let("go")  # not before: the end of the first attempt, whose output nobody took, is none to wait for
        assert (await world.until_stored(execution_id)).status == "completed"


async def test_a_look_at_the_document_that_fails_for_a_moment_loses_no_output(folder: Path) -> None:
    """It is looked at once the program runs: giving up there would leave what it prints to nobody."""

    class Hesitant(Wrapped):
        failures = 0

        async def get(self, execution_id: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise Transient("busy")
            return await self.inner.get(execution_id)

    class Starting(Wrapped):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            await self.inner.start(spec, attempt, lease_expires_at)
            store.failures = 2

    def wrap(stores: Any) -> Any:
        nonlocal store
        store = Hesitant(stores.executions)
        return replace(stores, executions=store)

    store = Hesitant(None)
    async with a_world(folder, wrap=wrap, wrap_pods=Starting) as world:
        await world.start()
        execution = await world.until_stored(await world.submit("print a"))
        assert (execution.status, execution.attempt, execution.last_seq) == ("completed", 1, 1)


async def test_a_program_whose_lease_ran_out_before_its_start_is_not_started(folder: Path) -> None:
    """The process stood still in between: somebody else may run the next attempt by now."""

    class Standing(Wrapped):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            if attempt == 1:
                world.clock.advance(31)
                raise Transient("busy")
            await self.inner.start(spec, attempt, lease_expires_at)

    async with a_world(folder, wrap_pods=Standing) as world:
        await world.start()
        assert (await world.until_stored(await world.submit())).attempt == 2
        assert [key.attempt for key in world.pods.started] == [2]


async def test_an_end_whose_output_nobody_recorded_is_a_lost_attempt(folder: Path) -> None:
    """The recorder is gone, and with it the bytes: another attempt prints them again."""

    class Deaf(Wrapped):
        async def append(self, key: PodKey, records: Sequence[Record]) -> None:
            if key.attempt == 1:
                raise RuntimeError("the recorder breaks")
            await self.inner.append(key, records)

    async with a_world(folder, wrap=lambda s: replace(s, tape=Deaf(s.tape)), expect_failures=True) as world:
        await world.start()
        execution = await world.until_stored(await world.submit("print a"))
        assert (execution.status, execution.attempt) == ("completed", 2)
        assert await world.printed(execution.id, 2) == b"a\n"


async def test_pods_whose_removal_or_kill_was_lost_are_looked_after(folder: Path) -> None:
    class Losing(Wrapped):
        loses = True

        async def remove(self, key: PodKey) -> None:
            if not self.loses:
                await self.inner.remove(key)

        async def kill(self, key: PodKey) -> None:
            if not self.loses:
                await self.inner.kill(key)

    def wrap(pods: Any) -> Any:
        nonlocal runtime
        runtime = Losing(pods)
        return runtime

    runtime = Losing(None)
    async with a_world(folder, wrap_pods=wrap) as world:
        await world.start()
        over, running, cancelled = [await world.submit(script) for script in ("print a", "wait go", "wait never")]
        await world.until_stored(over)
        await world.until_started(PodKey(cancelled, 1))
        await world.submissions.cancel(ALICE, cancelled, None)
        await world.until_quiet()
        assert set(await world.pods.list()) == {PodKey(each, 1) for each in (over, running, cancelled)}
        runtime.loses = False
        await world.worker.tidy_up()
        assert (await world.until_stored(cancelled)).status == "cancelled"
        await world.until_quiet()
        assert await world.pods.list() == [PodKey(running, 1)]


async def test_reader_that_is_ahead_of_the_tapes_summary_is_sent_nothing_twice(folder: Path) -> None:
    """What a stream has sent it has sent, whatever a store that lags says when the stream catches up."""

    class Counting(Wrapped):
        looked = 0

        async def get(self, execution_id: Any) -> Any:
            self.looked += 1
            return await self.inner.get(execution_id)

    class Lagging(Wrapped):
        lags = True

        async def summary(self, key: PodKey) -> Any:
            summary = await self.inner.summary(key)
            return replace(summary, last_seq=min(summary.last_seq, 1)) if self.lags else summary

    def wrap(stores: Any) -> Any:
        nonlocal tape
        tape = Lagging(stores.tape)
        return replace(stores, tape=tape, executions=Counting(stores.executions))

    tape = Lagging(None)
    async with a_world(folder, wrap=wrap) as world:
        await world.start()
        execution_id = await world.submit("print a\nprint b\nprint c\nwait go\nprint d")
        stream, subscription = world.streams.open(execution_id, Cursor())
        frames: list[Frame] = []

        async def follow() -> None:
            async for batch in stream.batches():
                frames.extend(batch)

        async def printed_three() -> bool:
            return len([frame for frame in frames if frame.event == "output"]) >= 3

        following = asyncio.create_task(follow())
        await world.until(printed_three)
        store: Any = world.stores.executions
        looked = store.looked
        world.feed.publish(execution_id, OutputNudge(1, 99, 99, (b"{}",)))  # some were lost: it catches up

        async def caught_up() -> bool:
            return store.looked > looked

        await world.until(caught_up)
        await world.until_quiet()
        tape.lags = False
        world.pods.let("go")
        await asyncio.wait_for(following, 10)
        subscription.close()
        assert [frame.event for frame in frames if frame.event in ("output", "gap")] == ["output"] * 4
        assert [frame.cursor.seq for frame in frames if frame.event == "output" and frame.cursor] == [1, 2, 3, 4]


class TestLeases:
    @pytest.fixture
    async def world(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
        monkeypatch.setattr(running, "LEASE_EXTENSIONS", 10**9)
        self.extended: list[tuple[PodKey, datetime]] = []
        extended = self.extended

        class Noting(Wrapped):
            async def extend(self, key: PodKey, lease_expires_at: datetime) -> None:
                extended.append((key, lease_expires_at))

        def wrap(pods: PodRuntime) -> Any:
            return Noting(pods)

        async with a_world(folder, wrap_pods=wrap) as world:
            await world.start()
            yield world

    async def test_live_pods_have_their_leases_extended_in_the_store_first(self, world: World) -> None:
        execution_id = await world.submit("wait go")
        await world.until_started(PodKey(execution_id, 1))
        world.clock.advance(20)
        world.tasks.spawn(world.worker.extend_leases(), "leases")

        async def told() -> bool:
            return bool(self.extended)

        await world.until(told)
        lease = (await world.get(execution_id)).lease
        assert lease is not None
        assert self.extended[0] == (PodKey(execution_id, 1), lease.expires_at)
        assert lease.expires_at == world.clock.now() + running.LEASE_TTL

    async def test_a_pod_whose_lease_was_lost_is_killed(self, world: World) -> None:
        execution_id = await world.submit("wait never")
        first = PodKey(execution_id, 1)
        await world.until_started(first)
        running_now = await world.get(execution_id)
        lost = executions.interrupt(running_now, 1, "lease_expired", 0, world.clock.now())
        # As if another process had taken the attempt for dead: nobody here removes its pod.
        await world.stores.unit_of_work.commit([replace(execution_change(running_now, lost), messages=())])
        world.tasks.spawn(world.worker.extend_leases(), "leases")

        async def killed() -> bool:
            return not world.worker._live  # pyright: ignore[reportPrivateUsage]

        await world.until(killed)
        assert self.extended == []


async def test_a_kill_that_came_before_the_pod_was_there_is_made_up_for(folder: Path) -> None:
    """Cancelled while the pod is being made: the command to kill finds nothing."""
    gate = asyncio.Event()
    killed: list[list[PodKey]] = []

    class Late(Wrapped):
        async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
            await gate.wait()
            await self.inner.start(spec, attempt, lease_expires_at)

        async def kill(self, key: PodKey) -> None:
            killed.append(list(await self.inner.list()))
            await self.inner.kill(key)

    async with a_world(folder, wrap_pods=Late) as world:
        await world.start()
        execution_id = await world.submit("wait never")
        await world.submissions.cancel(ALICE, execution_id, None)

        async def missed() -> bool:
            return killed == [[]]

        await world.until(missed)
        gate.set()
        assert (await world.until_stored(execution_id)).status == "cancelled"


async def test_an_end_that_is_told_twice_or_late_changes_nothing(folder: Path) -> None:
    async with a_world(folder) as world:
        await world.start()
        execution_id = await world.submit("print a")
        execution = await world.until_stored(execution_id)
        outcome = Outcome(kind=OutcomeKind.SIGNALLED)
        late = PodEnded(key=PodKey(execution_id, 1), outcome=outcome, usage=Usage(), last_seq=9)
        await asyncio.gather(*(world.monitor.finish(late) for _ in range(5)))
        await world.monitor.finish(replace(late, key=PodKey(execution_id, 2)))
        await world.monitor.interrupt(execution_id, 1, "worker_lost")
        assert await world.get(execution_id) == execution
        assert execution.outcome == EXITED


async def test_the_end_waits_for_the_last_output(folder: Path) -> None:
    """The pod has ended and its last records are still on their way to the tape."""
    gate = asyncio.Event()

    class Slow(Wrapped):
        async def append(self, key: PodKey, records: Sequence[Record]) -> None:
            await gate.wait()
            await self.inner.append(key, records)

    for fused in (True, False):
        gate.clear()
        with quick_place() as place:
            async with a_world(place, fused=fused, wrap=lambda s: replace(s, tape=Slow(s.tape))) as world:
                await world.start()
                execution_id = await world.submit("print a\nprint b")
                await world.until_started(PodKey(execution_id, 1))
                for _ in range(20):
                    await world.stores.blobs.ready()
                assert (await world.get(execution_id)).result is None
                gate.set()
                execution = await world.until_stored(execution_id)
                assert execution.result is not None
                assert (execution.result.stdout_bytes, execution.last_seq) == (4, 2)
