"""Events (what happened) and commands (what shall happen), as they travel through the log.

Every message is keyed by its execution id, so the messages of one execution are handled in order.  An event's
``version`` is the version of the execution document that it made; event ids are derived from it, so that a
message published twice is the same message.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Self

from runtape.domain.artifact import NO_ARTIFACTS, Artifacts
from runtape.domain.copying import replace
from runtape.domain.ids import EventId, ExecutionId, ProjectId
from runtape.domain.outcome import Outcome, Status, TimelinePoint, Usage

EXECUTION_EVENTS = "execution.events.v1"
POD_COMMANDS = "pod.commands.v1"


class Priority(StrEnum):
    """Admission order, most urgent first; equal priorities are served fairly between projects, then in order."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    BACKGROUND = "background"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to run one attempt, held by one worker until `expires_at`.

    ``fence`` is the attempt number: a write that carries an older fence is refused.
    """

    owner: str
    fence: int
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """What the tape of the last attempt holds, digested once it was complete."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0
    stdout_sha256: str
    stderr_sha256: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Correlation:
    """What everything that one request led to has in common.

    ``id`` names the request; ``traceparent`` is the trace that it belongs to (W3C Trace Context, 3.2).
    """

    id: str
    traceparent: str


@dataclass(frozen=True, kw_only=True)
class Message:
    """What events and commands have in common.  ``attempt`` is 0 where no attempt is meant.

    ``causation_id`` is the message that this one reacts to; None where somebody's request or the passing of time led
    to it.  Who decides on a message leaves both ids to `caused`.
    """

    type: ClassVar[str]
    topic: ClassVar[str]

    execution_id: ExecutionId
    project_id: ProjectId
    at: datetime
    attempt: int = 0
    correlation: Correlation | None = None
    causation_id: EventId | None = None

    @property
    def id(self) -> EventId:
        raise NotImplementedError

    def caused(self, correlation: Correlation | None, causation_id: EventId | None) -> Self:
        """Return the message with what it belongs to and what led to it."""
        return replace(self, correlation=correlation, causation_id=causation_id)


@dataclass(frozen=True, kw_only=True)
class ExecutionEvent(Message):
    """A step in the life of an execution; `status` is the one that it leads to."""

    topic: ClassVar[str] = EXECUTION_EVENTS
    version: int

    @property
    def id(self) -> EventId:
        return EventId(f"{self.execution_id}.{self.version}")

    @property
    def status(self) -> Status:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ExecutionRequested(ExecutionEvent):
    """The request was accepted and is durable."""

    type: ClassVar[str] = "execution.requested"
    lang: str
    lang_version: str
    priority: Priority

    @property
    def status(self) -> Status:
        return Status.QUEUED


@dataclass(frozen=True, kw_only=True)
class ExecutionStarted(ExecutionEvent):
    """A worker holds the lease of `attempt`; its code is handed over only after this is durable."""

    type: ClassVar[str] = "execution.started"
    lease: Lease

    @property
    def status(self) -> Status:
        return Status.RUNNING


@dataclass(frozen=True, kw_only=True)
class ExecutionRestarted(ExecutionEvent):
    """The attempt before `attempt` was lost for a reason of ours and is dead; `attempt` may start.

    ``last_seq`` is the last record of the attempt that was lost.
    """

    type: ClassVar[str] = "execution.restarted"
    reason: str
    last_seq: int = 0

    @property
    def status(self) -> Status:
        return Status.QUEUED


@dataclass(frozen=True, kw_only=True)
class ExecutionCancelRequested(ExecutionEvent):
    """Somebody asked to end a live attempt; the attempt's own end decides."""

    type: ClassVar[str] = "execution.cancel_requested"
    by: str
    reason: str | None = None

    @property
    def status(self) -> Status:
        return Status.RUNNING


@dataclass(frozen=True, kw_only=True)
class ExecutionEnded(ExecutionEvent):
    """The one terminal event of an execution; its subclasses differ in their type alone.

    ``last_seq`` is the last record of `attempt`: the tape is complete when it holds all up to there.  ``timeline`` is
    there when the request asked for it.  The content of `artifacts` is stored before the event is.
    """

    outcome: Outcome
    usage: Usage
    last_seq: int
    timeline: tuple[TimelinePoint, ...] | None = None
    artifacts: Artifacts = NO_ARTIFACTS

    @property
    def status(self) -> Status:
        return self.outcome.status


@dataclass(frozen=True, kw_only=True)
class ExecutionCompleted(ExecutionEnded):
    """The program ended by itself, whatever its exit code."""

    type: ClassVar[str] = "execution.completed"


@dataclass(frozen=True, kw_only=True)
class ExecutionFailed(ExecutionEnded):
    """The program was ended by a signal or a limit other than time, or the sandbox failed."""

    type: ClassVar[str] = "execution.failed"


@dataclass(frozen=True, kw_only=True)
class ExecutionTimeout(ExecutionEnded):
    """The program used up its CPU or wall time."""

    type: ClassVar[str] = "execution.timeout"


@dataclass(frozen=True, kw_only=True)
class ExecutionCancelled(ExecutionEnded):
    """The program was ended, or never started, because somebody asked."""

    type: ClassVar[str] = "execution.cancelled"


@dataclass(frozen=True, kw_only=True)
class ResultStored(ExecutionEvent):
    """The outcome is recorded and the tape is complete: nothing about this execution changes any more."""

    type: ClassVar[str] = "result.stored"
    result: StoredResult
    outcome: Outcome

    @property
    def status(self) -> Status:
        return self.outcome.status


@dataclass(frozen=True, kw_only=True)
class PodCreate(Message):
    """Start `attempt`, unless it was started before or the execution has ended."""

    type: ClassVar[str] = "pod.create"
    topic: ClassVar[str] = POD_COMMANDS

    @property
    def id(self) -> EventId:
        return EventId(f"{self.execution_id}.create.{self.attempt}")


@dataclass(frozen=True, kw_only=True)
class PodKill(Message):
    """End `attempt`, if it still runs."""

    type: ClassVar[str] = "pod.kill"
    topic: ClassVar[str] = POD_COMMANDS

    @property
    def id(self) -> EventId:
        return EventId(f"{self.execution_id}.kill.{self.attempt}")


ENDED_BY_STATUS: dict[Status, type[ExecutionEnded]] = {
    Status.COMPLETED: ExecutionCompleted,
    Status.FAILED: ExecutionFailed,
    Status.TIMEOUT: ExecutionTimeout,
    Status.CANCELLED: ExecutionCancelled,
}

MESSAGE_TYPES: dict[str, type[Message]] = {
    message.type: message
    for message in (
        ExecutionRequested,
        ExecutionStarted,
        ExecutionRestarted,
        ExecutionCancelRequested,
        ExecutionCompleted,
        ExecutionFailed,
        ExecutionTimeout,
        ExecutionCancelled,
        ResultStored,
        PodCreate,
        PodKill,
    )
}
"""Every message type by its name on the wire."""
