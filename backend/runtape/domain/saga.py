"""The saga of an execution: admission, and the steps until the result is stored.

There is one saga per execution and it has the execution's id.  Its steps are ``queue``, ``allocate``, ``create``,
``monitor`` and ``store``; the compensation of an allocation is its release, which the admission queue does when
the execution ends.  Saga documents are the truth of admission, the queue is an index of them.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

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
from runtape.domain.ids import ExecutionId, ProjectId

CREATE_DUE = timedelta(seconds=30)
"""When an admitted execution that has not started gets its ``pod.create`` again."""

CHECK_DUE = timedelta(seconds=60)
"""When the saga of a running or ended execution is compared with it, in case an event was lost."""


class SagaStep(StrEnum):
    """Where the saga stands; the last one is its end."""

    QUEUE = "queue"
    CREATE = "create"
    MONITOR = "monitor"
    STORE = "store"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saga:
    """The document of a saga.  ``attempt`` is the one that was last asked for."""

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

    @property
    def admitted(self) -> bool:
        """Whether the saga holds a place among the running ones."""
        return self.step in (SagaStep.CREATE, SagaStep.MONITOR)


def begin(event: ExecutionRequested, attempt: int = 1, correlation: Correlation | None = None) -> Saga:
    """Return the saga of a requested execution, waiting in the queue to ask for `attempt`."""
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


def admit(saga: Saga, at: datetime) -> tuple[Saga, list[PodCreate]]:
    """Leave the queue and ask for the pod; nothing when that was done before."""
    if saga.step is not SagaStep.QUEUE:
        return saga, []
    return _create(saga, saga.attempt, at)


def check(saga: Saga, at: datetime, *, ended: bool, stored: bool) -> tuple[Saga, list[PodCreate]]:
    """Do what an overdue saga lacks, given what its execution says; an execution that is gone is both."""
    match saga.step:
        case SagaStep.CREATE if not ended:
            return _create(saga, saga.attempt, at)
        case SagaStep.STORE if stored:
            return replace(saga, version=saga.version + 1, step=SagaStep.DONE, due_at=None), []
        case SagaStep.DONE:
            return saga, []
        case _:
            step = SagaStep.STORE if ended else saga.step
            return replace(saga, version=saga.version + 1, step=step, due_at=at + CHECK_DUE), []


def restart(saga: Saga, attempt: int, at: datetime) -> tuple[Saga, list[PodCreate]]:
    """Ask for a later attempt, in the place that the saga holds; nothing when it was asked for before."""
    if attempt <= saga.attempt or saga.step in (SagaStep.STORE, SagaStep.DONE):
        return saga, []
    return _create(saga, attempt, at)


def follow(saga: Saga, event: ExecutionEvent) -> tuple[Saga, list[PodCreate]]:
    """Follow an event of the execution; events of a step that has passed change nothing."""
    match event:
        case ExecutionStarted() if saga.step in (SagaStep.QUEUE, SagaStep.CREATE) and event.attempt == saga.attempt:
            return replace(saga, version=saga.version + 1, step=SagaStep.MONITOR, due_at=event.at + CHECK_DUE), []
        case ExecutionRestarted():
            return restart(saga, event.attempt, event.at)
        case ExecutionEnded() if saga.step not in (SagaStep.STORE, SagaStep.DONE):
            return replace(saga, version=saga.version + 1, step=SagaStep.STORE, due_at=event.at + CHECK_DUE), []
        case ResultStored() if saga.step is not SagaStep.DONE:
            return replace(saga, version=saga.version + 1, step=SagaStep.DONE, due_at=None), []
        case _:
            return saga, []


def _create(saga: Saga, attempt: int, at: datetime) -> tuple[Saga, list[PodCreate]]:
    created = replace(saga, version=saga.version + 1, step=SagaStep.CREATE, attempt=attempt, due_at=at + CREATE_DUE)
    command = PodCreate(execution_id=saga.execution_id, project_id=saga.project_id, at=at, attempt=attempt)
    return created, [command]
