"""What one step of a replay session does, by its target.

A step reads and decides; what it has decided becomes true with the commit of the session, which carries the copies
for the log.  A file is written before that and synced, so a session never names bytes that are not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import msgspec

from runtape.application.comparing import Verdict, compare
from runtape.domain.events import MESSAGE_TYPES
from runtape.domain.replay import Advance, Fault, ReplaySession, Target, refusal
from runtape.ports.clock import Clock
from runtape.ports.events import StoredEvent
from runtape.ports.replay import (
    DocumentHistories,
    EventIndex,
    EventSource,
    ReplayedMessage,
    ReplayFiles,
)

BATCH = 100
"""Events of one step: so long do commits wait that are queued behind its write (2 ms)."""

DOCUMENTS = 10
"""Executions of one step: so long does the loop compare before anybody else has a turn (some ms)."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Done:
    """What a step came to; the session is through when `complete`."""

    advance: Advance
    again: Sequence[ReplayedMessage] = ()
    complete: bool = False


class Step(Protocol):
    """Does the next part of a session.  Called again with the same session, it comes to the same."""

    async def __call__(self, session: ReplaySession, events: Sequence[StoredEvent], /) -> Done:
        """Do it for `events`, which are the next ones; a rebuild has none and reads for itself.

        Raises: Transient.
        """
        ...


class Steps:
    """The steps of all targets."""

    def __init__(
        self,
        *,
        source: EventSource,
        index: EventIndex,
        histories: DocumentHistories,
        files: ReplayFiles,
        clock: Clock,
    ) -> None:
        self.source = source
        self._index = index
        self._histories = histories
        self._files = files
        self._clock = clock
        self._by_target: dict[Target, Step] = {
            Target.LOG: self._to_log,
            Target.FILE: self._to_file,
            Target.DRY_RUN: self._dry_run,
            Target.EVENT_INDEX: self._index_part,
            Target.COMPARE_DOCUMENTS: self._documents,
        }

    def of(self, target: Target) -> Step:
        """Return the step of sessions with that target."""
        return self._by_target[target]

    async def digest_after(self, session: ReplaySession) -> str | None:
        """Return what the read model comes to in the end, if the session made one."""
        return await self._index.digest(session.until) if session.target is Target.EVENT_INDEX else None

    async def _to_log(self, session: ReplaySession, events: Sequence[StoredEvent]) -> Done:
        again: list[ReplayedMessage] = []
        skipped: list[Fault] = []
        failed: list[Fault] = []
        for event in events:
            if (why := refusal(event.type)) is not None:
                skipped.append(Fault(event.id, why))
                continue
            try:
                message = msgspec.json.decode(event.body, type=MESSAGE_TYPES[event.type])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                failed.append(Fault(event.id, f"it cannot be read: {error}"))
                continue
            again.append(ReplayedMessage(message, event.body))
        return Done(_advance(session, events, skipped, failed), again)

    async def _dry_run(self, session: ReplaySession, events: Sequence[StoredEvent]) -> Done:
        done = await self._to_log(session, events)
        return Done(done.advance)

    async def _to_file(self, session: ReplaySession, events: Sequence[StoredEvent]) -> Done:
        lines: list[bytes] = []
        failed: list[Fault] = []
        for event in events:
            try:
                lines.append(_line(session, event))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                failed.append(Fault(event.id, f"it cannot be read: {error}"))
        data = b"".join(lines)
        await self._files.write(session.id, session.file_bytes, data)
        return Done(_advance(session, events, [], failed, session.file_bytes + len(data)))

    async def _index_part(self, session: ReplaySession, _: Sequence[StoredEvent]) -> Done:
        before = session.digest_before or await self._index.digest(session.until)
        part = await self._index.remake(session.position, session.until)
        advance = Advance(position=part.position, replayed=part.rows, digest_before=before)
        return Done(advance, complete=part.complete)

    async def _documents(self, session: ReplaySession, _: Sequence[StoredEvent]) -> Done:
        found = await self._histories.read(session.position, session.until, DOCUMENTS)
        counts = dict.fromkeys(Verdict, 0)
        faults: list[Fault] = []
        for history in found:
            verdict, why = compare(history, self._clock.now())
            counts[verdict] += 1
            if verdict is not Verdict.EQUAL:
                faults.append(Fault(history.execution_id, f"{verdict.value}: {why}"))
        advance = Advance(
            position=found[-1].execution_id if found else session.position,
            replayed=counts[Verdict.EQUAL],
            failed=counts[Verdict.DIFFERENT],
            skipped=counts[Verdict.INCOMPLETE],
            # Differences first: there is room for so many alone.
            faults=tuple(sorted(faults, key=lambda fault: fault.reason.startswith(Verdict.INCOMPLETE.value))),
        )
        return Done(advance, complete=len(found) < DOCUMENTS)


def _advance(
    session: ReplaySession,
    events: Sequence[StoredEvent],
    skipped: Sequence[Fault],
    failed: Sequence[Fault],
    file_bytes: int | None = None,
) -> Advance:
    return Advance(
        position=str(events[-1].offset) if events else session.position,
        replayed=len(events) - len(skipped) - len(failed),
        failed=len(failed),
        skipped=len(skipped),
        faults=tuple(failed),
        file_bytes=file_bytes,
        last_at=events[-1].at if events else None,
    )


class _Line(msgspec.Struct):
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
    replayed_by: str
    payload: msgspec.Raw


def _line(session: ReplaySession, event: StoredEvent) -> bytes:
    """Return the event as a line of JSON.  Raises: DecodeError."""
    msgspec.json.decode(event.body, type=dict[str, object])
    return (
        _encode(
            _Line(
                event_id=event.id,
                event_type=event.type.replace(".", "_"),
                topic=event.topic,
                timestamp=event.at,
                execution_id=event.execution_id,
                project_id=event.project_id,
                user_id=event.user_id,
                attempt=event.attempt,
                correlation_id=event.correlation_id,
                causation_id=event.causation_id,
                replayed_by=session.id,
                payload=msgspec.Raw(event.body),
            )
        )
        + b"\n"
    )
