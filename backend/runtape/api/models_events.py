"""The shapes of what administrators ask about events, and of the answers."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from runtape.api.models import EXECUTION_EXAMPLE, Answer
from runtape.application.events import EventDetail
from runtape.domain.errors import ValidationFailed
from runtape.domain.events import MESSAGE_TYPES
from runtape.domain.ids import ExecutionId, ProjectId, UserId
from runtape.ports.events import ArchivedEvent, EventFilter, EventPosition, EventStatistics, StoredEvent

BROWSE_LIMIT = 500
EXPORT_LIMIT = 50_000
HOURS_LIMIT = 168

EVENT_EXAMPLE = f"{EXECUTION_EXAMPLE}.3"
CURSOR_EXAMPLE = "1767605400011900.4711"

_TYPES = {name.replace(".", "_"): name for name in MESSAGE_TYPES}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HOUR = timedelta(hours=1)
_CURSOR = re.compile(r"(\d{1,16})\.(\d{1,18})\Z", re.ASCII)


def event_type(name: str) -> str:
    """Return the type `name` of the log as it is called in the API."""
    return name.replace(".", "_")


def cursor_of(position: EventPosition | None) -> str | None:
    """Return the cursor that stands for `position`."""
    return position and f"{(position.at - _EPOCH) // _MICROSECOND}.{position.offset}"


def position_of(cursor: str | None) -> EventPosition | None:
    """Return what `cursor` stands for.  Raises: ValidationFailed."""
    if cursor is None:
        return None
    found = _CURSOR.match(cursor)
    if found is None:
        raise ValidationFailed(f'"{cursor[:80]}" is no cursor; send the next_cursor of the page before', field="cursor")
    return EventPosition(_EPOCH + int(found[1]) * _MICROSECOND, int(found[2]))


def type_named(name: str) -> str:
    """Return the log's name of the type that the API calls `name`."""
    return _TYPES[name]


def known_type(name: str) -> str:
    """Return `name` if the API has a type of that name.  Raises: ValueError."""
    if name not in _TYPES:
        raise ValueError(f"there is no event type of that name (have: {', '.join(_TYPES)})")
    return name


class EventFilters(BaseModel):
    """Which events are meant; all that is given holds together."""

    model_config = ConfigDict(extra="forbid")

    event_types: list[Annotated[str, AfterValidator(known_type)]] = Field(
        default=[], max_length=len(_TYPES), examples=[["execution_failed", "execution_timeout"]]
    )
    execution_id: str | None = Field(default=None, max_length=200, examples=[EXECUTION_EXAMPLE])
    aggregate_id: str | None = Field(
        default=None, max_length=200, description="another name of `execution_id`", examples=[EXECUTION_EXAMPLE]
    )
    user_id: str | None = Field(
        default=None,
        max_length=200,
        description="whose execution it was",
        examples=["019a7c1c-1f7e-7a10-8d11-2f0c7d1b9a01"],
    )
    project_id: str | None = Field(default=None, max_length=200, examples=["019a7c1c-1f7e-7a10-8d11-2f0c7d1b9a02"])
    correlation_id: str | None = Field(
        default=None,
        max_length=200,
        description="the `X-Request-Id` of the request that led to it",
        examples=["5f1c22d09b7a-1c"],
    )
    start_time: AwareDatetime | None = Field(
        default=None, description="at this time or later", examples=["2026-01-05T00:00:00Z"]
    )
    end_time: AwareDatetime | None = Field(
        default=None, description="before this time", examples=["2026-01-06T00:00:00Z"]
    )
    search_text: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="occurs in a value of the payload; upper and lower case are the same in ASCII",
        examples=["no longer needed"],
    )

    def filter(self) -> EventFilter:
        """Return what is asked for.  Raises: ValidationFailed."""
        execution_id = self.execution_id or self.aggregate_id
        if self.aggregate_id is not None and self.aggregate_id != execution_id:
            raise ValidationFailed("aggregate_id is another name of execution_id; give one", field="aggregate_id")
        return EventFilter(
            types=frozenset(_TYPES[name] for name in self.event_types),
            execution_id=None if execution_id is None else ExecutionId(execution_id),
            user_id=None if self.user_id is None else UserId(self.user_id),
            project_id=None if self.project_id is None else ProjectId(self.project_id),
            correlation_id=self.correlation_id,
            happened_from=self.start_time,
            happened_before=self.end_time,
            text=self.search_text,
        )


class BrowseRequest(BaseModel):
    """A page of events to show."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "filters": {"event_types": ["execution_failed"], "start_time": "2026-01-05T00:00:00Z"},
                "limit": 50,
                "cursor": CURSOR_EXAMPLE,
            }
        },
    )

    filters: EventFilters = EventFilters()
    limit: int = Field(default=50, ge=1, le=BROWSE_LIMIT)
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before", examples=[CURSOR_EXAMPLE])


class ExportQuery(EventFilters):
    """The events to export."""

    limit: int = Field(default=EXPORT_LIMIT, ge=1, le=EXPORT_LIMIT)


_EVENT: dict[str, Any] = {
    "event_id": EVENT_EXAMPLE,
    "event_type": "execution_completed",
    "topic": "execution.events.v1",
    "timestamp": "2026-01-05T09:30:00.011900Z",
    "execution_id": EXECUTION_EXAMPLE,
    "project_id": "019a7c1c-1f7e-7a10-8d11-2f0c7d1b9a02",
    "user_id": "019a7c1c-1f7e-7a10-8d11-2f0c7d1b9a01",
    "attempt": 1,
    "correlation_id": "5f1c22d09b7a-1c",
    "causation_id": f"{EXECUTION_EXAMPLE}.2",
    "payload": {"version": 3, "outcome": {"kind": "exited", "exit_code": 0}, "last_seq": 1},
}


class EventRecord(Answer):
    """An event with its payload; `payload` is null when what was stored cannot be read."""

    model_config = ConfigDict(json_schema_extra={"example": _EVENT})

    event_id: str
    event_type: str
    topic: str
    timestamp: datetime
    execution_id: str
    project_id: str | None
    user_id: str | None
    attempt: int
    correlation_id: str | None
    causation_id: str | None
    payload: dict[str, Any] | None

    @classmethod
    def of(cls, event: StoredEvent) -> "EventRecord":
        """Show `event`."""
        return cls(**_shown(event))


class EventRecordList(Answer):
    """A page of events, newest first.  Only the last has no `next_cursor`, however few events there are on others."""

    model_config = ConfigDict(json_schema_extra={"example": {"events": [_EVENT], "next_cursor": CURSOR_EXAMPLE}})

    events: list[EventRecord]
    next_cursor: str | None


class TimelineEntry(Answer):
    """One step of the execution."""

    event_id: str
    event_type: str
    timestamp: datetime
    elapsed_ms: float = Field(description="since the first of them")


class EventDetailAnswer(Answer):
    """An event, the newest others that the same request led to, and the steps of its execution, oldest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "event": _EVENT,
                "related": [{**_EVENT, "event_id": f"{EXECUTION_EXAMPLE}.4", "event_type": "result_stored"}],
                "timeline": [
                    {
                        "event_id": f"{EXECUTION_EXAMPLE}.1",
                        "event_type": "execution_requested",
                        "timestamp": "2026-01-05T09:30:00.000000Z",
                        "elapsed_ms": 0.0,
                    }
                ],
            }
        }
    )

    event: EventRecord
    related: list[EventRecord]
    timeline: list[TimelineEntry]

    @classmethod
    def of(cls, detail: EventDetail) -> "EventDetailAnswer":
        """Show `detail`."""
        return cls(
            event=EventRecord.of(detail.event),
            related=[EventRecord.of(event) for event in detail.related],
            timeline=[
                TimelineEntry(
                    event_id=event.id,
                    event_type=event_type(event.type),
                    timestamp=event.at,
                    elapsed_ms=(event.at - detail.timeline[0].at) / timedelta(milliseconds=1),
                )
                for event in detail.timeline
            ],
        )


class HourCount(Answer):
    """How many events the hour had that begins then."""

    hour: datetime
    events: int


class UserCount(Answer):
    """How many events a user's executions had."""

    user_id: str
    events: int


class EventStatisticsAnswer(Answer):
    """Counts of the last hours."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "start_time": "2026-01-05T09:30:00Z",
                "end_time": "2026-01-05T10:30:00Z",
                "total": 500,
                "by_type": {"execution_completed": 99, "execution_failed": 1},
                "by_hour": [{"hour": "2026-01-05T09:00:00Z", "events": 500}],
                "top_users": [{"user_id": "019a7c1c-1f7e-7a10-8d11-2f0c7d1b9a01", "events": 500}],
                "ended": 100,
                "error_rate": 0.01,
                "mean_duration_ms": 12.4,
            }
        }
    )

    start_time: datetime
    end_time: datetime
    total: int
    by_type: dict[str, int]
    by_hour: list[HourCount] = Field(description="every hour from the first to the last, the empty ones too")
    top_users: list[UserCount] = Field(description="up to ten, by the number of their events")
    ended: int = Field(description="executions that ended")
    error_rate: float = Field(description="how many of these failed or ran out of time, from 0 to 1")
    mean_duration_ms: float | None = Field(description="from request to end; null when none has ended")

    @classmethod
    def of(cls, start: datetime, end: datetime, statistics: EventStatistics) -> "EventStatisticsAnswer":
        """Show `statistics` of the events from `start` to `end`."""
        first = start.replace(minute=0, second=0, microsecond=0)
        hours = [first + number * _HOUR for number in range((end - first) // _HOUR + 1)]
        mean = statistics.mean_duration
        return cls(
            start_time=start,
            end_time=end,
            total=statistics.total,
            by_type={event_type(name): count for name, count in statistics.by_type.items()},
            by_hour=[HourCount(hour=hour, events=statistics.by_hour.get(hour, 0)) for hour in hours],
            top_users=[UserCount(user_id=user_id, events=count) for user_id, count in statistics.by_user.items()],
            ended=statistics.ended,
            error_rate=statistics.failed / statistics.ended if statistics.ended else 0.0,
            mean_duration_ms=None if mean is None else mean / timedelta(milliseconds=1),
        )


class ArchivedEventRecord(EventRecord):
    """An event that was taken out of the log: when, by whom and why."""

    archived_at: datetime
    archived_by: str
    reason: str

    @classmethod
    def of_archived(cls, archived: ArchivedEvent) -> "ArchivedEventRecord":
        """Show `archived`."""
        about = archived.archival
        return cls(**_shown(archived.event), archived_at=about.at, archived_by=about.by, reason=about.reason)


class ArchivedEventList(Answer):
    """A page of archived events, last archived first; `next_cursor` is null on the last one."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "events": [
                    {
                        **_EVENT,
                        "archived_at": "2026-01-06T08:00:00Z",
                        "archived_by": "admin",
                        "reason": "the execution was deleted",
                    }
                ],
                "next_cursor": CURSOR_EXAMPLE,
            }
        }
    )

    events: list[ArchivedEventRecord]
    next_cursor: str | None


def _shown(event: StoredEvent) -> dict[str, Any]:
    return {
        "event_id": event.id,
        "event_type": event_type(event.type),
        "topic": event.topic,
        "timestamp": event.at,
        "execution_id": event.execution_id,
        "project_id": event.project_id,
        "user_id": event.user_id,
        "attempt": event.attempt,
        "correlation_id": event.correlation_id,
        "causation_id": event.causation_id,
        "payload": payload_of(event),
    }


def payload_of(event: StoredEvent) -> dict[str, Any] | None:
    """Return what the event says, None when that cannot be read."""
    try:
        return msgspec.json.decode(event.body, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
