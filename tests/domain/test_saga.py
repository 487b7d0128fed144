"""The saga of an execution: case by case, and as a machine that is told events twice, late or not at all."""

from dataclasses import fields, replace
from datetime import timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtape.domain import execution as executions
from runtape.domain import saga as sagas
from runtape.domain.events import (
    Correlation,
    ExecutionEvent,
    ExecutionRequested,
    PodCreate,
    Priority,
    StoredResult,
)
from runtape.domain.execution import MAX_ATTEMPTS, Execution, evolve
from runtape.domain.outcome import Outcome, OutcomeKind, Status, Usage
from runtape.domain.saga import CHECK_DUE, CREATE_DUE, DEADLINES, GONE, Saga, SagaState, SagaStep
from tests.builders import EXITED, LEASE_TTL, LOST, an_execution, ended, requested, started
from tests.clocks import START
from tests.patience import examples

LATER = START + timedelta(seconds=9)
ORDER = list(SagaStep)
MOST_RECORDS = 3 + 2 * MAX_ATTEMPTS
CANCELLED = Outcome(kind=OutcomeKind.CANCELLED, reason="cancelled")


def request_of(execution: Execution) -> ExecutionRequested:
    (event,) = executions.request(execution, START)
    assert isinstance(event, ExecutionRequested)
    return event


def waiting() -> Saga:
    return sagas.wait(sagas.begin(request_of(an_execution())), START)


def admitted() -> Saga:
    return sagas.admit(waiting(), START)[0]


def running() -> Saga:
    return sagas.follow(admitted(), start_event())[0]


def the(events: list[ExecutionEvent]) -> ExecutionEvent:
    (event,) = events
    return event


def start_event() -> ExecutionEvent:
    return the(executions.start(requested(), 1, "w", START, LEASE_TTL))


def end_event(outcome: Outcome = EXITED, execution: Execution | None = None) -> ExecutionEvent:
    execution = execution or replace(started(), cancel_requested=outcome.kind is OutcomeKind.CANCELLED)
    return the(executions.finish(execution, 1, outcome, Usage(), 0, LATER))


def cancel_event() -> ExecutionEvent:
    (event,) = executions.cancel(requested(), "alice", None, LATER)
    assert isinstance(event, ExecutionEvent)
    return event


def stored(execution: Execution) -> Execution:
    return evolve(execution, result_event(execution))


def result_event(execution: Execution) -> ExecutionEvent:
    return the(executions.store_result(execution, StoredResult(stdout_sha256="", stderr_sha256=""), LATER))


def done(saga: Saga) -> list[str]:
    return [record.step for record in saga.records if record.done_at is not None]


def compensated(saga: Saga) -> list[str]:
    return [record.step for record in saga.records if record.compensated_at is not None]


def test_a_new_saga_is_created_and_then_waits_and_is_not_due() -> None:
    saga = sagas.begin(request_of(an_execution()))
    assert (saga.state, saga.step, saga.admitted, saga.due_at, saga.version) == ("created", "queue", False, None, 1)
    saga = sagas.wait(saga, START)
    assert (saga.state, saga.step, saga.admitted, saga.due_at, saga.version) == ("queued", "queue", False, None, 2)


def test_admission_asks_for_the_pod_once() -> None:
    saga, commands = sagas.admit(waiting(), START)
    assert (saga.step, saga.admitted, saga.due_at) == (SagaStep.CREATE, True, START + CREATE_DUE)
    assert [(command.type, command.attempt) for command in commands] == [("pod.create", 1)]
    assert sagas.admit(saga, LATER) == (saga, [])


def test_who_is_admitted_at_once_has_passed_the_queue_all_the_same() -> None:
    saga, _ = sagas.admit(sagas.begin(request_of(an_execution())), START)
    assert (done(saga), saga.state) == (["queue", "allocate"], "running")


def test_it_follows_the_execution_to_its_end() -> None:
    saga = running()
    assert (saga.step, saga.admitted, saga.due_at) == (SagaStep.MONITOR, True, START + CHECK_DUE)
    saga, _ = sagas.follow(saga, end_event())
    assert (saga.step, saga.state, saga.admitted, saga.due_at) == ("store", "running", False, LATER + CHECK_DUE)
    saga, _ = sagas.follow(saga, result_event(ended()))
    assert (saga.step, saga.state, saga.due_at) == ("done", "completed", None)
    assert done(saga) == ["queue", "allocate", "create", "monitor", "store"]
    assert compensated(saga) == []


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (OutcomeKind.EXITED, SagaState.COMPLETED),
        (OutcomeKind.SIGNALLED, SagaState.FAILED),
        (OutcomeKind.MEMORY_LIMIT, SagaState.FAILED),
        (OutcomeKind.OUTPUT_LIMIT, SagaState.FAILED),
        (OutcomeKind.TIME_LIMIT, SagaState.TIMED_OUT),
        (OutcomeKind.WALL_LIMIT, SagaState.TIMED_OUT),
    ],
)
def test_a_program_that_comes_to_its_own_end_compensates_nothing(kind: OutcomeKind, state: SagaState) -> None:
    outcome = Outcome(kind=kind)
    saga, _ = sagas.follow(running(), end_event(outcome))
    saga, _ = sagas.follow(saga, result_event(ended(outcome=outcome)))
    assert (saga.state, saga.reason, compensated(saga)) == (state, None, [])


def test_a_saga_that_moves_keeps_what_it_is() -> None:
    before = replace(
        waiting(), correlation=Correlation("request", "trace"), ranked_at=LATER, priority=Priority.LOW, attempt=2
    )
    after, _ = sagas.admit(before, LATER)
    moved = {"version", "step", "due_at", "records"}
    for field in fields(Saga):
        changed = getattr(after, field.name) != getattr(before, field.name)
        assert changed == (field.name in moved), field.name


CANCELLED_AT = {
    "created": (sagas.begin(request_of(an_execution())), [], []),
    "queue": (waiting(), [], ["queue"]),
    "create": (admitted(), ["queue", "allocate"], ["allocate", "create"]),
    "monitor": (running(), ["queue", "allocate", "create"], ["allocate", "create", "monitor"]),
}


@pytest.mark.parametrize("name", CANCELLED_AT)
def test_cancelling_compensates_what_is_held_and_nothing_else(name: str) -> None:
    saga, was_done, given_back = CANCELLED_AT[name]
    event = end_event(CANCELLED) if name == "monitor" else cancel_event()
    saga, commands = sagas.follow(saga, event)
    assert (saga.state, saga.step, saga.admitted, commands) == ("compensating", "store", False, [])
    assert (done(saga), compensated(saga), saga.reason) == (was_done, given_back, "cancelled")
    assert {record.compensated_at for record in saga.records} <= {LATER, None}
    saga, _ = sagas.follow(saga, result_event(ended(outcome=CANCELLED)))
    assert (saga.state, compensated(saga)) == ("cancelled", given_back)


def test_a_last_attempt_that_is_lost_compensates_and_fails() -> None:
    third = started(ended(started(ended(outcome=LOST)), LOST))
    saga = replace(running(), attempt=3)
    lost = the(executions.finish(third, 3, LOST, Usage(), 0, LATER))
    saga, _ = sagas.follow(saga, lost)
    assert (saga.state, saga.reason, compensated(saga)) == (
        "compensating",
        "worker_lost",
        ["allocate", "create", "monitor"],
    )
    saga, _ = sagas.follow(saga, result_event(evolve(third, lost)))
    assert saga.state == "failed"


def test_a_restart_is_asked_for_in_the_place_that_it_holds() -> None:
    saga, commands = sagas.follow(running(), end_event(LOST))
    assert (saga.step, saga.admitted, saga.attempt) == (SagaStep.CREATE, True, 2)
    assert [command.attempt for command in commands] == [2]
    assert compensated(saga) == ["create", "monitor"], "the place is kept"
    assert [(record.step, record.attempt) for record in saga.records[2:]] == [
        ("create", 1),
        ("monitor", 1),
        ("create", 2),
    ]
    assert sagas.follow(saga, end_event(LOST)) == (saga, [])


def test_an_old_start_does_not_move_a_saga_that_asked_for_a_later_attempt() -> None:
    saga, _ = sagas.follow(admitted(), end_event(LOST))
    assert sagas.follow(saga, start_event()) == (saga, [])


@pytest.mark.parametrize("step", [SagaStep.STORE, SagaStep.DONE])
def test_nothing_is_asked_for_after_the_end(step: SagaStep) -> None:
    saga = replace(admitted(), step=step)
    assert sagas.restart(saga, 2, LATER) == (saga, [])
    assert sagas.admit(saga, LATER) == (saga, [])
    assert sagas.rank(saga, Priority.HIGH, LATER) is saga


def test_events_that_come_again_after_the_end_change_nothing() -> None:
    saga, _ = sagas.follow(admitted(), end_event())
    assert saga.step is SagaStep.STORE
    for event in (end_event(), end_event(LOST), start_event()):
        assert sagas.follow(saga, event) == (saga, [])
    result = result_event(ended())
    saga, _ = sagas.follow(saga, result)
    assert saga.step is SagaStep.DONE
    for event in (result, end_event(), start_event()):
        assert sagas.follow(saga, event) == (saga, [])


def test_an_end_that_was_never_told_is_learned_from_the_result() -> None:
    saga, _ = sagas.follow(running(), result_event(ended(outcome=CANCELLED)))
    assert (saga.state, saga.version) == ("cancelled", running().version + 1)
    assert compensated(saga) == ["allocate", "create", "monitor"]


def test_only_who_waits_is_ranked_and_its_wait_begins_again() -> None:
    saga = sagas.rank(waiting(), Priority.CRITICAL, LATER)
    assert (saga.priority, saga.waiting_since, saga.version) == (Priority.CRITICAL, LATER, waiting().version + 1)
    assert sagas.rank(saga, Priority.CRITICAL, LATER) is saga
    assert sagas.rank(admitted(), Priority.CRITICAL, LATER) == admitted()


def test_an_overdue_creation_is_asked_for_again() -> None:
    saga, commands = sagas.check(admitted(), LATER, requested())
    assert [command.attempt for command in commands] == [1]
    assert (saga.due_at, saga.records) == (LATER + CREATE_DUE, admitted().records)


def test_every_step_that_rests_has_a_deadline_but_waiting() -> None:
    assert set(SagaStep) - set(DEADLINES) == {SagaStep.QUEUE, SagaStep.ALLOCATE, SagaStep.DONE}
    assert sagas.check(waiting(), LATER, requested()) == (waiting(), [])


@pytest.mark.parametrize(
    ("execution", "step", "state"),
    [
        (started(), "monitor", "running"),
        (ended(), "store", "completed"),
        (stored(ended()), "store", "completed"),
        (stored(ended(outcome=Outcome(kind=OutcomeKind.CANCELLED))), "store", "cancelled"),
        (None, "store", "failed"),
    ],
)
def test_an_overdue_saga_is_brought_to_where_its_execution_is(
    execution: Execution | None, step: str, state: str
) -> None:
    saga = running()
    checked, commands = sagas.check(saga, LATER, execution)
    assert (checked.step, commands, checked.version) == (step, [], saga.version + 1)
    if step == "store":
        over = execution is None or execution.result is not None
        done, _ = sagas.check(checked, LATER, execution)
        assert (done.step, done.due_at is None) == (("done", True) if over else ("store", False))
        if over:
            assert done.state == state
            assert sagas.check(done, LATER, execution) == (done, [])


def test_a_saga_whose_execution_is_gone_gives_back_what_it_holds() -> None:
    saga, _ = sagas.check(waiting(), LATER, None)
    assert (saga.step, saga.reason, compensated(saga)) == ("store", GONE, ["queue"])


def test_a_saga_from_before_ends_were_written_down_takes_that_of_its_execution() -> None:
    old = replace(running(), step=SagaStep.DONE, records=(), due_at=None)
    assert sagas.settled(old, Status.TIMEOUT).state == "timed_out"
    told = replace(old, ended=Status.CANCELLED)
    assert sagas.settled(told, Status.TIMEOUT) is told
    assert sagas.settled(running(), Status.RUNNING) == running()


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

    @rule(priority=st.sampled_from(Priority))
    def rank(self, priority: Priority) -> None:
        self.change((sagas.rank(self.saga, priority, LATER), []))

    @rule()
    def the_pod_starts(self) -> None:
        if self.asked:
            self.happen(executions.start(self.execution, self.asked[-1], "w", LATER, LEASE_TTL))

    @rule(kind=st.sampled_from([OutcomeKind.EXITED, OutcomeKind.SANDBOX_ERROR, OutcomeKind.CANCELLED]))
    def the_pod_ends(self, kind: OutcomeKind) -> None:
        self.happen(executions.finish(self.execution, self.execution.attempt, Outcome(kind=kind), Usage(), 0, LATER))

    @rule()
    def it_is_cancelled(self) -> None:
        if not self.execution.status.terminal:
            made = executions.cancel(self.execution, "alice", None, LATER)
            self.happen([each for each in made if isinstance(each, ExecutionEvent)])

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
        self.change(sagas.check(self.saga, LATER, self.execution))

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
            assert self.saga.ended is self.execution.status
        if self.saga.step is SagaStep.STORE:
            assert self.execution.status.terminal

    @invariant()
    def its_records_are_few_and_tell_what_it_holds(self) -> None:
        records = self.saga.records
        assert len(records) <= MOST_RECORDS
        assert len({(record.step, record.attempt) for record in records}) == len(records), "a step began twice"
        under_way = [record for record in records if record.done_at is None and record.compensated_at is None]
        if self.saga.step is SagaStep.DONE:
            assert not under_way
        else:
            assert [record.step for record in under_way] == [self.saga.step]
        places = [record for record in records if record.step is SagaStep.ALLOCATE]
        if self.saga.admitted:
            assert [record.compensated_at for record in places] == [None]
        if self.saga.reason is not None:
            held = [r for r in records if r.step in (SagaStep.ALLOCATE, SagaStep.CREATE) and r.compensated_at is None]
            assert not held, "interrupted, and something was not given back"

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
TestSagaMachine.settings = settings(max_examples=examples(150), stateful_step_count=20, deadline=None)
