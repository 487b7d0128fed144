"""Replay sessions as administrators ask for them.  Who may is for the caller to know."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime

from runtape.application.replay_runner import ReplayRunner
from runtape.domain import replay
from runtape.domain.errors import NotFound
from runtape.domain.ids import EventId
from runtape.domain.replay import (
    SAMPLE,
    Pace,
    Preview,
    ReplaySession,
    ReplaySessionId,
    Selection,
    SessionEvent,
    SessionStatus,
    Target,
    evolve_all,
)
from runtape.ports.clock import Clock, Ids
from runtape.ports.errors import Transient, VersionConflict
from runtape.ports.events import StoredEvent
from runtape.ports.replay import DocumentHistories, EventIndex, EventSource, ReplayFiles, ReplaySessionStore

COUNT_PAGE = 500
CONFLICT_RETRIES = 20

Decide = Callable[[ReplaySession, datetime], list[SessionEvent]]


class ReplaySessions:
    """Makes, changes, lists and removes sessions; `ReplayRunner` carries them out."""

    def __init__(
        self,
        *,
        store: ReplaySessionStore,
        source: EventSource,
        index: EventIndex,
        histories: DocumentHistories,
        files: ReplayFiles,
        runner: ReplayRunner,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._store = store
        self._source = source
        self._index = index
        self._histories = histories
        self._files = files
        self._runner = runner
        self._clock = clock
        self._ids = ids

    async def preview(self, selection: Selection) -> Preview:
        """Return what `selection` comes to now."""
        preview, _ = await self._count(selection)
        return preview

    async def create(
        self, by: str, target: Target, selection: Selection, pace: Pace, *, started: bool = False
    ) -> ReplaySession:
        """Count what is meant and store a session that replays exactly that, once it is started."""
        preview, until = await self._count(selection)
        return await self._add(by, target, preview, until, selection, pace, started=started)

    async def rebuild(self, by: str, target: Target) -> ReplaySession:
        """Store and start a session that makes the event index anew, or compares documents with their events."""
        if target is Target.EVENT_INDEX:
            until = await self._source.newest()
            total = await self._index.count(until)
        else:
            until, total = await self._histories.newest(), await self._histories.count()
        return await self._add(by, target, Preview(total=total), until, Selection(), Pace(), started=True)

    async def get(self, session_id: ReplaySessionId) -> ReplaySession:
        """Return the session.  Raises: NotFound."""
        session = await self._store.get(session_id)
        if session is None:
            raise NotFound(f"no replay session {session_id}")
        return session

    async def list(
        self,
        limit: int,
        before: ReplaySessionId | None = None,
        *,
        status: SessionStatus | None = None,
        target: Target | None = None,
    ) -> tuple[Sequence[ReplaySession], ReplaySessionId | None]:
        """Return up to `limit` sessions, newest first, and where the next page begins."""
        found = await self._store.list(status=status, target=target, limit=limit + 1, before=before)
        page = found[:limit]
        return page, page[-1].id if len(found) > len(page) else None

    async def start(self, session_id: ReplaySessionId) -> ReplaySession:
        """Begin.  Raises: NotFound; SessionStateConflict."""
        return await self._change(session_id, replay.start)

    async def pause(self, session_id: ReplaySessionId) -> ReplaySession:
        """Stop after the step that is under way.  Raises: NotFound; SessionStateConflict."""
        return await self._change(session_id, replay.pause)

    async def resume(self, session_id: ReplaySessionId) -> ReplaySession:
        """Go on.  Raises: NotFound; SessionStateConflict."""
        return await self._change(session_id, replay.resume)

    async def cancel(self, session_id: ReplaySessionId, by: str) -> ReplaySession:
        """End it; what was done stands.  Raises: NotFound; SessionStateConflict."""
        return await self._change(session_id, lambda session, at: replay.cancel(session, at, by))

    async def delete(self, session_id: ReplaySessionId) -> None:
        """Remove the session with its file.  Raises: NotFound; SessionStateConflict."""
        session = await self.get(session_id)
        replay.check_deletable(session)
        await remove(session, self._store, self._files)
        self._runner.wake(session_id)

    def read_file(self, session: ReplaySession) -> Callable[[int, int], AsyncIterator[bytes]]:
        """Return what yields the bytes of the session's file from one place to another."""
        return lambda start, end: self._files.read(session.id, start, end)

    async def _add(
        self,
        by: str,
        target: Target,
        preview: Preview,
        until: str,
        selection: Selection,
        pace: Pace,
        *,
        started: bool,
    ) -> ReplaySession:
        now = self._clock.now()
        session = ReplaySession(
            id=ReplaySessionId(self._ids.new_id()),
            target=target,
            created_by=by,
            created_at=now,
            preview=preview,
            until=until,
            selection=selection,
            pace=pace,
        )
        if started:
            session = replace(evolve_all(session, replay.start(session, now)), version=1)
        await self._store.create(session)
        self._runner.wake(session.id)
        return session

    async def _count(self, selection: Selection) -> tuple[Preview, str]:
        """Return what `selection` comes to, and the position of the last event that is meant."""
        newest = await self._source.newest()
        types: Counter[str] = Counter()
        sample: list[EventId] = []
        first: StoredEvent | None = None
        last: StoredEvent | None = None
        position = ""
        while types.total() < selection.max_events:
            wanted = min(COUNT_PAGE, selection.max_events - types.total())
            found = await self._source.read(selection, position, newest, wanted)
            types.update(event.type for event in found.events)
            sample += [event.id for event in found.events[: SAMPLE - len(sample)]]
            first = first or (found.events[0] if found.events else None)
            last = found.events[-1] if found.events else last
            position = found.position
            if found.complete:
                break
        preview = Preview(
            total=types.total(),
            by_type=dict(sorted(types.items())),
            sample=tuple(sample),
            first_at=first and first.at,
            last_at=last and last.at,
        )
        return preview, str(last.offset) if last is not None else ""

    async def _change(self, session_id: ReplaySessionId, decide: Decide) -> ReplaySession:
        for _ in range(CONFLICT_RETRIES):
            session = await self.get(session_id)
            events = decide(session, self._clock.now())
            if not events:
                return session
            changed = evolve_all(session, events)
            try:
                await self._store.commit(changed, session.version)
            except VersionConflict:
                continue
            self._runner.wake(session_id)
            return changed
        raise Transient(f"session {session_id} changed too often to be written", retry_after_s=0.5)


async def remove(session: ReplaySession, store: ReplaySessionStore, files: ReplayFiles) -> None:
    """Remove the file, then the document that knows of it."""
    await files.remove(session.id)
    await store.delete(session.id)


class ExpiredReplaySessions:
    """`Expirable`: sessions that have ended, with their files, by the time of their end."""

    def __init__(self, store: ReplaySessionStore, files: ReplayFiles) -> None:
        self._store = store
        self._files = files

    async def prune(self, before: datetime, limit: int) -> int:
        found = await self._store.ended(before, limit)
        for session in found:
            await remove(session, self._store, self._files)
        return len(found)
