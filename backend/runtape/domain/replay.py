"""Replay sessions: what happened, told again; and read models made anew from it.

State machine::

    created ──start──> running ──> completed | failed
       │                │   ^
       │              pause  resume
       │                v   │
       └──cancel──>   paused ──cancel──> cancelled   (also from running)

Each ``decide`` function returns the events that a command leads to; an empty list says that there is nothing to do.
`evolve` applies one.  ``version`` counts the events applied.

A session replays *events*.  Commands say what shall happen, and nothing shall happen again: `refusal` is the one place
that keeps them out of the log.  To run an execution again is another thing, and makes a new execution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType

from runtape.domain.errors import SessionStateConflict
from runtape.domain.events import MESSAGE_TYPES, ExecutionEvent
from runtape.domain.ids import EventId, ExecutionId, ProjectId, UserId

ReplaySessionId = NewType("ReplaySessionId", str)

MAX_EVENTS = 100_000
"""Events of one session at most."""

MIN_SPEED = 0.1
MAX_SPEED = 100.0

LONGEST_GAP_S = 5.0
"""Longer silences are cut to this, after the speed, unless the original ones are asked for."""

FAULTS = 100
"""Faults that a session remembers; it counts all of them."""

SAMPLE = 10


class Target(StrEnum):
    """What a session makes of the events."""

    LOG = "log"
    FILE = "file"
    DRY_RUN = "dry_run"
    EVENT_INDEX = "event_index"
    COMPARE_DOCUMENTS = "compare_documents"


REPLAYS = (Target.LOG, Target.FILE, Target.DRY_RUN)
REBUILDS = (Target.EVENT_INDEX, Target.COMPARE_DOCUMENTS)


class SessionStatus(StrEnum):
    """Where a session stands; the last three are ends."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self in (SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which events are meant: all conditions hold together; times bound when they happened, the upper one open.

    ``text`` has to occur in a value of the payload.  Of the events that are found the first ``max_events`` are taken,
    in the order of the log.
    """

    event_ids: tuple[EventId, ...] = ()
    execution_id: ExecutionId | None = None
    types: tuple[str, ...] = ()
    excluded_types: tuple[str, ...] = ()
    user_id: UserId | None = None
    project_id: ProjectId | None = None
    correlation_id: str | None = None
    happened_from: datetime | None = None
    happened_before: datetime | None = None
    text: str | None = None
    max_events: int = MAX_EVENTS


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast events follow one another: `speed` times as fast as they came about; None: as fast as may be.

    A silence is never longer than `LONGEST_GAP_S`, unless `preserve_timestamps` asks for the original ones.
    """

    speed: float | None = None
    preserve_timestamps: bool = False

    @property
    def paced(self) -> bool:
        """Whether there is time between events at all."""
        return self.speed is not None or self.preserve_timestamps

    def gap_s(self, earlier: datetime, later: datetime) -> float:
        """Return how long to wait between events of these times, s."""
        if not self.paced:
            return 0.0
        gap_s = max(0.0, (later - earlier).total_seconds()) / (self.speed or 1.0)
        return gap_s if self.preserve_timestamps else min(gap_s, LONGEST_GAP_S)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that could not be replayed, or differs: the id of an event or an execution, and why."""

    subject: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a selection comes to, told before anything is done."""

    total: int
    by_type: Mapping[str, int] = field(default_factory=dict[str, int])
    sample: tuple[EventId, ...] = ()
    first_at: datetime | None = None
    last_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What one step has done.  ``position`` is where the next one begins; ``last_at`` is the last event's time."""

    position: str
    replayed: int = 0
    failed: int = 0
    skipped: int = 0
    faults: tuple[Fault, ...] = ()
    file_bytes: int | None = None
    last_at: datetime | None = None
    digest_before: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySession:
    """The document of a session.

    ``position`` is how far it has come (empty: nowhere yet), ``until`` how far it goes, both in the terms of what it
    reads.  ``preview.total`` is what there is to do; ``replayed``, ``failed`` and ``skipped`` add up to what is done.
    Of a comparison ``replayed`` counts what is equal, ``failed`` what differs and ``skipped`` what is incomplete.
    ``running_since`` is when the session was last taken up, with ``done_before`` done by then.
    """

    id: ReplaySessionId
    target: Target
    created_by: str
    created_at: datetime
    preview: Preview
    until: str
    selection: Selection = Selection()
    pace: Pace = Pace()
    status: SessionStatus = SessionStatus.CREATED
    version: int = 1
    position: str = ""
    replayed: int = 0
    failed: int = 0
    skipped: int = 0
    faults: tuple[Fault, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    running_since: datetime | None = None
    done_before: int = 0
    last_event_at: datetime | None = None
    file_bytes: int = 0
    digest_before: str | None = None
    digest_after: str | None = None
    reason: str | None = None

    @property
    def done(self) -> int:
        """How many were dealt with, one way or another."""
        return self.replayed + self.failed + self.skipped

    def rate(self, now: datetime) -> float | None:
        """Return how many were done per second since the session was taken up; None when that cannot be said."""
        until = self.ended_at or now
        if self.running_since is None or until <= self.running_since:
            return None
        return (self.done - self.done_before) / (until - self.running_since).total_seconds()

    def estimated_end(self, now: datetime) -> datetime | None:
        """Return when a running session will have ended if it goes on like this."""
        rate = self.rate(now)
        if self.status is not SessionStatus.RUNNING or not rate:
            return None
        return now + timedelta(seconds=max(0, self.preview.total - self.done) / rate)


@dataclass(frozen=True, slots=True)
class Moved:
    """The session has another status; ``reason`` says why it failed or who wanted it."""

    at: datetime
    status: SessionStatus
    reason: str | None = None
    digest_after: str | None = None


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A process carries the session on from here: whoever did before does so no longer."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Advanced:
    """A step was done."""

    advance: Advance


SessionEvent = Moved | TakenUp | Advanced


def start(session: ReplaySession, at: datetime) -> list[SessionEvent]:
    """Begin; nothing when it has begun.  Raises: SessionStateConflict."""
    if session.status is SessionStatus.RUNNING:
        return []
    return _move(session, SessionStatus.RUNNING, at, SessionStatus.CREATED)


def pause(session: ReplaySession, at: datetime) -> list[SessionEvent]:
    """Stop after the step that is under way.  Raises: SessionStateConflict."""
    if session.status is SessionStatus.PAUSED:
        return []
    return _move(session, SessionStatus.PAUSED, at, SessionStatus.RUNNING)


def resume(session: ReplaySession, at: datetime) -> list[SessionEvent]:
    """Go on where it was paused.  Raises: SessionStateConflict."""
    if session.status is SessionStatus.RUNNING:
        return []
    return _move(session, SessionStatus.RUNNING, at, SessionStatus.PAUSED)


def cancel(session: ReplaySession, at: datetime, by: str) -> list[SessionEvent]:
    """End before the end; what was done stands.  Raises: SessionStateConflict."""
    if session.status is SessionStatus.CANCELLED:
        return []
    unfinished = (SessionStatus.CREATED, SessionStatus.RUNNING, SessionStatus.PAUSED)
    return _move(session, SessionStatus.CANCELLED, at, *unfinished, reason=f"cancelled by {by}")


def take_up(session: ReplaySession, at: datetime) -> list[SessionEvent]:
    """Carry a running session on; nothing when it does not run."""
    return [TakenUp(at)] if session.status is SessionStatus.RUNNING else []


def advance(session: ReplaySession, step: Advance) -> list[SessionEvent]:
    """Record a step; nothing when the session does not run any more."""
    return [Advanced(step)] if session.status is SessionStatus.RUNNING else []


def complete(session: ReplaySession, at: datetime, digest_after: str | None = None) -> list[SessionEvent]:
    """End when everything is done; what was counted and is not there any more was skipped."""
    if session.status is not SessionStatus.RUNNING:
        return []
    end = Moved(at, SessionStatus.COMPLETED, digest_after=digest_after)
    gone = session.preview.total - session.done
    if session.target not in REPLAYS or gone <= 0:
        return [end]
    fault = Fault("", f"{gone} events that were counted are no longer in the log")
    return [Advanced(Advance(position=session.position, skipped=gone, faults=(fault,))), end]


def fail(session: ReplaySession, at: datetime, reason: str) -> list[SessionEvent]:
    """End because it cannot go on."""
    return [Moved(at, SessionStatus.FAILED, reason)] if session.status is SessionStatus.RUNNING else []


def check_deletable(session: ReplaySession) -> None:
    """Return when the session may be removed.  Raises: SessionStateConflict."""
    if session.status in (SessionStatus.RUNNING, SessionStatus.PAUSED):
        raise SessionStateConflict(f"session {session.id} is {session.status}; cancel it first")


def refusal(name: str) -> str | None:
    """Return why messages of the type `name` are never replayed to the log; None when they may be."""
    message = MESSAGE_TYPES.get(name)
    if message is None:
        return f'no message has the type "{name}" any more'
    return None if issubclass(message, ExecutionEvent) else f"{name} is a command: it would do something again"


def _move(
    session: ReplaySession, status: SessionStatus, at: datetime, *allowed: SessionStatus, reason: str | None = None
) -> list[SessionEvent]:
    if session.status not in allowed:
        names = " or ".join(allowed)
        raise SessionStateConflict(f"session {session.id} is {session.status}; this needs one that is {names}")
    return [Moved(at, status, reason)]


def evolve(session: ReplaySession, event: SessionEvent) -> ReplaySession:
    """Return `session` after `event`."""
    version = session.version + 1
    match event:
        case Moved():
            running = event.status is SessionStatus.RUNNING
            return replace(
                session,
                version=version,
                status=event.status,
                reason=event.reason,
                started_at=session.started_at or (event.at if running else None),
                ended_at=event.at if event.status.ended else None,
                running_since=session.running_since if event.status.ended else None,
                digest_after=event.digest_after,
            )
        case TakenUp():
            return replace(session, version=version, running_since=event.at, done_before=session.done)
        case Advanced():
            step = event.advance
            return replace(
                session,
                version=version,
                position=step.position,
                replayed=session.replayed + step.replayed,
                failed=session.failed + step.failed,
                skipped=session.skipped + step.skipped,
                faults=(*session.faults, *step.faults)[:FAULTS],
                file_bytes=session.file_bytes if step.file_bytes is None else step.file_bytes,
                last_event_at=step.last_at or session.last_event_at,
                digest_before=step.digest_before or session.digest_before,
            )


def evolve_all(session: ReplaySession, events: Sequence[SessionEvent]) -> ReplaySession:
    """Return `session` after all `events`, in order."""
    for event in events:
        session = evolve(session, event)
    return session
