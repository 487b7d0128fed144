"""Notifications: what an owner is told of while they look elsewhere.

Of the ends of an execution, those are told that the program did not come to by itself: it failed or ran out of time.
A program that exits with another code than 0 has completed, and who cancels knows it.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId, NotificationId, UserId
from runtape.domain.outcome import Outcome, OutcomeKind, Phase, Status

BODY_CHARACTERS = 500
"""The most that a body has: a longer message is cut."""


class Severity(StrEnum):
    """How much a notification matters."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    URGENT = "urgent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """Something that one user is told.

    It has the id of the event that it tells of, so that what is told twice is told once.  ``tags`` are words to choose
    by.
    """

    id: NotificationId
    user_id: UserId
    severity: Severity
    subject: str
    body: str
    tags: tuple[str, ...]
    execution_id: ExecutionId | None = None
    created_at: datetime
    read_at: datetime | None = None


_TOLD = {Status.FAILED: (Severity.HIGH, "failed"), Status.TIMEOUT: (Severity.MEDIUM, "timed out")}

_WHO = {Phase.RESOLVE: "Installing its packages", Phase.COMPILE: "Its compiler", Phase.RUN: "The program"}
_DID = {
    OutcomeKind.SIGNALLED: "was ended by signal {signal}",
    OutcomeKind.TIME_LIMIT: "used up its CPU time",
    OutcomeKind.WALL_LIMIT: "took longer than its wall time",
    OutcomeKind.MEMORY_LIMIT: "needed more memory than it may have",
    OutcomeKind.OUTPUT_LIMIT: "gave out more than it may",
    OutcomeKind.SANDBOX_ERROR: "was lost for a reason of ours",
}


def of_end(execution: Execution) -> Notification | None:
    """Return what the owner of `execution`, whose result was just stored, is told; None for an end that tells nothing.

    Before its result is stored an end may still become another one: output can turn out to be lost.  Made twice, it
    is the same.
    """
    told = _TOLD.get(execution.status)
    if told is None or execution.outcome is None or execution.finished_at is None:
        return None
    severity, how = told
    return Notification(
        id=NotificationId(execution.event_id(execution.version)),
        user_id=execution.user_id,
        severity=severity,
        subject=f"{execution.spec.lang} {execution.spec.lang_version} run {how}",
        body=_body(execution.outcome),
        tags=("execution", "entity:execution", f"exec:{execution.id}", str(execution.status)),
        execution_id=execution.id,
        created_at=execution.finished_at,
    )


def _body(outcome: Outcome) -> str:
    did = _DID[outcome.kind].format(signal=outcome.signal)
    why = outcome.message or outcome.reason
    text = f"{_WHO[outcome.phase]} {did}{f': {why}' if why else ''}"
    return text if len(text) <= BODY_CHARACTERS else text[: BODY_CHARACTERS - 1] + "…"
