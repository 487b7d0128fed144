"""The saga of an execution: admission, and the steps until the result is stored.

There is one saga per execution and it has the execution's id.  Saga documents are the truth of admission, the queue is
an index of them.

Steps, what each holds while it does, and what gives that back::

    step      holds               compensation                      too long (`DEADLINES`)
    queue     a place in line     the line is left                  never: waiting is what a line is for
    allocate  a running place     the place is passed on            at once or not at all
    create    a pod, or the       the pod is removed; a command     asked for again
              command for one     that comes later starts nothing
    monitor   a live program      the program is ended              compared with the execution
    store     nothing             none: it can only be repeated     compared with the execution

A program that comes to its own end, good or bad, goes through all of them; its place and its pod are given back with
that end.  Whatever else ends an execution compensates what is held at that moment and nothing else.  A lost attempt
compensates ``create`` and ``monitor`` alone: the next one is asked for in the same place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, NamedTuple

from runtape.domain.copying import replace
from runtape.domain.events import (
    Correlation,
    ExecutionEnded,
    ExecutionEvent,
    ExecutionRequested,
    ExecutionRestarted,
    ExecutionStarted,
    PodCreate,
    Priority,
    ResultStored,
)
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId, ProjectId
from runtape.domain.outcome import Outcome, OutcomeKind, Status

CREATE_DUE = timedelta(seconds=20)
"""When an admitted execution that has not started gets its ``pod.create`` again."""

CHECK_DUE = timedelta(seconds=60)
"""When the saga of a running or ended execution is compared with it, in case an event was lost."""

GONE = "execution_gone"
"""The reason of a saga whose execution does not exist any more."""


class SagaStep(StrEnum):
    """Where the saga stands; the last one is its end.  It never rests at ``allocate``."""

    QUEUE = "queue"
    ALLOCATE = "allocate"
    CREATE = "create"
    MONITOR = "monitor"
    STORE = "store"
    DONE = "done"


class SagaState(StrEnum):
    """What the step and the way to it come to; the last four are ends, named after the execution's."""

    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


STATE_OF: Mapping[Status, SagaState] = {
    Status.COMPLETED: SagaState.COMPLETED,
    Status.FAILED: SagaState.FAILED,
    Status.TIMEOUT: SagaState.TIMED_OUT,
    Status.CANCELLED: SagaState.CANCELLED,
}
"""The end of a saga by the end of its execution."""


class Overdue(Enum):
    """What an overdue step leads to."""

    ASK_AGAIN = "the command is given again"
    COMPARE = "the saga is brought to where its execution is"


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a step may rest until somebody looks after it, and what happens then."""

    after: timedelta
    then: Overdue


DEADLINES: Mapping[SagaStep, Deadline] = {
    SagaStep.CREATE: Deadline(CREATE_DUE, Overdue.ASK_AGAIN),
    SagaStep.MONITOR: Deadline(CHECK_DUE, Overdue.COMPARE),
    SagaStep.STORE: Deadline(CHECK_DUE, Overdue.COMPARE),
}
"""None ends an execution: that is done by its program, its limits, the last of its attempts or a cancellation."""


class StepRecord(NamedTuple):
    """One step as it was carried out; `attempt` is 0 where it belongs to none.

    ``done_at`` is when it reached its own end, ``compensated_at`` when what it held was given back.  A tuple, because
    those are short in the document.
    """

    step: SagaStep
    began_at: datetime
    attempt: int = 0
    done_at: datetime | None = None
    compensated_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Saga:
    """The document of a saga.  ``attempt`` is the one that was last asked for.

    ``records`` are the steps in the order in which they began: three, and two per attempt at most.  ``ended`` is how
    the execution ended; ``reason`` is why, when its program did not come to its own end.  ``ranked_at`` is since when
    the saga waits with its `priority`, if that is not the one that it was created with.
    """

    execution_id: ExecutionId
    project_id: ProjectId
    lang: str
    priority: Priority
    created_at: datetime
    version: int = 0
    step: SagaStep = SagaStep.QUEUE
    attempt: int = 1
    due_at: datetime | None = None
    correlation: Correlation | None = None
    records: tuple[StepRecord, ...] = ()
    ended: Status | None = None
    reason: str | None = None
    ranked_at: datetime | None = None

    @property
    def admitted(self) -> bool:
        """Whether the saga holds a place among the running ones."""
        return self.step in (SagaStep.CREATE, SagaStep.MONITOR)

    @property
    def waiting_since(self) -> datetime:
        """Since when the saga waits with the priority that it has."""
        return self.ranked_at or self.created_at

    @property
    def state(self) -> SagaState:
        """What `step` and the way to it come to."""
        match self.step:
            case SagaStep.QUEUE:
                return SagaState.QUEUED if self.records else SagaState.CREATED
            case SagaStep.DONE:
                # Without an end the execution itself is gone.
                return STATE_OF[self.ended] if self.ended is not None else SagaState.FAILED
            case SagaStep.STORE if self.reason is not None:
                return SagaState.COMPENSATING
            case _:
                return SagaState.RUNNING


def begin(event: ExecutionRequested, attempt: int = 1, correlation: Correlation | None = None) -> Saga:
    """Return the saga of a requested execution, which is going to ask for `attempt`."""
    return Saga(
        execution_id=event.execution_id,
        project_id=event.project_id,
        lang=event.lang,
        priority=event.priority,
        created_at=event.at,
        version=1,
        attempt=attempt,
        correlation=correlation,
    )


def wait(saga: Saga, at: datetime) -> Saga:
    """Stand in line."""
    return _moved(saga, SagaStep.QUEUE, at, (StepRecord(step=SagaStep.QUEUE, began_at=at),))


def rank(saga: Saga, priority: Priority, at: datetime) -> Saga:
    """Wait with another priority from now on; the same saga when it does not wait, or has that priority."""
    if saga.step is not SagaStep.QUEUE or saga.priority is priority:
        return saga
    return replace(saga, version=saga.version + 1, priority=priority, ranked_at=at)


def admit(saga: Saga, at: datetime) -> tuple[Saga, list[PodCreate]]:
    """Leave the queue and ask for the pod; nothing when that was done before."""
    if saga.step is not SagaStep.QUEUE:
        return saga, []
    began_at = saga.records[0].began_at if saga.records else saga.created_at
    records = (
        StepRecord(step=SagaStep.QUEUE, began_at=began_at, done_at=at),
        StepRecord(step=SagaStep.ALLOCATE, began_at=at, done_at=at),
    )
    return _create(saga, saga.attempt, at, records)


def check(saga: Saga, at: datetime, execution: Execution | None) -> tuple[Saga, list[PodCreate]]:
    """Do what an overdue saga lacks, given the execution as it stands; None: it is gone."""
    if saga.step is SagaStep.DONE:
        return saga, []
    over = execution is None or execution.status.terminal
    if over and saga.step is not SagaStep.STORE:
        return _end(saga, at, execution and execution.outcome), []
    if over and (execution is None or execution.result is not None):
        return _finish(saga, at, execution and execution.outcome), []
    deadline = DEADLINES.get(saga.step)
    if deadline is None:
        return saga, []
    again = replace(saga, version=saga.version + 1, due_at=at + deadline.after)
    return again, [_command(saga, at)] if deadline.then is Overdue.ASK_AGAIN else []


def restart(saga: Saga, attempt: int, at: datetime) -> tuple[Saga, list[PodCreate]]:
    """Ask for a later attempt, in the place that the saga holds; nothing when it was asked for before."""
    if attempt <= saga.attempt or saga.step in (SagaStep.STORE, SagaStep.DONE):
        return saga, []
    return _create(saga, attempt, at, _given_back(saga.records, at, kept=(SagaStep.ALLOCATE,)))


def follow(saga: Saga, event: ExecutionEvent) -> tuple[Saga, list[PodCreate]]:
    """Follow an event of the execution; events of a step that has passed change nothing."""
    match event:
        case ExecutionStarted() if saga.step in (SagaStep.QUEUE, SagaStep.CREATE) and event.attempt == saga.attempt:
            began = StepRecord(step=SagaStep.MONITOR, attempt=event.attempt, began_at=event.at)
            return _moved(saga, SagaStep.MONITOR, event.at, (*_done(saga.records, event.at), began)), []
        case ExecutionRestarted():
            return restart(saga, event.attempt, event.at)
        case ExecutionEnded() if saga.step not in (SagaStep.STORE, SagaStep.DONE):
            return _end(saga, event.at, event.outcome), []
        case ResultStored() if saga.step is not SagaStep.DONE:
            return _finish(saga, event.at, event.outcome), []
        case _:
            return saga, []


def settled(saga: Saga, status: Status) -> Saga:
    """Return a finished saga with the end of its execution; earlier versions did not write it down."""
    return replace(saga, ended=status) if saga.step is SagaStep.DONE and saga.ended is None else saga


def _create(saga: Saga, attempt: int, at: datetime, records: tuple[StepRecord, ...]) -> tuple[Saga, list[PodCreate]]:
    began = StepRecord(step=SagaStep.CREATE, attempt=attempt, began_at=at)
    created = _moved(saga, SagaStep.CREATE, at, (*records, began), attempt=attempt)
    return created, [_command(created, at)]


def _command(saga: Saga, at: datetime) -> PodCreate:
    return PodCreate(execution_id=saga.execution_id, project_id=saga.project_id, at=at, attempt=saga.attempt)


def _moved(saga: Saga, step: SagaStep, at: datetime, records: tuple[StepRecord, ...], **changes: Any) -> Saga:
    deadline = DEADLINES.get(step)
    due_at = deadline and at + deadline.after
    return replace(saga, version=saga.version + 1, step=step, due_at=due_at, records=records, **changes)


def _end(saga: Saga, at: datetime, outcome: Outcome | None) -> Saga:
    """Go on to storing the result: after the program's own end, or after giving back what is held."""
    if outcome is not None and outcome.kind not in (OutcomeKind.CANCELLED, OutcomeKind.SANDBOX_ERROR):
        records, reason = _done(saga.records, at), None
    else:
        records = _given_back(saga.records, at)
        reason = GONE if outcome is None else outcome.reason or outcome.kind
    records = (*records, StepRecord(step=SagaStep.STORE, began_at=at))
    return _moved(saga, SagaStep.STORE, at, records, ended=outcome and outcome.status, reason=reason)


def _finish(saga: Saga, at: datetime, outcome: Outcome | None) -> Saga:
    # The end itself may have been lost on its way here.
    stored = saga if saga.step is SagaStep.STORE else _end(saga, at, outcome)
    ended = outcome and outcome.status
    return _moved(saga, SagaStep.DONE, at, _done(stored.records, at), ended=ended, reason=stored.reason)


def _done(records: tuple[StepRecord, ...], at: datetime) -> tuple[StepRecord, ...]:
    """Let the step under way, if it is written down, reach its own end."""
    if not records or records[-1].done_at is not None or records[-1].compensated_at is not None:
        return records
    return (*records[:-1], records[-1]._replace(done_at=at))


def _given_back(
    records: tuple[StepRecord, ...], at: datetime, kept: tuple[SagaStep, ...] = ()
) -> tuple[StepRecord, ...]:
    return tuple(
        record._replace(compensated_at=at) if record.step not in kept and _holds(record) else record
        for record in records
    )


def _holds(record: StepRecord) -> bool:
    if record.compensated_at is not None or record.step is SagaStep.STORE:
        return False
    return record.done_at is None or record.step in (SagaStep.ALLOCATE, SagaStep.CREATE)
