"""What administrators ask about events, and the task that keeps their index near the end of the log."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from runtape.domain.errors import NotFound, NotTerminal
from runtape.domain.identity import Principal
from runtape.domain.ids import EventId, ExecutionId
from runtape.ports.clock import Clock
from runtape.ports.errors import Transient
from runtape.ports.events import (
    Archival,
    ArchivedEvent,
    EventFilter,
    EventPage,
    EventPosition,
    EventStatistics,
    EventStore,
    StoredEvent,
)
from runtape.ports.stores import ExecutionStore

log = structlog.get_logger(__name__)

INDEX_INTERVAL_S = 10.0
BUSY = 1_000
"""Messages that come between two looks and let the index wait: while many runs end they are not to pay for it."""

LONGEST_LAG = 100_000
"""Messages that the index may lack when nobody asks: who then asks waits for as long as they take, about 3 s."""

RELATED = 10
TIMELINE = 200
CAUSES = 1_000

EXPORT_PAGE = 50
"""Events of an export that are in memory, and that are written before anybody else has a turn."""


@dataclass(frozen=True, slots=True)
class EventDetail:
    """An event, the newest others that the same request led to, and what happened to its execution, oldest first."""

    event: StoredEvent
    related: Sequence[StoredEvent]
    timeline: Sequence[StoredEvent]


class EventBrowser:
    """Reads and archives events.  Who may is for the caller to know: nothing here asks for a project."""

    def __init__(self, *, store: EventStore, executions: ExecutionStore, clock: Clock) -> None:
        self._store = store
        self._executions = executions
        self._clock = clock
        self._left_waiting = 0

    async def keep_index(self) -> None:
        """Look after the index from time to time; runs until cancelled."""
        while True:
            await asyncio.sleep(INDEX_INTERVAL_S)
            try:
                await self.look_after_index()
            except Transient as error:
                log.warning("event_index.failed", error=str(error))

    async def look_after_index(self) -> None:
        """Take into the index what is too much to wait, and all of it when little has come since the last look."""
        waiting = await self._store.index(leave=LONGEST_LAG)
        if waiting - self._left_waiting < BUSY:
            waiting = await self._store.index()
        self._left_waiting = waiting

    async def browse(self, where: EventFilter, limit: int, after: EventPosition | None) -> EventPage:
        """Return a page of events, newest first; see `EventStore.browse`."""
        return await self._store.browse(where, limit, after)

    async def statistics(self, hours: int) -> tuple[datetime, datetime, EventStatistics]:
        """Return the counts of the last `hours`, and when these begin and end."""
        now = self._clock.now()
        since = now - timedelta(hours=hours)
        return since, now, await self._store.statistics(since, now)

    async def detail(self, event_id: EventId) -> EventDetail:
        """Return the event with what belongs to it.  Raises: NotFound."""
        event = await self._event(event_id)
        alike = EventFilter(correlation_id=event.correlation_id)
        if event.correlation_id is None:  # published before messages had one
            alike = EventFilter(execution_id=event.execution_id)
        related = await self._store.browse(alike, RELATED + 1)
        timeline = await self._store.browse(EventFilter(execution_id=event.execution_id), TIMELINE)
        others = [each for each in related.events if each.offset != event.offset]
        return EventDetail(event, others[:RELATED], timeline.events[::-1])

    async def causes(self, execution_id: ExecutionId) -> Mapping[EventId, EventId | None]:
        """Return what led to each event of the execution, as far as it is in the log."""
        page = await self._store.browse(EventFilter(execution_id=execution_id), CAUSES)
        return {event.id: event.causation_id for event in page.events}

    async def export(self, where: EventFilter, limit: int) -> AsyncIterator[Sequence[StoredEvent]]:
        """Yield up to `limit` events, newest first, a few at a time."""
        after: EventPosition | None = None
        while limit > 0:
            page = await self._store.browse(where, min(limit, EXPORT_PAGE), after)
            limit -= len(page.events)
            if page.events:
                yield page.events
            if page.next is None:
                return
            after = page.next

    async def archive(self, principal: Principal, event_id: EventId, reason: str) -> None:
        """Take an event of an execution that is over out of the log.  Raises: NotFound; NotTerminal."""
        event = await self._event(event_id)
        execution = await self._executions.get(event.execution_id)
        if execution is not None and execution.due_at is not None:
            raise NotTerminal(f"execution {execution.id} is {execution.status}; its events are still needed")
        await self._store.archive(event_id, Archival(principal.username, self._clock.now(), reason))

    async def archived(
        self, limit: int, after: EventPosition | None, execution_id: ExecutionId | None
    ) -> tuple[Sequence[ArchivedEvent], EventPosition | None]:
        """Return up to `limit` archived events, last archived first, and where the next page begins."""
        found = await self._store.archived(limit + 1, after, execution_id)
        page = found[:limit]
        if len(found) == len(page):
            return page, None
        return page, EventPosition(page[-1].archival.at, page[-1].event.offset)

    async def _event(self, event_id: EventId) -> StoredEvent:
        event = await self._store.get(event_id)
        if event is None:
            raise NotFound(f"no event {event_id}")
        return event
