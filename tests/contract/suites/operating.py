"""What stores do for those who operate an installation: lists of sagas, executions by priority, the gate."""

from dataclasses import replace

import pytest

from runtape.domain import saga as sagas
from runtape.domain.events import Priority
from runtape.domain.execution import Execution, Spec
from runtape.domain.ids import ExecutionId, UserId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Status
from runtape.domain.saga import Saga, SagaState, SagaStep
from runtape.ports.admission import Gate
from runtape.ports.stores import ExecutionFilter, SagaFilter
from tests.builders import ALICE, an_execution, ended, requested, started
from tests.clocks import START
from tests.contract.suites.stores import Stores, StoresBasic, over, saga_of, stored

BOB = UserId("user-bob")
OUTCOMES = {
    SagaState.COMPLETED: OutcomeKind.EXITED,
    SagaState.FAILED: OutcomeKind.MEMORY_LIMIT,
    SagaState.TIMED_OUT: OutcomeKind.WALL_LIMIT,
    SagaState.CANCELLED: OutcomeKind.CANCELLED,
}


def with_saga(execution: Execution, **changes: object) -> tuple[Execution, Saga]:
    saga = replace(saga_of(an_execution()), execution_id=execution.id)
    return execution, replace(saga, **changes)


def in_state(state: SagaState, name: str, user: UserId = ALICE) -> tuple[Execution, Saga]:
    execution = requested(an_execution(name, user_id=user))
    match state:
        case SagaState.CREATED:
            return with_saga(execution)
        case SagaState.QUEUED:
            execution, saga = with_saga(execution)
            return execution, sagas.wait(saga, START)
        case SagaState.RUNNING:
            return with_saga(started(execution), step=SagaStep.MONITOR)
        case SagaState.COMPENSATING:
            lost = Outcome(kind=OutcomeKind.CANCELLED)
            return with_saga(
                ended(started(execution), lost), step=SagaStep.STORE, ended=Status.CANCELLED, reason="cancelled"
            )
        case _:
            outcome = Outcome(kind=OUTCOMES[state])
            return with_saga(
                over(ended(started(execution), outcome)), step=SagaStep.DONE, due_at=None, ended=outcome.status
            )


class SagaListContract(StoresBasic):
    async def listed(self, stores: Stores, limit: int = 99, before: str | None = None, **where: object) -> list[str]:
        found = await stores.sagas.list(SagaFilter(**where), limit, ExecutionId(before) if before else None)  # pyright: ignore[reportArgumentType]
        return [saga.execution_id for saga in found]

    async def test_the_newest_come_first_in_pages(self, stores: Stores) -> None:
        for number in range(5):
            await stored(stores, *in_state(list(SagaState)[number], f"e{number}"))
        assert await self.listed(stores) == ["e4", "e3", "e2", "e1", "e0"]
        assert await self.listed(stores, 2) == ["e4", "e3"]
        assert await self.listed(stores, 2, "e3") == ["e2", "e1"]
        assert await self.listed(stores, 2, "e0") == []

    @pytest.mark.parametrize("state", SagaState)
    async def test_they_are_listed_by_state(self, stores: Stores, state: SagaState) -> None:
        for number, each in enumerate((*SagaState, *SagaState)):
            await stored(stores, *in_state(each, f"e{number:02d}"))
        place = list(SagaState).index(state)
        both = [f"e{place + len(SagaState):02d}", f"e{place:02d}"]
        assert await self.listed(stores, state=state) == both
        assert await self.listed(stores, 1, state=state) == both[:1]
        assert await self.listed(stores, 1, both[0], state=state) == both[1:]
        (found,) = await stores.sagas.list(SagaFilter(state=state), 1, None)
        assert found.state is state

    async def test_they_are_listed_by_user_and_execution(self, stores: Stores) -> None:
        await stored(stores, *in_state(SagaState.QUEUED, "a"), *in_state(SagaState.QUEUED, "b", BOB))
        await stored(stores, *in_state(SagaState.FAILED, "c", BOB))
        assert await self.listed(stores, user_id=BOB) == ["c", "b"]
        assert await self.listed(stores, user_id=ALICE) == ["a"]
        assert await self.listed(stores, user_id=BOB, state=SagaState.QUEUED) == ["b"]
        assert await self.listed(stores, execution_id="b") == ["b"]
        assert await self.listed(stores, execution_id="b", user_id=ALICE) == []

    async def test_one_from_before_ends_were_written_down_has_that_of_its_execution(self, stores: Stores) -> None:
        execution, saga = in_state(SagaState.TIMED_OUT, "old")
        await stored(stores, execution, replace(saga, ended=None))
        (found,) = await stores.sagas.list(SagaFilter(state=SagaState.TIMED_OUT), 9, None)
        assert found.state is SagaState.TIMED_OUT

    async def test_one_whose_execution_is_gone_is_not_listed(self, stores: Stores) -> None:
        _, saga = in_state(SagaState.QUEUED, "alone")
        await stored(stores, saga)
        assert await self.listed(stores) == []


class PriorityContract(StoresBasic):
    async def test_executions_are_listed_by_priority(self, stores: Stores) -> None:
        for number, priority in enumerate((*Priority, *Priority)):
            spec = Spec(lang="python", lang_version="3.11", limits=Limits(), priority=priority)
            # A source cannot pretend to be a priority.
            script = '{"spec": {"priority": "critical"}}'
            await stored(stores, requested(an_execution(f"e{number}", spec=spec, script=script)))
        for place, priority in enumerate(Priority):
            found = await stores.executions.list(ExecutionFilter(priority=priority), 9, None)
            assert [execution.id for execution in found] == [f"e{place + len(Priority)}", f"e{place}"]


class GateStoreContract(StoresBasic):
    async def test_it_is_open_until_it_is_set_and_then_as_it_was_set_last(self) -> None:
        async with self.open() as stores:
            assert await stores.gates.gate() is Gate.OPEN
        for gate in (*Gate, *reversed(Gate)):
            async with self.open() as stores:
                await stores.gates.put_gate(gate)
                assert await stores.gates.gate() is gate
            async with self.open() as stores:
                assert await stores.gates.gate() is gate
