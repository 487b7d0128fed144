"""Who is told of which end: once, whatever is told again, and at no cost to a run that went well."""

import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from runtape.adapters.embedded.database import Database
from runtape.application.notifications import Notifications
from runtape.domain.errors import NotFound
from runtape.domain.events import ExecutionEnded, Message
from runtape.domain.execution import Execution, OnInterrupt
from runtape.domain.ids import ExecutionId, NotificationId
from runtape.domain.notification import Notification
from runtape.ports.notifications import NotificationFilter
from tests.application.world import ALICE, World, a_world
from tests.builders import a_principal
from tests.contract.embedded.basic import quick_place

BOB = a_principal("bob")
EVERYTHING = NotificationFilter()


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture(params=[True, False], ids=["fused", "stepwise"])
async def world(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[World]:
    async with a_world(folder, fused=request.param) as world:
        await world.start()
        yield world


async def told(world: World) -> Sequence[Notification]:
    return await world.stores.notifications.list(ALICE.user_id, EVERYTHING, 100, None)


async def ran(world: World, script: str, on_interrupt: OnInterrupt = OnInterrupt.FAIL) -> Execution:
    return await world.until_stored(await world.submit(script, on_interrupt=on_interrupt))


def service(world: World) -> Notifications:
    return Notifications(store=world.stores.notifications, clock=world.clock)


async def end_of(world: World, execution_id: ExecutionId) -> Message:
    """Return the event of the execution's end, as it is in the log."""
    (end,) = [
        each
        for each in await world.messages()
        if isinstance(each, ExecutionEnded) and each.execution_id == execution_id
    ]
    return end


class TestEnds:
    @pytest.mark.parametrize(
        ("script", "subject", "severity"),
        [
            ("end memory_limit", "python 3.11 run failed", "high"),
            ("print x\nfail gone", "python 3.11 run failed", "high"),
            ("end wall_limit", "python 3.11 run timed out", "medium"),
        ],
    )
    async def test_a_bad_end_is_told_to_its_owner(self, world: World, script: str, subject: str, severity: str) -> None:
        execution = await ran(world, script)
        (notification,) = await told(world)
        assert (notification.subject, notification.severity) == (subject, severity)
        assert (notification.execution_id, notification.created_at) == (execution.id, execution.finished_at)
        assert notification.id == execution.event_id(execution.version)
        assert await world.stores.notifications.list(BOB.user_id, EVERYTHING, 100, None) == []

    async def test_only_the_last_attempt_counts(self, world: World) -> None:
        execution = await ran(world, "fail gone", OnInterrupt.RESTART)
        assert execution.attempt == 3
        assert [each.execution_id for each in await told(world)] == [execution.id]

    async def test_other_ends_tell_nothing(self, world: World) -> None:
        for script in ("print 1", "exit 3", ""):
            assert (await ran(world, script)).status == "completed"
        running = await world.submit("wait for-ever")
        await world.until_status(running, "running")
        await world.submissions.cancel(ALICE, running, "enough")
        assert (await world.until_stored(running)).status == "cancelled"
        assert await told(world) == []

    async def test_an_end_that_is_told_again_makes_nothing_and_brings_nothing_back(self, world: World) -> None:
        execution = await ran(world, "end memory_limit")
        end = await end_of(world, execution.id)
        before = await told(world)
        assert len(before) == 1
        await world.flow.handle(world.results.on_ended, end)
        assert await told(world) == before
        await service(world).delete(ALICE, before[0].id)
        await world.flow.handle(world.results.on_ended, end)
        world.clock.advance(100_000)
        await world.sweeper.sweep()
        await world.sweeper.recover(world.owner)
        assert await told(world) == []


class Traced(Database):
    """A database that writes down what its connections execute."""

    statements: list[str]

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.set_trace_callback(Traced.statements.append)
        return connection


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "stepwise"])
async def test_a_run_that_went_well_costs_no_statement(folder: Path, fused: bool) -> None:
    Traced.statements = []
    async with a_world(folder, fused=fused, database_type=Traced) as world:
        await world.start()
        Traced.statements.clear()
        for script in ("print 1", "exit 3"):
            await ran(world, script)
        await world.until_quiet()
        assert any("update execution" in each for each in Traced.statements)
        assert [each for each in Traced.statements if "notification" in each] == []
        Traced.statements.clear()
        await ran(world, "end memory_limit")
        await world.until_quiet()
        (only,) = [each for each in Traced.statements if "notification" in each]
        assert only.startswith("insert or ignore into notification")


class TestService:
    async def test_pages_say_where_the_next_one_begins_and_what_is_unread(self, world: World) -> None:
        ids = [(await ran(world, "end memory_limit")).id for _ in range(3)]
        notifications = service(world)
        first = await notifications.page(ALICE, EVERYTHING, 2, None)
        assert ([each.execution_id for each in first.notifications], first.unread_count) == (ids[:0:-1], 3)
        rest = await notifications.page(ALICE, EVERYTHING, 2, first.next)
        assert ([each.execution_id for each in rest.notifications], rest.next) == (ids[:1], None)
        whole = await notifications.page(ALICE, EVERYTHING, 3, None)
        assert (len(whole.notifications), whole.next) == (3, None)

    async def test_reading_notes_the_time(self, world: World) -> None:
        await ran(world, "end memory_limit")
        await ran(world, "end time_limit")
        notifications = service(world)
        world.clock.advance(60)
        at = world.clock.now()
        (newest, _) = await told(world)
        for _ in range(2):
            await notifications.mark_read(ALICE, newest.id)
            world.clock.advance(60)
        assert await notifications.unread_count(ALICE) == 1
        await notifications.mark_all_read(ALICE)
        assert [each.read_at for each in await told(world)] == [at, world.clock.now()]
        assert await notifications.unread_count(ALICE) == 0

    async def test_what_is_foreign_does_not_exist(self, world: World) -> None:
        await ran(world, "end memory_limit")
        (mine,) = await told(world)
        notifications = service(world)
        for each in (mine.id, NotificationId("nobody")):
            with pytest.raises(NotFound):
                await notifications.mark_read(BOB, each)
            with pytest.raises(NotFound):
                await notifications.delete(BOB, each)
        await notifications.mark_all_read(BOB)
        assert (await notifications.page(BOB, EVERYTHING, 10, None)).notifications == []
        assert await told(world) == [mine]
