"""How a run ended and what it used.  A program's failure is data, never an exception."""

from dataclasses import dataclass
from enum import StrEnum


class OutcomeKind(StrEnum):
    """The one reason why an attempt ended.  Only `SANDBOX_ERROR` is the service's own fault."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIME_LIMIT = "time_limit"
    WALL_LIMIT = "wall_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    CANCELLED = "cancelled"
    SANDBOX_ERROR = "sandbox_error"


class Phase(StrEnum):
    """The phase of a run that an outcome belongs to."""

    RESOLVE = "resolve"
    COMPILE = "compile"
    RUN = "run"


class Status(StrEnum):
    """The state of an execution; the last four are terminal and never change."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


OUTPUT_LOST = "output_lost"
"""The `Outcome.reason` of a run whose tape ends before its last record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What ended an attempt.

    ``exit_code`` is set for `EXITED` alone and ``signal`` (its number) for `SIGNALLED` alone.  ``reason`` is a
    stable word for machines (``oom``, ``lease_expired``, ...), ``message`` a sentence for people.
    """

    kind: OutcomeKind
    exit_code: int | None = None
    signal: int | None = None
    phase: Phase = Phase.RUN
    reason: str | None = None
    message: str | None = None

    @property
    def status(self) -> Status:
        """The execution status that this outcome leads to."""
        return _STATUS[self.kind]


_STATUS = {
    OutcomeKind.EXITED: Status.COMPLETED,
    OutcomeKind.SIGNALLED: Status.FAILED,
    OutcomeKind.TIME_LIMIT: Status.TIMEOUT,
    OutcomeKind.WALL_LIMIT: Status.TIMEOUT,
    OutcomeKind.MEMORY_LIMIT: Status.FAILED,
    OutcomeKind.OUTPUT_LIMIT: Status.FAILED,
    OutcomeKind.CANCELLED: Status.CANCELLED,
    OutcomeKind.SANDBOX_ERROR: Status.FAILED,
}


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """What an attempt held at one moment, and had used until then.

    ``t_ns`` counts from the hand-over of the code, and ``cpu_ns`` is user and system time; neither falls from point to
    point.
    """

    t_ns: int
    memory_bytes: int
    cpu_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an attempt used: the whole process tree, from hand-over of the code to the end."""

    wall_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    peak_memory_bytes: int = 0
    output_bytes: int = 0
