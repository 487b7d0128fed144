"""Carrying replay sessions out, step by step.

Theory of operation
===================
The document of a session is the truth: its status says whether it goes on, its ``position`` where.  Whoever asks for a
pause writes the document; the runner's next commit finds another version, looks again and stops.  So a session goes
on after a restart behind the last step that was committed, in any process.

All sessions of a process take turns: one step at a time, and after each a pause three times as long as the step took,
up to a second, so that live work has the store for most of the time.  A paced session waits for its next event without
a turn.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

import structlog

from runtape.application.flow import Tasks
from runtape.application.replay_steps import BATCH, Steps
from runtape.domain import replay
from runtape.domain.replay import REPLAYS, ReplaySession, ReplaySessionId, SessionEvent, SessionStatus, evolve_all
from runtape.ports.clock import Clock
from runtape.ports.errors import Transient, VersionConflict
from runtape.ports.events import StoredEvent
from runtape.ports.live import LiveFeed, SessionNudge
from runtape.ports.replay import ReplayedMessage, ReplaySessionStore

log = structlog.get_logger(__name__)

LOOK_INTERVAL_S = 5.0
"""How soon what another process has changed is seen, and a session is taken up that nobody carries."""

PAUSE_PER_STEP = 3.0
SHORTEST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 1.0
"""A step in which the process stood still, or the store, has taken no more of it than others."""
FAILURE_PAUSE_S = 1.0


class ReplayRunner:
    """Runs the sessions that are to run; `wake` it when one has changed."""

    def __init__(
        self, *, sessions: ReplaySessionStore, steps: Steps, feed: LiveFeed, clock: Clock, tasks: Tasks
    ) -> None:
        self._sessions = sessions
        self._steps = steps
        self._feed = feed
        self._clock = clock
        self._tasks = tasks
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()
        self._carried: dict[ReplaySessionId, asyncio.Event] = {}

    def wake(self, session_id: ReplaySessionId) -> None:
        """Say that the document of a session has changed."""
        self._woken.set()
        changed = self._carried.get(session_id)
        if changed is not None:
            changed.set()
        self._feed.publish(session_id, SessionNudge())

    async def run(self) -> None:
        """Take up every session that runs; runs until cancelled."""
        while True:
            self._woken.clear()
            try:
                for session in await self._sessions.running():
                    if session.id not in self._carried:
                        self._carried[session.id] = asyncio.Event()
                        self._tasks.spawn(self._carry(session.id), "replay")
            except Transient as error:
                log.warning("replay.not_looked", error=str(error))
            await _wait(self._woken, LOOK_INTERVAL_S)

    async def _carry(self, session_id: ReplaySessionId) -> None:
        try:
            while True:
                try:
                    await self._go(session_id)
                    # Resumed since, perhaps, and this task was still known as the one that carries it.
                    session = await self._sessions.get(session_id)
                    if session is None or session.status is not SessionStatus.RUNNING:
                        return
                except VersionConflict:
                    continue
                except Transient as error:
                    log.warning("replay.interrupted", session=session_id, error=str(error))
                    await asyncio.sleep(error.retry_after_s or FAILURE_PAUSE_S)
        finally:
            del self._carried[session_id]
            self._woken.set()  # it may have been resumed while it was still known as carried

    async def _go(self, session_id: ReplaySessionId) -> None:
        """Do steps until the session does not run any more.  Raises: Transient, VersionConflict among them."""
        session = await self._sessions.get(session_id)
        if session is None:
            return
        pacing = _Pacing(session, self._clock)
        session = await self._commit(session, replay.take_up(session, self._clock.now()))
        try:
            while session.status is SessionStatus.RUNNING:
                session = await self._step(session, pacing)
        except Transient:
            raise
        except Exception as error:  # the loop's edge: the session has failed, the others go on
            log.error("replay.failed", session=session_id, exc_info=error)
            await self._commit(session, replay.fail(session, self._clock.now(), f"{type(error).__name__}: {error}"))

    async def _step(self, session: ReplaySession, pacing: "_Pacing") -> ReplaySession:
        changed = self._carried[session.id]
        async with self._turn:
            changed.clear()  # before anything is looked at: what changes from here on is not waited over
            began_s = self._clock.monotonic_s()
            if session.target in REPLAYS:
                session = await self._replay(session, pacing)
            else:
                done = await self._steps.of(session.target)(session, ())
                events = replay.advance(session, done.advance)
                if done.complete:
                    through = evolve_all(session, events)
                    digest = await self._steps.digest_after(session)
                    events += replay.complete(through, self._clock.now(), digest)
                session = await self._commit(session, events)
            took_s = self._clock.monotonic_s() - began_s
            await asyncio.sleep(min(max(SHORTEST_PAUSE_S, PAUSE_PER_STEP * took_s), LONGEST_PAUSE_S))
        if pacing.wait_s > 0 and session.status is SessionStatus.RUNNING:
            await _wait(changed, min(pacing.wait_s, LOOK_INTERVAL_S))
        return session

    async def _replay(self, session: ReplaySession, pacing: "_Pacing") -> ReplaySession:
        wanted = min(BATCH, session.preview.total - session.done)
        if wanted <= 0:
            return await self._commit(session, replay.complete(session, self._clock.now()))
        found = await self._steps.source.read(session.selection, session.position, session.until, wanted)
        due = pacing.due(found.events)
        events: list[SessionEvent] = []
        again: Sequence[ReplayedMessage] = ()
        if due:
            done = await self._steps.of(session.target)(session, due)
            events, again = replay.advance(session, done.advance), done.again
        elif not found.events and not found.complete:  # nothing here, and more to look at
            events = replay.advance(session, replay.Advance(position=found.position))
        if found.complete and len(due) == len(found.events):
            events += replay.complete(evolve_all(session, events), self._clock.now())
        return await self._commit(session, events, again)

    async def _commit(
        self, session: ReplaySession, events: Sequence[SessionEvent], again: Sequence[ReplayedMessage] = ()
    ) -> ReplaySession:
        if not events:
            return session
        after = evolve_all(session, events)
        await self._sessions.commit(after, session.version, again)
        self._feed.publish(session.id, SessionNudge())
        return after


class _Pacing:
    """When the events of a session are due, counted from when it was taken up."""

    def __init__(self, session: ReplaySession, clock: Clock) -> None:
        self._pace = session.pace
        self._clock = clock
        self._last_at: datetime | None = session.last_event_at
        self._due_s = clock.monotonic_s()
        self.wait_s = 0.0
        """How long it is until the next event is due."""

    def due(self, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Return the first of `events` whose time has come, and set `wait_s`."""
        self.wait_s = 0.0
        if not self._pace.paced:
            return events
        now_s = self._clock.monotonic_s()
        for number, event in enumerate(events):
            gap_s = self._pace.gap_s(self._last_at, event.at) if self._last_at is not None else 0.0
            if self._due_s + gap_s > now_s:
                self.wait_s = self._due_s + gap_s - now_s
                return events[:number]
            self._due_s += gap_s
            self._last_at = event.at
        return events


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
