"""The state machine of an execution, case by case."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from runtape.domain import execution as executions
from runtape.domain.errors import AlreadyTerminal
from runtape.domain.events import (
    ExecutionCancelled,
    ExecutionCancelRequested,
    ExecutionCompleted,
    ExecutionEvent,
    ExecutionFailed,
    ExecutionRestarted,
    ExecutionTimeout,
    PodKill,
    ResultStored,
    StoredResult,
)
from runtape.domain.execution import (
    ADMISSION_DUE,
    GIVEN_BACK,
    LEASE_GRACE,
    RESULT_DUE,
    Execution,
    OnInterrupt,
    evolve,
    evolve_all,
)
from runtape.domain.outcome import Outcome, OutcomeKind, Status, TimelinePoint, Usage
from tests.builders import EXITED, LEASE_TTL, LOST, OWNER, an_execution, ended, requested, started
from tests.clocks import START

LATER = START + timedelta(seconds=5)
RESULT = StoredResult(stdout_sha256="a", stderr_sha256="b")


def cancelling() -> Execution:
    execution = started()
    messages = executions.cancel(execution, "alice", None, LATER)
    return evolve_all(execution, [message for message in messages if isinstance(message, ExecutionEvent)])


def stored() -> Execution:
    return evolve_all(ended(), executions.store_result(ended(), RESULT, LATER))


def test_an_accepted_execution_is_queued_and_looked_after_later() -> None:
    execution = requested()
    assert (execution.status, execution.version, execution.attempt) == (Status.QUEUED, 1, 0)
    assert execution.due_at == START + ADMISSION_DUE


def test_a_start_takes_the_lease_of_its_attempt() -> None:
    execution = started(seconds=3)
    at = START + timedelta(seconds=3)
    assert execution.lease is not None
    assert (execution.lease.owner, execution.lease.fence) == (OWNER, 1)
    assert execution.lease.expires_at == at + LEASE_TTL
    assert execution.due_at == at + LEASE_TTL + LEASE_GRACE
    assert execution.started_at == at


@pytest.mark.parametrize(
    ("make", "attempt"),
    [(requested, 0), (requested, 2), (started, 1), (started, 2), (cancelling, 2), (ended, 2), (stored, 2)],
)
def test_nothing_starts_but_the_next_attempt_of_a_queued_execution(make: Callable[[], Execution], attempt: int) -> None:
    assert executions.start(make(), attempt, OWNER, LATER, LEASE_TTL) == []


@pytest.mark.parametrize(
    ("kind", "event", "status"),
    [
        (OutcomeKind.EXITED, ExecutionCompleted, Status.COMPLETED),
        (OutcomeKind.SIGNALLED, ExecutionFailed, Status.FAILED),
        (OutcomeKind.TIME_LIMIT, ExecutionTimeout, Status.TIMEOUT),
        (OutcomeKind.WALL_LIMIT, ExecutionTimeout, Status.TIMEOUT),
        (OutcomeKind.MEMORY_LIMIT, ExecutionFailed, Status.FAILED),
        (OutcomeKind.OUTPUT_LIMIT, ExecutionFailed, Status.FAILED),
        (OutcomeKind.CANCELLED, ExecutionCancelled, Status.CANCELLED),
    ],
)
def test_each_kind_of_outcome_has_its_event_and_status(
    kind: OutcomeKind, event: type[ExecutionEvent], status: Status
) -> None:
    live = cancelling() if kind is OutcomeKind.CANCELLED else started()
    (told,) = executions.finish(live, 1, Outcome(kind=kind), Usage(wall_ns=7), 4, LATER)
    execution = evolve(live, told)
    assert type(told) is event
    assert (execution.status, execution.last_seq, execution.usage) == (status, 4, Usage(wall_ns=7))
    assert (execution.lease, execution.due_at) == (None, LATER + RESULT_DUE)


def test_timeline_of_the_end_is_kept_and_that_of_a_lost_attempt_is_not() -> None:
    points = (TimelinePoint(1, 2, 3), TimelinePoint(4, 5, 6))
    (told,) = executions.finish(started(), 1, EXITED, Usage(), 4, LATER, points)
    assert evolve(started(), told).timeline == points
    (lost,) = executions.finish(started(), 1, LOST, Usage(), 4, LATER, points)
    assert evolve(started(), lost).timeline is None


@pytest.mark.parametrize(("make", "attempt"), [(requested, 0), (requested, 1), (started, 2), (ended, 1), (stored, 1)])
def test_an_end_that_is_not_the_live_attempts_is_out_of_date(make: Callable[[], Execution], attempt: int) -> None:
    assert executions.finish(make(), attempt, EXITED, Usage(), 0, LATER) == []


def test_an_infrastructure_failure_leads_to_a_new_attempt_until_the_third() -> None:
    execution = requested()
    for attempt in (1, 2):
        execution = ended(started(execution), LOST, last_seq=9)
        assert (execution.status, execution.attempt, execution.outcome) == (Status.QUEUED, attempt, None)
        assert (execution.lease, execution.started_at, execution.last_seq) == (None, None, 9)
        assert execution.history[-1].attempt == attempt + 1
        assert execution.history[-1].reason == "worker_lost"
    execution = started(execution)
    assert execution.last_seq == 0
    execution = ended(execution, LOST)
    assert (execution.status, execution.attempt, execution.outcome) == (Status.FAILED, 3, LOST)


@pytest.mark.parametrize("on_interrupt", OnInterrupt)
def test_attempts_that_are_given_back_are_not_counted(on_interrupt: OnInterrupt) -> None:
    execution = requested(an_execution(on_interrupt=on_interrupt))
    for attempt in range(1, 6):
        execution = started(execution)
        (event,) = executions.give_back(execution, attempt, LATER)
        execution = evolve(execution, event)
        assert (execution.status, execution.lease, execution.history[-1].reason) == (Status.QUEUED, None, GIVEN_BACK)
        assert executions.give_back(execution, attempt, LATER) == []
    for left in (2, 1, 0):
        execution = started(execution)
        (event,) = executions.finish(execution, execution.attempt, LOST, Usage(), 0, LATER, ran=False)
        assert isinstance(event, ExecutionRestarted) is bool(left)
        execution = evolve(execution, event)
    assert (execution.status, execution.attempt, execution.outcome) == (Status.FAILED, 8, LOST)


def test_an_attempt_that_is_given_back_and_was_cancelled_is_over() -> None:
    (event,) = executions.give_back(cancelling(), 1, LATER)
    assert isinstance(event, ExecutionCancelled)


@pytest.mark.parametrize(("make", "attempt"), [(requested, 0), (started, 2), (cancelling, 2), (ended, 1), (stored, 1)])
def test_nothing_is_given_back_but_a_live_attempt(make: Callable[[], Execution], attempt: int) -> None:
    assert executions.give_back(make(), attempt, LATER) == []


def test_on_interrupt_fail_ends_it_at_the_first_infrastructure_failure() -> None:
    execution = ended(started(requested(an_execution(on_interrupt=OnInterrupt.FAIL))), LOST)
    assert (execution.status, execution.outcome) == (Status.FAILED, LOST)


def test_on_interrupt_fail_allows_another_attempt_where_the_program_was_never_started() -> None:
    execution = started(requested(an_execution(on_interrupt=OnInterrupt.FAIL)))
    (event,) = executions.finish(execution, 1, LOST, Usage(), 0, LATER, ran=False)
    assert isinstance(event, ExecutionRestarted)
    third = requested(an_execution(on_interrupt=OnInterrupt.FAIL))
    for _ in range(2):
        (event,) = executions.finish(started(third), third.attempt + 1, LOST, Usage(), 0, LATER, ran=False)
        third = evolve(started(third), event)
    third = started(third)
    (event,) = executions.finish(third, third.attempt, LOST, Usage(), 0, LATER, ran=False)
    assert isinstance(event, ExecutionFailed)


def test_the_end_of_a_pod_whose_worker_is_gone_counts_only_under_its_last_lease() -> None:
    execution = started()
    lease = execution.lease
    assert lease is not None
    oom = Outcome(kind=OutcomeKind.MEMORY_LIMIT, reason="oom")
    (event,) = executions.lose(execution, lease, oom, 7, LATER, ran=True)
    assert isinstance(event, ExecutionFailed)
    assert (event.outcome, event.last_seq) == (oom, 7)
    (event,) = executions.lose(execution, lease, LOST, 7, LATER, ran=True)
    assert isinstance(event, ExecutionRestarted)
    extended = replace(execution, lease=replace(lease, expires_at=LATER))
    assert executions.lose(extended, lease, oom, 7, LATER, ran=True) == []
    cancelled = cancelling()
    assert cancelled.lease is not None
    (event,) = executions.lose(cancelled, cancelled.lease, LOST, 7, LATER, ran=True)
    assert isinstance(event, ExecutionCancelled)


def test_a_waiting_execution_is_cancelled_at_once() -> None:
    (event,) = executions.cancel(requested(), "alice", "no need", LATER)
    assert isinstance(event, ExecutionCancelled)
    assert (event.attempt, event.last_seq, event.outcome.message) == (0, 0, "no need")


def test_cancelling_between_two_attempts_keeps_what_the_lost_one_printed() -> None:
    execution = ended(started(), LOST, last_seq=5)
    (event,) = executions.cancel(execution, "alice", None, LATER)
    assert isinstance(event, ExecutionCancelled)
    assert (event.attempt, event.last_seq) == (1, 5)


def test_cancelling_a_live_attempt_asks_for_its_end_once() -> None:
    event, command = executions.cancel(started(), "alice", None, LATER)
    assert isinstance(event, ExecutionCancelRequested)
    assert isinstance(command, PodKill)
    assert (command.attempt, command.id) == (1, "execution-1.kill.1")
    assert executions.cancel(cancelling(), "bob", None, LATER) == []
    assert cancelling().status is Status.RUNNING


def test_a_cancelled_attempt_is_not_started_again_when_the_sandbox_fails() -> None:
    (event,) = executions.finish(cancelling(), 1, LOST, Usage(), 0, LATER)
    assert isinstance(event, ExecutionFailed)


def test_a_cancelled_attempt_whose_worker_was_lost_counts_as_cancelled() -> None:
    (event,) = executions.interrupt(cancelling(), 1, "worker_lost", 3, LATER)
    assert isinstance(event, ExecutionCancelled)
    assert event.last_seq == 3


@pytest.mark.parametrize("make", [ended, stored])
def test_what_has_ended_cannot_be_cancelled(make: Callable[[], Execution]) -> None:
    with pytest.raises(AlreadyTerminal):
        executions.cancel(make(), "alice", None, LATER)


def test_an_attempt_expires_only_while_it_holds_the_lease_that_ran_out() -> None:
    execution = started(seconds=0)
    assert execution.lease is not None
    extended = replace(execution, lease=replace(execution.lease, expires_at=LATER))
    (event,) = executions.expire(execution, execution.lease, 0, LATER)
    assert isinstance(event, ExecutionRestarted)
    assert event.reason == "lease_expired"
    assert executions.expire(extended, execution.lease, 0, LATER) == []
    assert executions.expire(requested(), execution.lease, 0, LATER) == []


def test_a_program_that_was_killed_although_nobody_asked_for_it_is_run_again() -> None:
    killed = Outcome(kind=OutcomeKind.CANCELLED, reason="cancelled")
    (event,) = executions.finish(started(), 1, killed, Usage(), 4, LATER)
    assert isinstance(event, ExecutionRestarted)
    assert event.reason == "killed"


@pytest.mark.parametrize("make", [requested, started, stored])
def test_a_result_is_stored_only_of_what_has_ended_and_once(make: Callable[[], Execution]) -> None:
    assert executions.store_result(make(), RESULT, LATER) == []


def test_nothing_is_left_to_do_once_the_result_is_stored() -> None:
    execution = stored()
    assert (execution.due_at, execution.result, execution.status) == (None, RESULT, Status.COMPLETED)


def test_lost_output_becomes_the_outcome() -> None:
    lost = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="output_lost")
    (event,) = executions.store_result(ended(last_seq=3), RESULT, LATER, lost=lost)
    assert isinstance(event, ResultStored)
    execution = evolve(ended(last_seq=3), event)
    assert (execution.status, execution.outcome) == (Status.FAILED, lost)


def test_events_apply_in_order_only() -> None:
    (event,) = executions.finish(started(), 1, EXITED, Usage(), 0, LATER)
    with pytest.raises(ValueError, match=r"makes version 3, but execution-1 is at 1"):
        evolve(requested(), event)


def test_event_ids_come_from_the_version_so_that_a_message_published_twice_is_the_same() -> None:
    first, second = (executions.finish(started(), 1, EXITED, Usage(), 0, LATER)[0] for _ in range(2))
    assert first.id == second.id == "execution-1.3" == ended().event_id(3)
