"""The shapes of replay sessions."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from runtape.api.models import EXECUTION_EXAMPLE, Answer
from runtape.api.models_events import EVENT_EXAMPLE, EventFilters, event_type, known_type, type_named
from runtape.domain.errors import ValidationFailed
from runtape.domain.ids import EventId
from runtape.domain.replay import (
    FAULTS,
    MAX_EVENTS,
    MAX_SPEED,
    MIN_SPEED,
    SAMPLE,
    Pace,
    Preview,
    ReplaySession,
    Selection,
    SessionStatus,
    Target,
)

EVENT_IDS = 500
SHORT_FORM_EVENTS = 1_000

SESSION_EXAMPLE = "019a7c20-55aa-7c31-9c7e-6f2f0c7d1b9a"


class ReplayFilters(EventFilters):
    """Which events are meant; all that is given holds together."""

    model_config = ConfigDict(extra="forbid")

    event_ids: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default=[], max_length=EVENT_IDS, examples=[[EVENT_EXAMPLE]]
    )
    exclude_event_types: list[Annotated[str, AfterValidator(known_type)]] = Field(
        default=[], max_length=50, examples=[["execution_cancel_requested"]]
    )

    def selection(self, max_events: int) -> Selection:
        """Return what is asked for.  Raises: ValidationFailed."""
        where = self.filter()
        return Selection(
            event_ids=tuple(EventId(each) for each in self.event_ids),
            execution_id=where.execution_id,
            types=tuple(sorted(where.types)),
            excluded_types=tuple(sorted({type_named(name) for name in self.exclude_event_types})),
            user_id=where.user_id,
            project_id=where.project_id,
            correlation_id=where.correlation_id,
            happened_from=where.happened_from,
            happened_before=where.happened_before,
            text=where.text,
            max_events=max_events,
        )


class ReplayRequest(BaseModel):
    """A session to make: which events, into what, and how fast."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "target": "file",
                "filters": {"execution_id": EXECUTION_EXAMPLE},
                "speed": 10,
                "max_events": 1000,
            }
        },
    )

    target: Literal[Target.LOG, Target.FILE, Target.DRY_RUN] = Field(
        description="`log`: publish them again, marked as replayed (commands are skipped); `file`: write them as lines "
        "of JSON, to be downloaded; `dry_run`: tell what `log` would do"
    )
    filters: ReplayFilters = ReplayFilters()
    speed: float | None = Field(
        default=None,
        ge=MIN_SPEED,
        le=MAX_SPEED,
        description="how many times as fast as they happened; null: as fast as live work allows",
    )
    preserve_timestamps: bool = Field(
        default=False,
        description="keep the original gaps, divided by `speed` (else 1), however long; without it 5 s is the longest",
    )
    max_events: int = Field(default=MAX_EVENTS, ge=1, le=MAX_EVENTS)

    def pace(self) -> Pace:
        """Return how fast."""
        return Pace(self.speed, self.preserve_timestamps)


class EventReplayRequest(BaseModel):
    """The short form: some events to the log at once, or what that would be."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"aggregate_id": EXECUTION_EXAMPLE, "dry_run": True}}
    )

    event_ids: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default=[], max_length=EVENT_IDS)
    aggregate_id: str | None = Field(default=None, max_length=200, description="an execution's id")
    start_time: datetime | None = Field(default=None, description="at this time or later, with its zone")
    end_time: datetime | None = Field(default=None, description="before this time, with its zone")
    dry_run: bool = True

    def selection(self) -> Selection:
        """Return what is asked for.  Raises: ValidationFailed."""
        if not (self.event_ids or self.aggregate_id or self.start_time or self.end_time):
            raise ValidationFailed("say which: event_ids, aggregate_id, start_time or end_time", field="event_ids")
        for name in ("start_time", "end_time"):
            given: datetime | None = getattr(self, name)
            if given is not None and given.tzinfo is None:
                raise ValidationFailed("give the time with its zone, as in 2026-01-31T12:00:00Z", field=name)
        return ReplayFilters(
            event_ids=self.event_ids,
            aggregate_id=self.aggregate_id,
            start_time=self.start_time,
            end_time=self.end_time,
        ).selection(SHORT_FORM_EVENTS)


class RebuildRequest(BaseModel):
    """What to make anew, or to compare."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"what": "event_index"}})

    what: Literal[Target.EVENT_INDEX, Target.COMPARE_DOCUMENTS] = Field(
        description="`event_index`: drop what the event search reads and make it anew from the log, part by part; "
        "`compare_documents`: compare every execution and its saga with what their events lead to, changing nothing"
    )


class FaultAnswer(Answer):
    """What could not be replayed, or differs from its events."""

    subject: str = Field(description="the id of an event or an execution; empty: of several")
    reason: str


class PreviewAnswer(Answer):
    """What was found before anything was done."""

    by_type: dict[str, int]
    sample: list[str] = Field(description=f"the ids of the first events, up to {SAMPLE}")
    first_at: datetime | None
    last_at: datetime | None

    @classmethod
    def of(cls, preview: Preview) -> "PreviewAnswer":
        """Show `preview`."""
        return cls(
            by_type={event_type(name): count for name, count in preview.by_type.items()},
            sample=list(preview.sample),
            first_at=preview.first_at,
            last_at=preview.last_at,
        )


class ProgressAnswer(Answer):
    """How far a session has come."""

    total: int
    replayed: int = Field(description="of a comparison: equal")
    failed: int = Field(description="could not be read; of a comparison: different")
    skipped: int = Field(description="commands, and what is gone; of a comparison: events are missing, nothing is said")
    rate: float | None = Field(description="per second, since the session was last taken up")
    estimated_end: datetime | None


_PREVIEW: dict[str, Any] = {
    "by_type": {"execution_requested": 1, "execution_started": 1, "execution_completed": 1, "result_stored": 1},
    "sample": [EVENT_EXAMPLE],
    "first_at": "2026-01-05T09:30:00Z",
    "last_at": "2026-01-05T09:30:00.011900Z",
}
SESSION: dict[str, Any] = {
    "session_id": SESSION_EXAMPLE,
    "status": "running",
    "target": "file",
    "created_by": "admin",
    "created_at": "2026-01-05T10:00:00Z",
    "started_at": "2026-01-05T10:00:01Z",
    "ended_at": None,
    "speed": None,
    "preserve_timestamps": False,
    "progress": {
        "total": 4,
        "replayed": 2,
        "failed": 0,
        "skipped": 0,
        "rate": 812.5,
        "estimated_end": "2026-01-05T10:00:02Z",
    },
    "preview": _PREVIEW,
    "errors": [],
    "file_bytes": 812,
    "digest_before": None,
    "digest_after": None,
    "reason": None,
}


class ReplaySessionAnswer(Answer):
    """A replay session: what it does, how far it has come, and what went wrong."""

    model_config = ConfigDict(json_schema_extra={"example": SESSION})

    session_id: str
    status: SessionStatus
    target: Target
    created_by: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None = None
    speed: float | None = None
    preserve_timestamps: bool
    progress: ProgressAnswer
    preview: PreviewAnswer
    errors: list[FaultAnswer] = Field(description=f"the first {FAULTS}; `progress` counts all of them")
    file_bytes: int = Field(description="what can be downloaded so far")
    digest_before: str | None = Field(default=None, description="of a rebuild: the SHA-256 of what was there")
    digest_after: str | None = Field(default=None, description="of a rebuild: the SHA-256 of what is there now")
    reason: str | None = Field(default=None, description="why it failed, or who cancelled it")

    @classmethod
    def of(cls, session: ReplaySession, now: datetime) -> "ReplaySessionAnswer":
        """Show `session`."""
        return cls(
            session_id=session.id,
            status=session.status,
            target=session.target,
            created_by=session.created_by,
            created_at=session.created_at,
            started_at=session.started_at,
            ended_at=session.ended_at,
            speed=session.pace.speed,
            preserve_timestamps=session.pace.preserve_timestamps,
            progress=ProgressAnswer(
                total=session.preview.total,
                replayed=session.replayed,
                failed=session.failed,
                skipped=session.skipped,
                rate=session.rate(now),
                estimated_end=session.estimated_end(now),
            ),
            preview=PreviewAnswer.of(session.preview),
            errors=[FaultAnswer(subject=fault.subject, reason=fault.reason) for fault in session.faults],
            file_bytes=session.file_bytes,
            digest_before=session.digest_before,
            digest_after=session.digest_after,
            reason=session.reason,
        )


class ReplaySessionList(Answer):
    """A page of sessions, newest first; `next_cursor` is null on the last one."""

    model_config = ConfigDict(json_schema_extra={"example": {"sessions": [SESSION], "next_cursor": None}})

    sessions: list[ReplaySessionAnswer]
    next_cursor: str | None = None


class EventReplayAnswer(Answer):
    """What would be replayed, or the session that replays it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"dry_run": True, "total_events": 4, "preview": _PREVIEW, "session_id": None, "status": None}
        }
    )

    dry_run: bool
    total_events: int
    preview: PreviewAnswer
    session_id: str | None = None
    status: SessionStatus | None = None
