"""What replay sessions need: their documents, the events in the order of the log, and files of their own."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from runtape.domain.events import ExecutionEvent, Message
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.replay import ReplaySession, ReplaySessionId, Selection, SessionStatus, Target
from runtape.domain.saga import Saga
from runtape.ports.events import StoredEvent


@dataclass(frozen=True, slots=True)
class ReplayedMessage:
    """A message that is published again; `body` has the bytes that it was published as."""

    message: Message
    body: bytes


class ReplaySessionStore(Protocol):
    """Session documents."""

    async def create(self, session: ReplaySession) -> None:
        """Store a new session; it survives the loss of power."""
        ...

    async def get(self, session_id: ReplaySessionId) -> ReplaySession | None:
        """Return the newest committed document."""
        ...

    async def commit(
        self, session: ReplaySession, expected_version: int, again: Sequence[ReplayedMessage] = ()
    ) -> None:
        """Replace the version `expected_version` of the document, and publish `again` in that order.

        Each copy carries the session's id in its `Delivery.replayed_by`.  An adapter that can does both or nothing;
        another one publishes first, and after a crash the same copies may come twice, with the same ids and mark.
        Raises: VersionConflict; Transient.
        """
        ...

    async def list(
        self,
        *,
        status: SessionStatus | None,
        target: Target | None,
        limit: int,
        before: ReplaySessionId | None,
    ) -> Sequence[ReplaySession]:
        """Return up to `limit` sessions, newest first, beginning after `before`."""
        ...

    async def running(self) -> Sequence[ReplaySession]:
        """Return every session that runs."""
        ...

    async def ended(self, before: datetime, limit: int) -> Sequence[ReplaySession]:
        """Return up to `limit` sessions that ended before then, the oldest first."""
        ...

    async def delete(self, session_id: ReplaySessionId) -> None:
        """Remove the document; idempotent.  What the session has published stays."""
        ...


@dataclass(frozen=True, slots=True)
class EventSlice:
    """Some events in the order of the log.  Nothing that is asked for lies between them or before `position`.

    ``complete``: nothing lies behind `position` either.
    """

    events: Sequence[StoredEvent]
    position: str
    complete: bool


class EventSource(Protocol):
    """The events of the log from the oldest to the newest; copies that a session has published are not among them.

    Positions are texts of the adapter; that of an event is its offset in decimal, and the empty one is before all.
    """

    async def newest(self) -> str:
        """Return the position of the newest event."""
        ...

    async def read(self, selection: Selection, after: str, until: str, limit: int) -> EventSlice:
        """Return up to `limit` events behind `after` and not behind `until`.

        The search is bounded: a slice may have fewer events, even none, and not be complete.
        """
        ...


@dataclass(frozen=True, slots=True)
class Remade:
    """How much of a read model was made anew, up to `position`, and whether that is all."""

    rows: int
    position: str
    complete: bool


class EventIndex(Protocol):
    """The read model that `EventStore` and `EventSource` search.  Positions are those of `EventSource`."""

    async def count(self, until: str) -> int:
        """Return how many events of the log it has to tell of, up to `until`."""
        ...

    async def remake(self, after: str, until: str) -> Remade:
        """Drop the next part behind `after` and make it anew from the log; it can be asked meanwhile."""
        ...

    async def digest(self, until: str) -> str:
        """Return the SHA-256 of what it says up to `until`, in hex: two that say the same have the same."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentHistory:
    """An execution's documents as they are stored, and the messages of it that the log held at the same moment.

    ``columns`` are the fields that the store searches beside the documents, in the documents' words; ``unreadable``
    says why a document cannot be read: then it is None.  Messages are in the order of the log, each once.
    """

    execution_id: ExecutionId
    execution: Execution | None
    saga: Saga | None
    columns: dict[str, object]
    messages: Sequence[Message]
    unreadable: str | None = None

    @property
    def events(self) -> Sequence[ExecutionEvent]:
        """What happened to the execution, without the commands."""
        return [message for message in self.messages if isinstance(message, ExecutionEvent)]


class DocumentHistories(Protocol):
    """Documents beside the events that led to them."""

    async def count(self) -> int:
        """Return how many executions there are."""
        ...

    async def newest(self) -> str:
        """Return the id of the newest execution, empty when there is none."""
        ...

    async def read(self, after: str, until: str, limit: int) -> Sequence[DocumentHistory]:
        """Return the next executions behind `after` and not behind `until`, in the order of their ids.

        What is stored is read, nothing that is kept in memory.
        """
        ...


class ReplayFiles(Protocol):
    """One file per session, under the service's own names."""

    async def write(self, session_id: ReplaySessionId, at_bytes: int, data: bytes) -> None:
        """Let the file end with `data` at `at_bytes`, whatever it has beyond that; it survives the loss of power."""
        ...

    def read(self, session_id: ReplaySessionId, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` to `end` (exclusive)."""
        ...

    async def remove(self, session_id: ReplaySessionId) -> None:
        """Remove the file; idempotent."""
        ...
