"""Fused and stepwise chains: the same documents and events, whatever is committed together."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtape.application.announcing import Announcer
from runtape.application.flow import (
    CONFLICT_RETRIES,
    NOTHING,
    Documents,
    Flow,
    Step,
    Subscription,
    Tasks,
    execution_change,
)
from runtape.domain import execution as executions
from runtape.domain.events import Message, PodCreate
from runtape.domain.execution import Execution, OnInterrupt
from runtape.ports.errors import Transient, VersionConflict
from runtape.ports.notifications import NotificationFilter
from tests.application.world import ALICE, CAPACITY, World, a_world
from tests.builders import EXECUTION, LEASE_TTL, an_execution, requested
from tests.clocks import START
from tests.contract.embedded.basic import EmbeddedStores, quick_place
from tests.contract.suites.stores import Stores, stored

Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


async def programs(world: World) -> None:
    scripts = [
        "print(1)",
        "print a\neprint b\nprint c\nexit 3",
        "bytes 00ff\nend time_limit",
        "end memory_limit",
        "fail gone",
        "",
    ]
    for script in scripts:
        await world.until_stored(await world.submit(script))
    await world.until_stored(await world.submit("print x\nfail gone", on_interrupt=OnInterrupt.FAIL))


async def cancelling(world: World) -> None:
    running = await world.submit("print before\nwait for-ever")
    await world.until_status(running, "running")
    await world.submissions.cancel(ALICE, running, "enough")
    await world.until_stored(running)


async def queueing(world: World) -> None:
    first = await world.submit("wait go")
    await world.until_status(first, "running")
    rest = [await world.submit(f"print {number}") for number in range(3)]
    await world.until_quiet()  # cancelled before it was queued, one would have no saga
    await world.submissions.cancel(ALICE, rest[1], None)
    await world.until_stored(rest[1])
    world.pods.let("go")
    for execution_id in (first, rest[0], rest[2]):
        await world.until_stored(execution_id)


SCENARIOS: dict[str, tuple[Scenario, int]] = {
    "programs": (programs, 4),
    "cancelling": (cancelling, 4),
    "queueing": (queueing, 1),
}


async def traces(scenario: Scenario, running: int, *, fused: bool) -> dict[str, Any]:
    """Run the scenario and return every document and, by execution and topic, every message."""
    capacity = replace(CAPACITY, running=running)
    with quick_place() as place:
        async with a_world(place, fused=fused, capacity=capacity) as world:
            await world.start()
            await scenario(world)
            messages: dict[str, list[Message]] = defaultdict(list)
            for message in await world.messages():
                messages[f"{message.execution_id} {message.topic}"].append(message)
            ids = sorted({message.execution_id for each in messages.values() for message in each})
            return {
                "executions": [await world.stores.executions.get(each) for each in ids],
                "sagas": [await world.stores.sagas.get(each) for each in ids],
                "tapes": [await world.printed(each) for each in ids],
                "notifications": await world.stores.notifications.list(ALICE.user_id, NotificationFilter(), 100, None),
                "messages": dict(messages),
                "pods": sorted((key.execution_id, key.attempt) for key in world.pods.started),
                "left": await world.pods.list(),
            }


@pytest.mark.parametrize("name", SCENARIOS)
async def test_fused_and_stepwise_give_the_same_documents_events_and_pods(name: str) -> None:
    scenario, running = SCENARIOS[name]
    fused, stepwise = [await traces(scenario, running, fused=each) for each in (True, False)]
    for part in fused:
        assert fused[part] == stepwise[part], part
    assert all(execution.result is not None for execution in fused["executions"])
    assert all(saga.step == "done" for saga in fused["sagas"])
    assert fused["left"] == []


async def test_a_fused_run_that_fits_is_accepted_admitted_and_leased_in_one_commit(folder: Path) -> None:
    commits: list[list[str]] = []

    class Counting:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def commit(self, changes: Any, handled_by: Any = frozenset()) -> None:
            commits.append([message.type for change in changes for message in change.messages])
            await self._inner.commit(changes, handled_by)

    async with a_world(folder, wrap=lambda s: replace(s, unit_of_work=Counting(s.unit_of_work))) as world:
        await world.start()
        await world.until_stored(await world.submit())
    assert [set(types) for types in commits] == [
        {"execution.requested", "pod.create", "execution.started"},
        {"execution.completed", "result.stored"},
    ]


class TestPerform(EmbeddedStores):
    """`Flow.perform` by itself."""

    @pytest.fixture
    async def flow(self, stores: Stores) -> AsyncIterator[Flow]:
        self.events: list[str] = []
        self.tasks = Tasks(lambda name, error: self.events.append(f"failed {error}"))
        await stored(stores, requested())
        yield self.make(stores)
        await self.tasks.close()

    def make(self, stores: Stores, *, fused: bool = True, unit_of_work: Any = None) -> Flow:
        class Silent(Announcer):
            def __init__(self) -> None: ...

            def announce(self, changes: Any) -> None: ...

        return Flow(
            unit_of_work=unit_of_work or stores.unit_of_work,
            executions=stores.executions,
            sagas=stores.sagas,
            announcer=Silent(),
            tasks=self.tasks,
            fused=fused,
        )

    def note(self, text: str) -> Callable[[], Any]:
        async def effect() -> None:
            self.events.append(text)

        return effect

    def starting(self, document: Execution, *, text: str = "start") -> Step:
        events = executions.start(document, document.attempt + 1, "w", START, LEASE_TTL)
        changes = (execution_change(document, events),) if events else ()
        return Step(changes=changes, effects=(self.note(text),), undo=self.note(f"undo {text}"))

    async def settle(self, stores: Stores) -> list[str]:
        await stores.blobs.ready()
        return self.events

    async def test_effects_run_after_the_commit(self, stores: Stores, flow: Flow) -> None:
        async def first(documents: Documents) -> Step:
            execution = await documents.execution(EXECUTION)
            assert execution is not None
            return self.starting(execution)

        await flow.perform(first)
        assert self.events == []
        assert await self.settle(stores) == ["start"]
        found = await stores.executions.get(EXECUTION)
        assert found is not None
        assert found.live

    async def test_a_conflict_undoes_and_runs_the_chain_again_on_fresh_documents(
        self, stores: Stores, flow: Flow
    ) -> None:
        seen: list[int] = []

        async def first(documents: Documents) -> Step:
            execution = await documents.execution(EXECUTION)
            assert execution is not None
            seen.append(execution.version)
            if len(seen) == 1:  # somebody else is quicker
                other = executions.cancel(execution, "bob", None, START)
                await stores.unit_of_work.commit([execution_change(execution, other)])
            step = self.starting(execution)
            return step if step.changes else NOTHING

        await flow.perform(first)
        assert seen == [1, 2]
        assert await self.settle(stores) == ["undo start"]

    async def test_what_keeps_conflicting_is_given_up_as_transient(self, stores: Stores, flow: Flow) -> None:
        class Never:
            async def commit(self, changes: Any, handled_by: Any = frozenset()) -> None:
                raise VersionConflict("no")

        async def first(documents: Documents) -> Step:
            return self.starting(requested())

        with pytest.raises(Transient, match="too often"):
            await self.make(stores, unit_of_work=Never()).perform(first)
        assert self.events == ["undo start"] * CONFLICT_RETRIES

    async def test_a_failing_handler_undoes_the_whole_chain_in_reverse(self, stores: Stores, flow: Flow) -> None:
        async def create(message: Message, documents: Documents) -> Step:
            execution = await documents.execution(EXECUTION)
            assert execution is not None
            assert execution.live, "a handler sees the uncommitted document"
            return Step(undo=self.note("undo second"), changes=())

        async def fail(message: Message, documents: Documents) -> Step:
            raise RuntimeError("broken")

        flow.subscribe({"execution.started": (Subscription("a", create), Subscription("b", fail))})

        async def first(documents: Documents) -> Step:
            return self.starting(requested())

        with pytest.raises(RuntimeError, match="broken"):
            await flow.perform(first)
        assert await self.settle(stores) == ["undo second", "undo start"]
        assert await stores.executions.get(EXECUTION) == requested()

    async def test_cancelling_the_caller_undoes(self, stores: Stores, flow: Flow) -> None:
        reached = asyncio.Event()

        async def hang(message: Message, documents: Documents) -> Step:
            reached.set()
            await asyncio.Event().wait()
            return NOTHING

        flow.subscribe({"execution.started": (Subscription("a", hang),)})

        async def first(documents: Documents) -> Step:
            return self.starting(requested())

        task = asyncio.ensure_future(flow.perform(first))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert self.events == ["undo start"]

    async def test_stepwise_commits_the_first_step_alone(self, stores: Stores, flow: Flow) -> None:
        async def refuse(message: Message, documents: Documents) -> Step:
            raise AssertionError("stepwise chains come back through the log")

        stepwise = self.make(stores, fused=False)
        stepwise.subscribe({"execution.started": (Subscription("a", refuse),)})

        async def first(documents: Documents) -> Step:
            return self.starting(requested())

        await stepwise.perform(first)
        assert await self.settle(stores) == ["start"]

    async def test_messages_that_a_chain_acted_on_are_noted_for_their_group(self, stores: Stores) -> None:
        noted: list[Any] = []

        class Noting:
            async def commit(self, changes: Any, handled_by: Any = frozenset()) -> None:
                noted.append(handled_by)

        self.tasks = Tasks(lambda name, error: None)
        flow = self.make(stores, unit_of_work=Noting())

        async def nothing(message: Message, documents: Documents) -> Step:
            return NOTHING

        flow.subscribe({"pod.create": (Subscription("worker", nothing),)})
        command = PodCreate(execution_id=EXECUTION, project_id=requested().project_id, at=START, attempt=1)

        async def first(documents: Documents) -> Step:
            return Step(changes=(replace(execution_change(requested(), []), messages=(command,)),))

        await flow.perform(first)
        assert noted == [{"worker"}]


async def test_closing_ends_also_what_the_ending_tasks_start() -> None:
    tasks = Tasks(lambda name, error: None)
    ended: list[str] = []

    async def second() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("second")

    async def first() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.spawn(second(), "second")
            ended.append("first")

    tasks.spawn(first(), "first")
    await asyncio.sleep(0)
    await asyncio.wait_for(tasks.close(), 5)
    assert ended[0] == "first"
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("first", "second")]


def test_a_change_applies_its_events_and_carries_its_commands() -> None:
    change = execution_change(an_execution(), executions.request(an_execution(), START))
    assert (change.document, change.expected_version) == (requested(), 0)
