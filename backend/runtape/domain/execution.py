"""The execution: one run of one script, from acceptance to its stored result.

State machine (status, in brackets the field that tells the rest)::

    requested ──> queued ──started──> running ──ended──> completed | failed | timeout | cancelled
                    ^                    │                     │
                    └────restarted───────┘                     └── result.stored  (result is set; nothing changes)

Each ``decide`` function returns the events that a command leads to, given what is known; an empty list says
that the command was carried out before or is out of date, which makes every consumer idempotent.  `evolve`
applies one event.  ``version`` counts the events applied.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from runtape.domain.artifact import NO_ARTIFACTS, Artifacts
from runtape.domain.copying import replace
from runtape.domain.errors import AlreadyTerminal
from runtape.domain.events import (
    ENDED_BY_STATUS,
    Correlation,
    ExecutionCancelRequested,
    ExecutionEnded,
    ExecutionEvent,
    ExecutionRequested,
    ExecutionRestarted,
    ExecutionStarted,
    Lease,
    PodKill,
    Priority,
    ResultStored,
    StoredResult,
)
from runtape.domain.ids import EventId, ExecutionId, ProjectId, UserId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Status, TimelinePoint, Usage
from runtape.domain.source import Source

MAX_ATTEMPTS = 3
"""Attempts of one execution, the first included, before an infrastructure failure is its outcome."""

GIVEN_BACK = "given_back"
"""Why an attempt is followed by another that counts in its place: its worker ended before it could start it."""

LEASE_GRACE = timedelta(seconds=5)
"""How long after its lease ran out an attempt is surely dead: the runtime kills at expiry by its own clock."""

ADMISSION_DUE = timedelta(seconds=30)
"""When the saga of an accepted execution is looked for again, in case its event was lost."""

RESULT_DUE = timedelta(seconds=15)
"""When storing the result of an ended execution is tried again."""


class OnInterrupt(StrEnum):
    """What an infrastructure failure leads to."""

    RESTART = "restart"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's key with the digest of the body that it was used for, valid until `expires_at`."""

    key: str
    body_sha256: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What was asked for, apart from the source: small, and shown in lists."""

    lang: str
    lang_version: str
    limits: Limits
    priority: Priority = Priority.NORMAL
    on_interrupt: OnInterrupt = OnInterrupt.RESTART
    timeline: bool = False
    """Whether memory and CPU time are to be told over time."""


@dataclass(frozen=True, slots=True)
class SourceRef:
    """Where the source is: in the document itself when it is small, else a blob under its digest."""

    inline: Source | None = None
    blob_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """One applied event, kept with the document: what a stream shows of it at any later time."""

    version: int
    type: str
    status: Status
    attempt: int
    at: datetime
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The document of an execution.

    ``attempt`` is the last one started (0: none).  ``lease`` is set while an attempt is live.  ``due_at`` is when
    the document's owner has to look after it; None once nothing is left to do.  ``last_seq`` is the last record of
    `attempt`, known once that has ended; ``artifacts`` are those of the attempt that ended the execution.
    """

    id: ExecutionId
    project_id: ProjectId
    user_id: UserId
    spec: Spec
    source: SourceRef
    created_at: datetime
    version: int = 0
    status: Status = Status.QUEUED
    idempotency: Idempotency | None = None
    retry_of: ExecutionId | None = None
    attempt: int = 0
    lease: Lease | None = None
    cancel_requested: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: Outcome | None = None
    usage: Usage | None = None
    last_seq: int = 0
    timeline: tuple[TimelinePoint, ...] | None = None
    artifacts: Artifacts = NO_ARTIFACTS
    result: StoredResult | None = None
    due_at: datetime | None = None
    history: tuple[Lifecycle, ...] = ()
    correlation: Correlation | None = None

    @property
    def live(self) -> bool:
        """Whether an attempt may be running."""
        return self.status is Status.RUNNING

    def event_id(self, version: int) -> EventId:
        return EventId(f"{self.id}.{version}")


def request(execution: Execution, at: datetime) -> list[ExecutionEvent]:
    """Accept `execution`, whose version is 0."""
    return [
        ExecutionRequested(
            execution_id=execution.id,
            project_id=execution.project_id,
            at=at,
            version=1,
            lang=execution.spec.lang,
            lang_version=execution.spec.lang_version,
            priority=execution.spec.priority,
        )
    ]


def start(execution: Execution, attempt: int, owner: str, at: datetime, lease_ttl: timedelta) -> list[ExecutionEvent]:
    """Take the lease of `attempt`; nothing when it is not the next one or must not start any more."""
    if execution.status is not Status.QUEUED or attempt != execution.attempt + 1:
        return []
    return [
        ExecutionStarted(
            execution_id=execution.id,
            project_id=execution.project_id,
            at=at,
            attempt=attempt,
            version=execution.version + 1,
            lease=Lease(owner=owner, fence=attempt, expires_at=at + lease_ttl),
        )
    ]


def finish(
    execution: Execution,
    attempt: int,
    outcome: Outcome,
    usage: Usage,
    last_seq: int,
    at: datetime,
    timeline: tuple[TimelinePoint, ...] | None = None,
    artifacts: Artifacts = NO_ARTIFACTS,
    *,
    ran: bool = True,
) -> list[ExecutionEvent]:
    """End `attempt` with `outcome`; the first end of the live attempt wins, every other is out of date.

    A failure of ours leads to a new attempt instead, while the request allows it and attempts are left; what the
    lost one has left behind is dropped then.  A program that was killed although nobody has asked for it is one.
    Where the program was never started (not `ran`), every request allows it: nothing of it would happen twice.
    """
    if not execution.live or attempt != execution.attempt:
        return []
    if outcome.kind is OutcomeKind.CANCELLED and not execution.cancel_requested:
        outcome = dataclasses.replace(outcome, kind=OutcomeKind.SANDBOX_ERROR, reason="killed")
    if outcome.kind is OutcomeKind.SANDBOX_ERROR and not execution.cancel_requested and _may_restart(execution, ran):
        return [
            ExecutionRestarted(
                execution_id=execution.id,
                project_id=execution.project_id,
                at=at,
                attempt=attempt + 1,
                version=execution.version + 1,
                reason=outcome.reason or "sandbox_error",
                last_seq=last_seq,
            )
        ]
    return [_ended(execution, outcome, usage, last_seq, at, timeline, artifacts)]


def give_back(execution: Execution, attempt: int, at: datetime) -> list[ExecutionEvent]:
    """Leave the live `attempt`, which is known not to have been started, to another worker, or to its cancellation.

    That is no failure: it is none of the `MAX_ATTEMPTS`, however often it happens.
    """
    if execution.cancel_requested:
        outcome = Outcome(kind=OutcomeKind.CANCELLED, reason="cancelled", message="cancelled before it was started")
        return finish(execution, attempt, outcome, Usage(), 0, at, ran=False)
    if not execution.live or attempt != execution.attempt:
        return []
    return [
        ExecutionRestarted(
            execution_id=execution.id,
            project_id=execution.project_id,
            at=at,
            attempt=attempt + 1,
            version=execution.version + 1,
            reason=GIVEN_BACK,
        )
    ]


def interrupt(execution: Execution, attempt: int, reason: str, last_seq: int, at: datetime) -> list[ExecutionEvent]:
    """End a live `attempt` that is known to be dead without having told its outcome."""
    if execution.cancel_requested:
        outcome = Outcome(kind=OutcomeKind.CANCELLED, reason="cancelled", message="cancelled; its worker was lost")
    else:
        outcome = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason=reason, message="the attempt was lost")
    return finish(execution, attempt, outcome, Usage(), last_seq, at)


def expire(execution: Execution, lease: Lease, last_seq: int, at: datetime) -> list[ExecutionEvent]:
    """End the live attempt that holds `lease`, which is known to be dead; nothing when it was extended since."""
    if execution.lease != lease:
        return []
    return interrupt(execution, lease.fence, "lease_expired", last_seq, at)


def lose(
    execution: Execution, lease: Lease, outcome: Outcome, last_seq: int, at: datetime, *, ran: bool
) -> list[ExecutionEvent]:
    """End the live attempt that holds `lease`, whose pod has ended with `outcome` and whose worker is gone.

    Nothing when the lease was extended since: its worker brings the end home itself.
    """
    if execution.lease != lease:
        return []
    if execution.cancel_requested:
        return interrupt(execution, lease.fence, outcome.reason or outcome.kind, last_seq, at)
    return finish(execution, lease.fence, outcome, Usage(), last_seq, at, ran=ran)


def cancel(execution: Execution, by: str, reason: str | None, at: datetime) -> list[ExecutionEvent | PodKill]:
    """Cancel: at once when no attempt is live, else by asking for the attempt's end.

    Raises: AlreadyTerminal.  Nothing when cancellation was requested before.
    """
    if execution.status.terminal:
        raise AlreadyTerminal(f"execution {execution.id} has ended ({execution.status}) and cannot be cancelled")
    if execution.cancel_requested:
        return []
    if not execution.live:
        outcome = Outcome(kind=OutcomeKind.CANCELLED, reason="cancelled", message=reason or "cancelled before it ran")
        return [_ended(execution, outcome, Usage(), execution.last_seq, at)]
    return [
        ExecutionCancelRequested(
            execution_id=execution.id,
            project_id=execution.project_id,
            at=at,
            attempt=execution.attempt,
            version=execution.version + 1,
            by=by,
            reason=reason,
        ),
        PodKill(execution_id=execution.id, project_id=execution.project_id, at=at, attempt=execution.attempt),
    ]


def store_result(
    execution: Execution, result: StoredResult, at: datetime, *, lost: Outcome | None = None
) -> list[ExecutionEvent]:
    """Record what the tape of an ended execution holds; nothing when that is recorded already.

    `lost` says that records are missing for good: it becomes the outcome, the only case in which a terminal
    status changes, and before any client was told a result.
    """
    if execution.outcome is None or execution.result is not None:
        return []
    return [
        ResultStored(
            execution_id=execution.id,
            project_id=execution.project_id,
            at=at,
            attempt=execution.attempt,
            version=execution.version + 1,
            result=result,
            outcome=lost or execution.outcome,
        )
    ]


def _may_restart(execution: Execution, ran: bool) -> bool:
    allowed = not ran or execution.spec.on_interrupt is OnInterrupt.RESTART
    given_back = sum(each.reason == GIVEN_BACK for each in execution.history)
    return allowed and execution.attempt - given_back < MAX_ATTEMPTS


def _ended(
    execution: Execution,
    outcome: Outcome,
    usage: Usage,
    last_seq: int,
    at: datetime,
    timeline: tuple[TimelinePoint, ...] | None = None,
    artifacts: Artifacts = NO_ARTIFACTS,
) -> ExecutionEnded:
    return ENDED_BY_STATUS[outcome.status](
        execution_id=execution.id,
        project_id=execution.project_id,
        at=at,
        attempt=execution.attempt,
        version=execution.version + 1,
        outcome=outcome,
        usage=usage,
        last_seq=last_seq,
        timeline=timeline,
        artifacts=artifacts,
    )


def evolve(execution: Execution, event: ExecutionEvent) -> Execution:
    """Return `execution` after `event`, whose version is the next one."""
    if event.version != execution.version + 1:
        raise ValueError(f"{event.type} makes version {event.version}, but {execution.id} is at {execution.version}")
    reason = getattr(event, "reason", None)
    history = (
        *execution.history,
        Lifecycle(event.version, event.type, event.status, event.attempt, event.at, reason),
    )
    match event:
        case ExecutionRequested():
            return replace(execution, version=event.version, history=history, due_at=event.at + ADMISSION_DUE)
        case ExecutionStarted():
            return replace(
                execution,
                version=event.version,
                history=history,
                status=Status.RUNNING,
                attempt=event.attempt,
                lease=event.lease,
                started_at=event.at,
                last_seq=0,
                due_at=event.lease.expires_at + LEASE_GRACE,
            )
        case ExecutionRestarted():
            return replace(
                execution,
                version=event.version,
                history=history,
                status=Status.QUEUED,
                lease=None,
                started_at=None,
                last_seq=event.last_seq,
                due_at=event.at + ADMISSION_DUE,
            )
        case ExecutionCancelRequested():
            return replace(execution, version=event.version, history=history, cancel_requested=True)
        case ExecutionEnded():
            return replace(
                execution,
                version=event.version,
                history=history,
                status=event.status,
                lease=None,
                outcome=event.outcome,
                usage=event.usage,
                last_seq=event.last_seq,
                timeline=event.timeline,
                artifacts=event.artifacts,
                finished_at=event.at,
                due_at=event.at + RESULT_DUE,
            )
        case ResultStored():
            return replace(
                execution,
                version=event.version,
                history=history,
                status=event.status,
                outcome=event.outcome,
                result=event.result,
                due_at=None,
            )
        case _:
            raise TypeError(f"{type(event).__name__} is no event of an execution")


def evolve_all(execution: Execution, events: Iterable[ExecutionEvent]) -> Execution:
    """Return `execution` after all `events`, in order."""
    for event in events:
        execution = evolve(execution, event)
    return execution
