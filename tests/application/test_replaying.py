"""Replay sessions carried out in one process, next to the handlers that must not mind them."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from runtape.application import replay_runner
from runtape.domain.errors import NotFound, SessionStateConflict
from runtape.domain.events import EXECUTION_EVENTS, POD_COMMANDS, Message
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import Status
from runtape.domain.replay import Pace, ReplaySession, ReplaySessionId, Selection, SessionStatus, Target
from runtape.ports.errors import Transient
from runtape.ports.events import StoredEvent
from runtape.ports.log import Delivery
from runtape.ports.replay import EventSlice, EventSource, ReplayedMessage, ReplayFiles, ReplaySessionStore
from tests.application.world import PATIENCE_S, World, a_world
from tests.clocks import ManualClock
from tests.contract.suites.stores import ARCHIVAL, Stores

EVERYTHING = Selection()
AT_ONCE = Pace()
PER_RUN = 5


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_runner, "SHORTEST_PAUSE_S", 0.0)
    monkeypatch.setattr(replay_runner, "FAILURE_PAUSE_S", 0.0)


async def begun(world: World) -> None:
    await world.start()
    world.tasks.spawn(world.replay_runner.run(), "replay.run")


async def runs(world: World, count: int) -> list[ExecutionId]:
    ids = [await world.submit(f"print {number}") for number in range(count)]
    for each in ids:
        await world.until_stored(each)
    await world.until_quiet()
    return ids


async def until_status(world: World, session_id: ReplaySessionId, *wanted: SessionStatus) -> ReplaySession:
    async def reached() -> bool:
        return (await world.replays.get(session_id)).status in wanted

    await world.until(reached)
    return await world.replays.get(session_id)


async def until_done(world: World, session_id: ReplaySessionId, count: int) -> ReplaySession:
    async def reached() -> bool:
        return (await world.replays.get(session_id)).done >= count

    await world.until(reached)
    return await world.replays.get(session_id)


async def until_taken_up(world: World, session: ReplaySession) -> None:
    """Wait until a runner goes on with a session, whose pace it counts from then."""

    async def taken_up() -> bool:
        return (await world.replays.get(session.id)).version > session.version

    await world.until(taken_up)


async def replayed(
    world: World, target: Target, selection: Selection = EVERYTHING, pace: Pace = AT_ONCE
) -> ReplaySession:
    session = await world.replays.create("admin", target, selection, pace, started=True)
    return await until_status(world, session.id, SessionStatus.COMPLETED, SessionStatus.FAILED)


async def deliveries(world: World) -> list[tuple[Message, str | None]]:
    """Return what the log holds, with who has replayed it."""
    found: list[tuple[Message, str | None]] = []
    marker = await world.submit("print end")
    await world.until_stored(marker)
    async with asyncio.timeout(PATIENCE_S):
        async for delivery in world.stores.log.consume(f"test-{marker}", (EXECUTION_EVENTS, POD_COMMANDS)):
            assert isinstance(delivery, Delivery)
            if delivery.message.execution_id == marker:
                break
            found.append((delivery.message, delivery.replayed_by))
    return found


async def copies(world: World, session: ReplaySession) -> list[str]:
    return [message.id for message, replayed_by in await deliveries(world) if replayed_by == session.id]


async def file_of(world: World, session: ReplaySession) -> list[str]:
    """Return the ids in the session's file."""
    data = b"".join([part async for part in world.replays.read_file(session)(0, session.file_bytes)])
    return [line.split(b'"')[3].decode() for line in data.splitlines()]


class Wrapped:
    """A port whose calls a test looks at or lets fail."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def wrapping(**parts: type[Wrapped]) -> Any:
    def wrap(stores: Stores) -> Stores:
        wrapped = {name: cast(Any, kind(getattr(stores.replay, name))) for name, kind in parts.items()}
        return replace(stores, replay=replace(stores.replay, **wrapped))

    return wrap


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "stepwise"])
class TestToTheLog:
    async def test_nothing_that_has_ended_runs_again_or_changes(self, tmp_path: Path, fused: bool) -> None:
        async with a_world(tmp_path, fused=fused) as world:
            await begun(world)
            ids = await runs(world, 6)
            before = [await world.get(each) for each in ids]
            session = await replayed(world, Target.LOG)
            assert (session.status, session.replayed, session.skipped) == ("completed", 24, 6)
            await world.until_quiet()
            assert [await world.get(each) for each in ids] == before
            assert len(world.pods.started) == 6
            published = await copies(world, session)
            assert sorted(published) == sorted(f"{each}.{version}" for each in ids for version in (1, 2, 3, 4))
            assert len(world.pods.started) == 7

    async def test_nothing_that_waits_or_runs_is_disturbed(self, tmp_path: Path, fused: bool) -> None:
        async with a_world(tmp_path, fused=fused) as world:
            await begun(world)
            ids = [await world.submit("print a\nwait go") for _ in range(6)]  # two more than there are places

            async def places_are_taken() -> bool:  # by whichever of them: their requests are handled side by side
                return [(await world.get(each)).status for each in ids].count(Status.RUNNING) == 4

            await world.until(places_are_taken)
            before = [await world.get(each) for each in ids]
            session = await replayed(world, Target.LOG)
            assert session.skipped == 4
            assert [await world.get(each) for each in ids] == before
            world.pods.let("go")
            for each in ids:
                execution = await world.until_stored(each)
                assert (execution.attempt, execution.status) == (1, "completed")
            assert len(world.pods.started) == 6


class TestSessions:
    async def test_what_happens_after_it_was_made_is_not_part_of_it(self, tmp_path: Path) -> None:
        async with a_world(tmp_path) as world:
            await begun(world)
            await runs(world, 2)
            session = await world.replays.create("admin", Target.FILE, EVERYTHING, AT_ONCE)
            assert session.preview.total == 2 * PER_RUN
            await runs(world, 1)
            await world.replays.start(session.id)
            session = await until_status(world, session.id, SessionStatus.COMPLETED)
            assert (session.done, len(await file_of(world, session))) == (10, 10)

    async def test_it_takes_the_first_events_up_to_its_bound(self, tmp_path: Path) -> None:
        async with a_world(tmp_path) as world:
            await begun(world)
            ids = await runs(world, 3)
            selection = Selection(types=("execution.requested",), max_events=2)
            session = await replayed(world, Target.FILE, selection)
            assert session.preview.total == 2
            assert await file_of(world, session) == [f"{each}.1" for each in ids[:2]]

    async def test_nothing_selected_is_done_at_once(self, tmp_path: Path) -> None:
        async with a_world(tmp_path) as world:
            await begun(world)
            session = await replayed(world, Target.FILE, Selection(execution_id=ExecutionId("nobody")))
            assert (session.status, session.done, session.file_bytes) == ("completed", 0, 0)

    async def test_events_that_are_gone_by_then_are_skipped(self, tmp_path: Path) -> None:
        async with a_world(tmp_path) as world:
            await begun(world)
            ids = await runs(world, 3)
            session = await world.replays.create("admin", Target.FILE, EVERYTHING, AT_ONCE)
            await world.stores.executions.delete(ids[2], ARCHIVAL)
            await world.replays.start(session.id)
            session = await until_status(world, session.id, SessionStatus.COMPLETED)
            assert (session.replayed, session.skipped) == (10, 5)
            assert session.faults[-1].reason == "5 events that were counted are no longer in the log"

    async def test_many_sessions_take_turns(self, tmp_path: Path) -> None:
        async with a_world(tmp_path) as world:
            await begun(world)
            await runs(world, 3)
            sessions = [
                await world.replays.create("admin", Target.FILE, EVERYTHING, AT_ONCE, started=True) for _ in range(5)
            ]
            for session in sessions:
                ended = await until_status(world, session.id, SessionStatus.COMPLETED)
                assert len(await file_of(world, ended)) == 15

    async def test_what_does_not_exist_cannot_be_asked_for(self, tmp_path: Path) -> None:
        async with a_world(tmp_path) as world:
            for ask in (world.replays.get, world.replays.start, world.replays.delete):
                with pytest.raises(NotFound):
                    await ask(ReplaySessionId("nobody"))

    async def test_what_runs_cannot_be_removed(self, tmp_path: Path) -> None:
        async with a_world(tmp_path) as world:
            await runs_without_runner(world)
            session = await world.replays.create("admin", Target.FILE, EVERYTHING, AT_ONCE, started=True)
            with pytest.raises(SessionStateConflict):
                await world.replays.delete(session.id)
            await world.replays.cancel(session.id, "admin")
            await world.replays.delete(session.id)
            with pytest.raises(NotFound):
                await world.replays.get(session.id)


async def runs_without_runner(world: World) -> list[ExecutionId]:
    await world.start()
    return await runs(world, 2)


class TestFailures:
    async def test_a_step_that_fails_for_a_while_is_done_again_and_repeats_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replay_runner, "BATCH", 7)

        class Flaky(Wrapped):
            """Every step fails twice: before it is committed, and after that, when nobody knows."""

            tries: ClassVar[Counter[tuple[str, int]]] = Counter()

            async def commit(
                self, session: ReplaySession, expected_version: int, again: Sequence[ReplayedMessage] = ()
            ) -> None:
                step = (session.id, session.done)
                Flaky.tries[step] += 1
                if session.done and Flaky.tries[step] == 1:
                    raise Transient("before")
                await cast(ReplaySessionStore, self.inner).commit(session, expected_version, again)
                if session.done and Flaky.tries[step] == 2:
                    raise Transient("after")

        async with a_world(tmp_path, wrap=wrapping(sessions=Flaky)) as world:
            await begun(world)
            await runs(world, 6)
            expected = [message.id for message, _ in await deliveries(world)]
            session = await replayed(world, Target.FILE, Selection(max_events=30))
            assert Flaky.tries[session.id, 7] > 2
            assert await file_of(world, session) == expected
            session = await replayed(world, Target.LOG, Selection(max_events=30))
            published = await copies(world, session)
            assert published == [each for each in expected if ".create." not in each]

    async def test_a_disk_that_fails_for_a_while_costs_time_alone(self, tmp_path: Path) -> None:
        class Full(Wrapped):
            left = 5

            async def write(self, session_id: ReplaySessionId, at_bytes: int, data: bytes) -> None:
                if Full.left:
                    Full.left -= 1
                    raise Transient("no space left on device")
                await cast(ReplayFiles, self.inner).write(session_id, at_bytes, data)

        async with a_world(tmp_path, wrap=wrapping(files=Full)) as world:
            await begun(world)
            await runs(world, 2)
            session = await replayed(world, Target.FILE)
            assert (session.status, len(await file_of(world, session))) == ("completed", 10)

    async def test_a_defect_ends_its_session_alone_and_is_told(self, tmp_path: Path) -> None:
        class Broken(Wrapped):
            async def write(self, session_id: ReplaySessionId, at_bytes: int, data: bytes) -> None:
                raise RuntimeError("a defect")

        async with a_world(tmp_path, wrap=wrapping(files=Broken)) as world:
            await begun(world)
            await runs(world, 2)
            session = await replayed(world, Target.FILE)
            assert (session.status, session.reason) == ("failed", "RuntimeError: a defect")
            assert (await replayed(world, Target.DRY_RUN)).status == "completed"

    async def test_what_cannot_be_read_is_told_and_not_published(self, tmp_path: Path) -> None:
        class Garbled(Wrapped):
            async def read(self, selection: Selection, after: str, until: str, limit: int) -> EventSlice:
                part = await cast(EventSource, self.inner).read(selection, after, until, limit)
                return replace(part, events=[replace(part.events[0], body=b"{"), *part.events[1:]])

        async with a_world(tmp_path, wrap=wrapping(source=Garbled)) as world:
            await begun(world)
            ids = await runs(world, 1)
            for target in (Target.LOG, Target.FILE, Target.DRY_RUN):
                session = await replayed(world, target)
                assert (session.status, session.failed, session.done) == ("completed", 1, PER_RUN)
                assert session.faults[0].subject == f"{ids[0]}.1"


class TestPace:
    async def test_events_wait_for_their_time(self, tmp_path: Path) -> None:
        clock = ManualClock()
        async with a_world(tmp_path, clock=clock) as world:
            await begun(world)
            for seconds in (0, 4, 60):
                clock.advance(seconds)
                await runs(world, 1)
            session = await world.replays.create("admin", Target.FILE, EVERYTHING, Pace(2.0), started=True)
            session = await until_done(world, session.id, 5)
            for seconds, count in ((1.9, 5), (0.1, 10), (4.9, 10), (0.1, 15)):  # 60 s are cut to 5
                clock.advance(seconds)
                world.replay_runner.wake(session.id)
                await replayed(world, Target.DRY_RUN)
                session = await until_done(world, session.id, count)
                assert session.done == count
            assert (await until_status(world, session.id, SessionStatus.COMPLETED)).status == "completed"

    async def test_what_changes_before_it_waits_is_not_waited_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = ManualClock()
        pacing = replay_runner._Pacing  # pyright: ignore[reportPrivateUsage]
        due = pacing.due
        async with a_world(tmp_path, clock=clock) as world:

            def changed_once_seen(self: Any, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
                found = due(self, events)
                if self.wait_s > 0:
                    clock.advance(3600)
                    world.replay_runner.wake(session.id)
                return found

            monkeypatch.setattr(pacing, "due", changed_once_seen)
            monkeypatch.setattr(replay_runner, "LOOK_INTERVAL_S", 3600.0)
            monkeypatch.setattr(replay_runner, "PAUSE_PER_STEP", 0.0)  # else as long as three times the hour
            await begun(world)
            for _ in range(2):
                await runs(world, 1)
                clock.advance(3600)
            pace = Pace(1.0, preserve_timestamps=True)
            session = await world.replays.create("admin", Target.FILE, EVERYTHING, pace)
            await world.replays.start(session.id)
            assert (await until_status(world, session.id, SessionStatus.COMPLETED)).done == 10

    async def test_a_pause_is_heard_while_it_waits(self, tmp_path: Path) -> None:
        clock = ManualClock()
        async with a_world(tmp_path, clock=clock) as world:
            await begun(world)
            await runs(world, 1)
            clock.advance(3600)
            await runs(world, 1)
            slow = Pace(0.1, preserve_timestamps=True)
            session = await world.replays.create("admin", Target.FILE, EVERYTHING, slow, started=True)
            session = await until_done(world, session.id, 5)
            assert (await world.replays.pause(session.id)).done == 5
            await world.replays.resume(session.id)
            clock.advance(36_000)
            world.replay_runner.wake(session.id)
            assert (await world.replays.cancel(session.id, "admin")).status == "cancelled"


class LeapingClock(ManualClock):
    """One by which every step takes an hour, as by that of a process that stood still, once it `leaps`."""

    leaps = False

    def monotonic_s(self) -> float:
        if self.leaps:
            self.advance(3600)
        return super().monotonic_s()


class TestStandstill:
    async def test_sessions_go_on_at_once_after_a_step_in_which_the_process_stood_still(self, tmp_path: Path) -> None:
        clock = LeapingClock()
        async with a_world(tmp_path, clock=clock) as world:
            await begun(world)
            await runs(world, 1)
            clock.leaps = True
            for _ in range(2):
                assert (await replayed(world, Target.DRY_RUN)).status is SessionStatus.COMPLETED


class TestRestart:
    async def test_what_ran_goes_on_and_what_was_paused_stays_so(self, tmp_path: Path) -> None:
        clock = ManualClock()
        async with a_world(tmp_path, clock=clock) as world:
            await begun(world)
            await runs(world, 1)
            clock.advance(3600)
            await runs(world, 1)
            slow = Pace(1.0, preserve_timestamps=True)
            live, paused = [
                await world.replays.create("admin", Target.FILE, EVERYTHING, slow, started=True) for _ in range(2)
            ]
            await until_done(world, live.id, 5)
            await until_done(world, paused.id, 5)
            await world.replays.pause(paused.id)
        async with a_world(tmp_path, clock=clock, owner="worker-2") as world:
            left = await world.replays.get(live.id)
            assert (left.done, left.status) == (5, "running")
            await begun(world)
            await until_taken_up(world, left)
            await replayed(world, Target.DRY_RUN)
            clock.advance(3600)
            world.replay_runner.wake(live.id)
            live = await until_status(world, live.id, SessionStatus.COMPLETED)
            assert len(set(await file_of(world, live))) == len(await file_of(world, live)) == 10
            assert (await world.replays.get(paused.id)).done == 5
            await until_taken_up(world, await world.replays.resume(paused.id))
            clock.advance(3600)
            world.replay_runner.wake(paused.id)
            paused = await until_status(world, paused.id, SessionStatus.COMPLETED)
            assert len(await file_of(world, paused)) == 10
