"""The saga of an execution: case by case, and as a machine that is told events twice, late or not at all."""

from dataclasses import replace
from datetime import timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtape.domain import execution as executions
from runtape.domain import saga as sagas
from runtape.domain.events import (
    ExecutionEvent,
    ExecutionRequested,
    PodCreate,
    StoredResult,
)
from runtape.domain.execution import MAX_ATTEMPTS, Execution, evolve
from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from runtape.domain.saga import CHECK_DUE, CREATE_DUE, Saga, SagaStep
from tests.builders import EXITED, LEASE_TTL, LOST, an_execution, requested, started
from tests.clocks import START

LATER = START + timedelta(seconds=9)
ORDER = list(SagaStep)


def request_of(execution: Execution) -> ExecutionRequested:
    (event,) = executions.request(execution, START)
    assert isinstance(event, ExecutionRequested)
    return event


def waiting() -> Saga:
    return sagas.begin(request_of(an_execution()))


def admitted() -> Saga:
    return sagas.admit(waiting(), START)[0]


def the(events: list[ExecutionEvent]) -> ExecutionEvent:
    (event,) = events
    return event


def start_event() -> ExecutionEvent:
    return the(executions.start(requested(), 1, "w", START, LEASE_TTL))


def end_event(outcome: Outcome = EXITED) -> ExecutionEvent:
    return the(executions.finish(started(), 1, outcome, Usage(), 0, LATER))


def test_a_new_saga_waits_and_is_not_due() -> None:
    saga = waiting()
    assert (saga.step, saga.admitted, saga.due_at, saga.version) == (SagaStep.QUEUE, False, None, 1)


def test_admission_asks_for_the_pod_once() -> None:
    saga, commands = sagas.admit(waiting(), START)
    assert (saga.step, saga.admitted, saga.due_at) == (SagaStep.CREATE, True, START + CREATE_DUE)
    assert [(command.type, command.attempt) for command in commands] == [("pod.create", 1)]
    assert sagas.admit(saga, LATER) == (saga, [])


def test_it_follows_the_execution_to_its_end() -> None:
    saga, _ = sagas.follow(admitted(), start_event())
    assert (saga.step, saga.admitted, saga.due_at) == (SagaStep.MONITOR, True, START + CHECK_DUE)
    saga, _ = sagas.follow(saga, end_event())
    assert (saga.step, saga.admitted) == (SagaStep.STORE, False)


def test_a_restart_is_asked_for_in_the_place_that_it_holds() -> None:
    saga, _ = sagas.follow(admitted(), start_event())
    saga, commands = sagas.follow(saga, end_event(LOST))
    assert (saga.step, saga.admitted, saga.attempt) == (SagaStep.CREATE, True, 2)
    assert [command.attempt for command in commands] == [2]
    assert sagas.follow(saga, end_event(LOST)) == (saga, [])


def test_an_old_start_does_not_move_a_saga_that_asked_for_a_later_attempt() -> None:
    saga, _ = sagas.follow(admitted(), end_event(LOST))
    assert sagas.follow(saga, start_event()) == (saga, [])


@pytest.mark.parametrize("step", [SagaStep.STORE, SagaStep.DONE])
def test_nothing_is_asked_for_after_the_end(step: SagaStep) -> None:
    saga = replace(admitted(), step=step)
    assert sagas.restart(saga, 2, LATER) == (saga, [])
    assert sagas.admit(saga, LATER) == (saga, [])


def test_events_that_come_again_after_the_end_change_nothing() -> None:
    saga, _ = sagas.follow(admitted(), end_event())
    assert saga.step is SagaStep.STORE
    for event in (end_event(), end_event(LOST), start_event()):
        assert sagas.follow(saga, event) == (saga, [])
    ended = evolve(started(), end_event())
    result = the(executions.store_result(ended, StoredResult(stdout_sha256="", stderr_sha256=""), LATER))
    saga, _ = sagas.follow(saga, result)
    assert saga.step is SagaStep.DONE
    for event in (result, end_event(), start_event()):
        assert sagas.follow(saga, event) == (saga, [])


def test_an_overdue_creation_is_asked_for_again() -> None:
    saga, commands = sagas.check(admitted(), LATER, ended=False, stored=False)
    assert [command.attempt for command in commands] == [1]
    assert saga.due_at == LATER + CREATE_DUE


@pytest.mark.parametrize(
    ("ended", "stored", "step"), [(False, False, "monitor"), (True, False, "store"), (True, True, "store")]
)
def test_an_overdue_saga_is_brought_to_where_its_execution_is(ended: bool, stored: bool, step: str) -> None:
    saga, _ = sagas.follow(admitted(), start_event())
    checked, commands = sagas.check(saga, LATER, ended=ended, stored=stored)
    assert (checked.step, commands, checked.version) == (step, [], saga.version + 1)
    if ended:
        done, _ = sagas.check(checked, LATER, ended=True, stored=stored)
        assert done.step == ("done" if stored else "store")
        assert (done.due_at is None) == stored


class SagaMachine(RuleBasedStateMachine):
    """An execution makes events; the saga is told any of them, at any time, any number of times."""

    def __init__(self) -> None:
        super().__init__()
        self.execution = requested(an_execution())
        self.events: list[ExecutionEvent] = [request_of(an_execution())]
        self.saga = waiting()
        self.asked: list[int] = []
        self.told: set[str] = set()

    def change(self, made: tuple[Saga, list[PodCreate]]) -> None:
        saga, commands = made
        assert saga is self.saga or saga.version == self.saga.version + 1
        assert saga is not self.saga or not commands
        assert ORDER.index(saga.step) >= ORDER.index(SagaStep.STORE) or ORDER.index(self.saga.step) < ORDER.index(
            SagaStep.STORE
        ), "taken up again after the end"
        assert self.saga.step is not SagaStep.DONE or saga is self.saga, "changed after it was done"
        self.asked += [command.attempt for command in commands]
        self.saga = saga

    def happen(self, events: list[ExecutionEvent]) -> None:
        for event in events:
            self.execution = evolve(self.execution, event)
            self.events.append(event)

    @rule()
    def admit(self) -> None:
        self.change(sagas.admit(self.saga, LATER))

    @rule()
    def the_pod_starts(self) -> None:
        if self.asked:
            self.happen(executions.start(self.execution, self.asked[-1], "w", LATER, LEASE_TTL))

    @rule(kind=st.sampled_from([OutcomeKind.EXITED, OutcomeKind.SANDBOX_ERROR, OutcomeKind.CANCELLED]))
    def the_pod_ends(self, kind: OutcomeKind) -> None:
        self.happen(executions.finish(self.execution, self.execution.attempt, Outcome(kind=kind), Usage(), 0, LATER))

    @rule()
    def the_result_is_stored(self) -> None:
        self.happen(executions.store_result(self.execution, StoredResult(stdout_sha256="", stderr_sha256=""), LATER))

    @rule(data=st.data())
    def an_event_arrives(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.events))
        self.told.add(event.id)
        self.change(sagas.follow(self.saga, event))

    @precondition(lambda self: self.saga.due_at is not None)
    @rule()
    def it_is_overdue(self) -> None:
        stored = self.execution.result is not None
        self.change(sagas.check(self.saga, LATER, ended=self.execution.status.terminal, stored=stored))

    @invariant()
    def attempts_are_asked_for_in_order_and_not_more_than_allowed(self) -> None:
        assert self.asked == sorted(self.asked)
        assert all(1 <= attempt <= MAX_ATTEMPTS for attempt in self.asked)

    @invariant()
    def it_waits_without_a_time_holds_a_place_with_one_and_rests_at_the_end(self) -> None:
        assert (self.saga.due_at is None) == (self.saga.step in (SagaStep.QUEUE, SagaStep.DONE))

    @invariant()
    def it_is_done_only_when_the_result_is_stored(self) -> None:
        if self.saga.step is SagaStep.DONE:
            assert self.execution.result is not None
        if self.saga.step is SagaStep.STORE:
            assert self.execution.status.terminal

    def teardown(self) -> None:
        """Whatever was lost: from its documents alone the saga comes to its end."""
        if self.saga.step is SagaStep.QUEUE:
            self.admit()
        for _ in range(3 * MAX_ATTEMPTS):
            self.the_pod_starts()
            self.the_pod_ends(OutcomeKind.EXITED)
            self.the_result_is_stored()
            if self.saga.due_at is not None:
                self.it_is_overdue()
            if self.execution.attempt >= self.saga.attempt and not self.execution.status.terminal:
                self.change(sagas.restart(self.saga, self.execution.attempt + 1, LATER))
        assert self.saga.step is SagaStep.DONE


TestSagaMachine = SagaMachine.TestCase
TestSagaMachine.settings = settings(max_examples=150, stateful_step_count=20, deadline=None)
