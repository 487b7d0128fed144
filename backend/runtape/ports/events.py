"""The event store: every message of the log to be asked about, and those that were taken out of it.

An *event* here is any message of the log, commands too.  They are told newest first, by the time that they carry and
then by their offset.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from runtape.domain.ids import EventId, ExecutionId, ProjectId, UserId


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One message as it was published; `body` is its JSON, which names neither type nor topic.

    ``user_id`` is whose execution it belongs to.  Of a body that cannot be read all is None that would stand in it,
    and its time is the epoch.
    """

    offset: int
    id: EventId
    type: str
    topic: str
    execution_id: ExecutionId
    project_id: ProjectId | None
    user_id: UserId | None
    at: datetime
    attempt: int
    correlation_id: str | None
    causation_id: EventId | None
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events to tell: all conditions hold together; times bound ``at``, the upper one open.

    ``text`` has to occur in one of the values in the body (their names do not count), letters of ASCII in either case.
    """

    types: frozenset[str] = frozenset()
    execution_id: ExecutionId | None = None
    user_id: UserId | None = None
    project_id: ProjectId | None = None
    correlation_id: str | None = None
    happened_from: datetime | None = None
    happened_before: datetime | None = None
    text: str | None = None


class EventPosition(NamedTuple):
    """A place among all events: right behind the one with this time and offset, on the way to the older ones."""

    at: datetime
    offset: int


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events, and where the search goes on; None: nothing older matches."""

    events: Sequence[StoredEvent]
    next: EventPosition | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStatistics:
    """Counts of events, of all ends of executions and of those that failed or ran out of time among them.

    ``by_hour`` goes by the hour's beginning and leaves out empty hours; ``by_user`` has the ten with most events.
    """

    total: int
    by_type: Mapping[str, int]
    by_hour: Mapping[datetime, int]
    by_user: Mapping[UserId, int]
    ended: int
    failed: int
    mean_duration: timedelta | None
    """From request to end; None when nothing has ended."""


@dataclass(frozen=True, slots=True)
class Archival:
    """Who takes events out of the log, when and what for."""

    by: str
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class ArchivedEvent:
    """An event that was taken out of the log."""

    event: StoredEvent
    archival: Archival


class EventStore(Protocol):
    """Asks about the log.  Every call is done in bounded pieces: none holds up the log's writers for long."""

    async def browse(self, where: EventFilter, limit: int, after: EventPosition | None = None) -> EventPage:
        """Return up to `limit` matching events, newest first, beginning behind `after`.

        A page that begins at the newest has all that was committed before this call.  The search is bounded: a page
        may have fewer events, even none, and still say where to go on.
        """
        ...

    async def get(self, event_id: EventId) -> StoredEvent | None:
        """Return the event; the one published first when it was published twice."""
        ...

    async def statistics(self, happened_from: datetime, happened_before: datetime) -> EventStatistics:
        """Return the counts of the events in that time."""
        ...

    async def archive(self, event_id: EventId, archival: Archival) -> None:
        """Take the event out of the log into the archive; nothing when it is not in the log."""
        ...

    async def archived(
        self, limit: int, after: EventPosition | None = None, execution_id: ExecutionId | None = None
    ) -> Sequence[ArchivedEvent]:
        """Return up to `limit` archived events, last archived first, of one execution or of all.

        `after` is the ``archival.at`` and the offset of the last one that is known.
        """
        ...

    async def prune(self, before: datetime, limit: int) -> int:
        """Remove up to `limit` events that were archived before then, the oldest first, for good; return how many."""
        ...

    async def index(self, leave: int = 0) -> int:
        """Take what is new in the log into the index, but for the newest `leave` messages; return how many it lacks.

        Any call that needs the newest takes them in by itself.
        """
        ...

    async def rebuild(self) -> None:
        """Make the index anew from the log; it can be asked meanwhile."""
        ...

    async def digest(self) -> str:
        """Return the SHA-256 of the index in hex: two that say the same have the same."""
        ...
