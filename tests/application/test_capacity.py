"""Whatever ends an execution, and in whatever order: its place comes back, and every counter returns to zero (I10).

Executions, sagas and the queue are played together, with the real handlers, messages and store.  The process dies
between any two turns of its loop, sagas vanish, leases run out.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from runtape.application.running import LEASE_TTL
from runtape.domain.errors import AlreadyTerminal, Draining, NotTerminal, NotWaiting, QueueFull
from runtape.domain.events import Priority
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.saga import Saga, SagaStep
from runtape.ports.admission import Capacity
from runtape.ports.stores import BlobStore
from tests.application.chaos import InlineDatabase, turns
from tests.application.world import World, a_submission, a_world
from tests.builders import a_principal
from tests.clocks import CountingIds, ManualClock
from tests.contract.embedded.basic import quick_place
from tests.patience import examples

T = TypeVar("T")
CAPACITY = Capacity(running=2, running_per_project=2, running_per_lang=2, queued=4, queued_per_project=3, ageing_s=60)
SCRIPTS = ("print(1)", "end memory_limit", "fail gone", "wait {0}", "wait {0}\nend wall_limit", "wait {0}\nfail gone")
MOST_SWEEPS = 30
USERS = {name: a_principal(name) for name in "ab"}


class Unhurried:
    """Blobs whose readiness takes some turns: without threads nothing else lets the loop go on."""

    def __init__(self, inner: BlobStore) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def ready(self) -> None:
        await turns(5)


class CapacityMachine(RuleBasedStateMachine):
    @initialize(fused=st.booleans())
    def begin(self, fused: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.files = ExitStack()
        self.folder = self.files.enter_context(quick_place())
        self.clock, self.ids = ManualClock(), CountingIds()
        self.fused = fused
        self.lives = 0
        self.accepted: dict[ExecutionId, str] = {}
        self.deleted: set[ExecutionId] = set()
        self.do(self.come_alive())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    async def come_alive(self) -> None:
        self.lives += 1
        self.process = AsyncExitStack()
        self.world: World = await self.process.enter_async_context(
            a_world(
                self.folder,
                fused=self.fused,
                clock=self.clock,
                ids=self.ids,
                owner=f"worker-{self.lives}",
                capacity=CAPACITY,
                wrap=lambda stores: replace(stores, blobs=Unhurried(stores.blobs)),
                database_type=InlineDatabase,
            )
        )
        self.control = self.world.control
        await self.control.restore()
        await self.world.start()

    async def sweep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.world.sweeper.sweep()

    @rule(
        user=st.sampled_from("ab"),
        lang=st.sampled_from(["python", "bash"]),
        priority=st.sampled_from(Priority),
        script=st.sampled_from(SCRIPTS),
    )
    def submit(self, user: str, lang: str, priority: Priority, script: str) -> None:
        name = f"go-{len(self.accepted)}"
        submission = a_submission(script.format(name), lang=lang, priority=priority)
        try:
            execution_id = self.do(self.world.submissions.execute(USERS[user], submission))
        except (QueueFull, Draining):
            return
        self.accepted[execution_id] = user

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        execution_id = data.draw(st.sampled_from(sorted(self.accepted)))
        with suppress(AlreadyTerminal):
            self.do(self.world.submissions.cancel(USERS[self.accepted[execution_id]], execution_id, None))

    @precondition(lambda self: self.accepted)
    @rule(data=st.data(), priority=st.sampled_from(Priority))
    def rank(self, data: st.DataObject, priority: Priority) -> None:
        execution_id = data.draw(st.sampled_from(sorted(self.accepted)))
        with suppress(NotWaiting):
            saga, _ = self.do(self.control.rank(execution_id, priority))
            assert saga.priority is priority

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        execution_id = data.draw(st.sampled_from(sorted(self.accepted)))
        try:
            self.do(self.world.submissions.delete(USERS[self.accepted[execution_id]], execution_id))
        except NotTerminal:
            return
        del self.accepted[execution_id]

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        self.world.pods.let(f"go-{data.draw(st.integers(0, len(self.accepted)))}")

    @rule(count=st.integers(0, 30))
    def some_turns_pass(self, count: int) -> None:
        self.do(turns(count))

    @rule(seconds=st.sampled_from([1, 31, 61]), extended=st.booleans())
    def time_passes(self, seconds: int, extended: bool) -> None:
        """Without its extension a lease runs out, and the attempt is taken for dead."""
        if extended:
            live = list(self.world.worker._live)  # pyright: ignore[reportPrivateUsage]
            expires_at = self.clock.now() + LEASE_TTL + LEASE_TTL * (seconds // 20)
            self.do(self.world.stores.executions.extend_lease(live, self.world.owner, expires_at))
        self.do(self.sweep(seconds))

    @rule(what=st.sampled_from(["pause", "drain", "resume"]))
    def operate(self, what: str) -> None:
        self.do(self.control.drain(0) if what == "drain" else getattr(self.control, what)())

    @rule(count=st.integers(0, 10))
    def die(self, count: int) -> None:
        self.do(turns(count))
        gate = self.do(self.control.survey()).gate
        self.do(self.process.aclose())
        self.do(self.come_alive())
        assert self.do(self.control.survey()).gate is gate

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def lose_a_saga(self, data: st.DataObject) -> None:
        execution_id = data.draw(st.sampled_from(sorted(self.accepted)))

        async def lose() -> None:
            sagas: Any = self.world.stores.sagas
            sagas.deleted(execution_id)
            statement = "delete from saga where execution_id = ?"
            await sagas._database.write(lambda c: c.execute(statement, (execution_id,)).rowcount)

        self.do(lose())

    @rule()
    def everything_settles(self) -> None:
        """Once nothing moves, the queue says of each what its saga says."""
        self.do(self.world.until_quiet())
        sagas = [saga for saga in self.do(self.everything())[1] if saga.step is not SagaStep.DONE]
        survey = self.do(self.world.queue.survey())
        assert survey.running >= sum(saga.admitted for saga in sagas)
        assert survey.running <= CAPACITY.running
        waiting = {each.entry.execution_id: each.entry.priority for each in self.do(self.world.queue.waiting(99, None))}
        for saga in sagas:
            if saga.step is SagaStep.QUEUE and saga.execution_id in waiting:
                assert waiting[saga.execution_id] is saga.priority

    async def everything(self) -> tuple[list[Execution], list[Saga]]:
        executions = [await self.world.get(each) for each in self.accepted]
        sagas = [saga for each in self.accepted if (saga := await self.world.stores.sagas.get(each)) is not None]
        return executions, sagas

    async def come_to_the_end(self) -> None:
        await self.control.resume()
        left: list[str] = []
        for _ in range(MOST_SWEEPS):
            for number in range(len(self.accepted) + 60):
                self.world.pods.let(f"go-{number}")
            await turns(50)  # for what has ended just now to be heard of
            await self.world.until_quiet()
            executions, sagas = await self.everything()
            left = [each.status for each in executions if each.result is None]
            left += [each.step for each in sagas if each.step is not SagaStep.DONE]
            if not left:
                return
            await self.sweep(61)
        raise AssertionError(f"no end: {left}")

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.do(self.come_to_the_end())
            survey = self.do(self.world.queue.survey())
            assert (survey.running, survey.waiting) == (0, 0)
            assert survey.running_by_project == survey.waiting_by_project == {}
            assert self.world.queue._by_lang == Counter()  # pyright: ignore[reportPrivateUsage]
            assert self.do(self.world.pods.list()) == []
            for execution, saga in self.do(self.pairs()):
                assert saga is None or saga.ended is execution.status
                assert saga is None or all(
                    record.done_at is not None or record.compensated_at is not None for record in saga.records
                )
            for number in range(CAPACITY.running):
                again = self.do(self.world.submit(f"wait again-{number}"))
                self.do(self.world.until_status(again, "running"))
        finally:
            self.do(self.process.aclose())
            self.files.close()
            self.loop.close()

    async def pairs(self) -> list[tuple[Execution, Saga | None]]:
        return [(await self.world.get(each), await self.world.stores.sagas.get(each)) for each in self.accepted]


TestCapacity = CapacityMachine.TestCase
TestCapacity.settings = settings(max_examples=examples(60), stateful_step_count=20, deadline=None)
