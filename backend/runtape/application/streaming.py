"""The stream of one execution: what is on the tape, then live, without a gap and without a duplicate.

Theory of operation
===================
A stream is at a `Cursor`: the version of the last lifecycle frame it sent, and the attempt and ``seq`` of the
last record.  It subscribes to the live feed first, then reads document and tape beyond its cursor
(*catching up*), then follows the feed.  A nudge that continues the cursor is forwarded as it was encoded by
the publisher; one that lies behind is a duplicate and is dropped; anything else, a lost nudge and a heartbeat
make the stream catch up again.  So the feed may lose anything: that costs delay, never a byte.

Order: the records of an attempt come before the event that ends it, and all of them before ``result.stored``,
which is the last frame but ``end``.

Rights may end while a stream is open, so whoever opened it is asked again at each heartbeat, and as often while there
is no silence.  Without them the stream closes with ``shutdown``, as when the server stops: a client then connects
again, as every client knows how to, and is told why it may not with a status that ends its tries.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec

from runtape.application.announcing import lifecycle_frame, output_frame
from runtape.application.results import summary_of
from runtape.domain.errors import Unauthenticated, ValidationFailed
from runtape.domain.events import (
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionFailed,
    ExecutionRestarted,
    ExecutionTimeout,
    ResultStored,
)
from runtape.domain.execution import Execution, Lifecycle
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import OUTPUT_LOST, Status
from runtape.ports.admission import AdmissionQueue
from runtape.ports.clock import Clock
from runtape.ports.live import FeedClosed, LifecycleNudge, LiveFeed, Nudge, OutputNudge, PodNudge, Subscription
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import ExecutionStore, TapeStore

PAGE_BYTES = 256 << 10
HEARTBEAT_S = 15.0

_ENDED = frozenset(event.type for event in (ExecutionCompleted, ExecutionFailed, ExecutionTimeout, ExecutionCancelled))
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """How far a stream is; its text form ``<version>.<attempt>.<seq>`` is the ``id:`` of each frame."""

    version: int = 0
    attempt: int = 0
    seq: int = 0

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read the text form.  Raises: ValidationFailed."""
        parts = text.split(".")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
            raise ValidationFailed(f'"{text[:80]}" is no cursor; send back an id of this stream', field="Last-Event-ID")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.version}.{self.attempt}.{self.seq}"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: unnamed when `event` is None, without an id when `cursor` is; `body` is one line of JSON."""

    event: str | None
    cursor: Cursor | None
    body: bytes
    retry_ms: int | None = None


HEARTBEAT = Frame("heartbeat", None, b"")
"""Stands for a comment line: it carries nothing and only shows that the stream is alive."""

RETRY_MS = 1000

Batch = list[Frame]
Confirm = Callable[[], Awaitable[None]]
"""Returns while the reader may go on reading.  Raises: Unauthenticated, Transient."""


async def always() -> None:
    """Confirm a reader whose rights cannot end."""


class ExecutionStream:
    """Yields the frames of one execution beyond a cursor, in batches that are ready at the same time."""

    def __init__(
        self,
        *,
        executions: ExecutionStore,
        tape: TapeStore,
        feed: LiveFeed,
        queue: AdmissionQueue,
        clock: Clock,
        execution_id: ExecutionId,
        cursor: Cursor,
        subscription: Subscription,
        heartbeat_s: float,
        confirm: Confirm,
    ) -> None:
        self._executions = executions
        self._tape = tape
        self._feed = feed
        self._queue = queue
        self._clock = clock
        self._execution_id = execution_id
        self._at = cursor
        self._subscription = subscription
        self._heartbeat_s = heartbeat_s
        self._confirm = confirm
        self._confirm_at_s = clock.monotonic_s() + heartbeat_s
        self._claimed = True
        """Whether the cursor is what the client says; what this stream has sent is not doubted any more."""

    async def batches(self) -> AsyncIterator[Batch]:
        """Yield batches until ``end`` or ``shutdown`` was yielded.  Raises: SubscriptionClosed."""
        try:
            while True:
                for part in (self._catch_up, self._follow):
                    async for batch in part():
                        await self._confirm_in_time()
                        yield batch
                        if batch[-1].event == "end":
                            return
        except FeedClosed:
            yield [Frame("shutdown", None, b"{}", RETRY_MS)]
        except Unauthenticated as refusal:
            yield [Frame("shutdown", None, _encode({"code": refusal.code, "detail": str(refusal)}), RETRY_MS)]

    async def _confirm_in_time(self) -> None:
        """Ask whether the reader still may read, if that was not asked since the last heartbeat was due."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._confirm_at_s:
            self._confirm_at_s = now_s + self._heartbeat_s
            await self._confirm()

    async def _follow(self) -> AsyncIterator[Batch]:
        """Forward nudges while each continues the cursor; returns when the stream has to catch up."""
        heartbeat_at_s = self._clock.monotonic_s() + self._heartbeat_s
        while True:
            nudge = await self._subscription.next(max(0.0, heartbeat_at_s - self._clock.monotonic_s()))
            if nudge is None:
                if self._clock.monotonic_s() >= heartbeat_at_s:
                    yield [HEARTBEAT]
                return
            batch: Batch = []
            size = 0
            continued = True
            while nudge is not None and continued:
                added = len(batch)
                continued = self._forward(nudge, batch)
                size += sum(len(frame.body) for frame in batch[added:])
                # The rest stays in the backlog, which is bounded, until this much was sent.
                nudge = self._subscription.pending() if continued and size < PAGE_BYTES else None
            if batch:
                yield batch
            if not continued:
                return

    def _forward(self, nudge: Nudge, batch: Batch) -> bool:
        """Add the nudge's frames to `batch`; False when it does not continue the cursor."""
        match nudge:
            case OutputNudge():
                return self._forward_output(nudge, batch)
            case LifecycleNudge():
                return self._forward_lifecycle(nudge, batch)
            case PodNudge():
                batch.append(Frame(None, None, nudge.body))
                return True
            case _:
                return False

    def _forward_output(self, nudge: OutputNudge, batch: Batch) -> bool:
        if (nudge.attempt, nudge.last_seq) <= (self._at.attempt, self._at.seq):
            return True
        if nudge.attempt != self._at.attempt or nudge.first_seq > self._at.seq + 1:
            return False
        skip = self._at.seq + 1 - nudge.first_seq
        for body in nudge.bodies[skip:]:
            self._at = Cursor(self._at.version, self._at.attempt, self._at.seq + 1)
            batch.append(Frame("output", self._at, body))
        return True

    def _forward_lifecycle(self, nudge: LifecycleNudge, batch: Batch) -> bool:
        execution = nudge.execution
        if execution.version <= self._at.version:
            return True
        first = execution.version - len(nudge.bodies) + 1
        if not nudge.bodies or first > self._at.version + 1:
            return False
        for step, body in zip(execution.history[first - 1 :], nudge.bodies, strict=True):
            if step.version <= self._at.version:
                continue
            if not self._precedes(execution, step):
                return False
            self._step(step)
            batch.append(Frame(None, self._at, body))
            if step.type == ResultStored.type:
                batch.append(Frame("end", self._at, b"{}"))
                return True
        return True

    def _precedes(self, execution: Execution, step: Lifecycle) -> bool:
        """Whether every record that belongs before `step` was sent."""
        if step.type in _ENDED or step.type == ResultStored.type:
            return self._at.attempt == execution.attempt and self._at.seq >= execution.last_seq
        return step.type != ExecutionRestarted.type

    def _step(self, step: Lifecycle) -> None:
        attempt, seq = self._at.attempt, self._at.seq
        if step.attempt > attempt and step.type != ExecutionRestarted.type:
            attempt, seq = step.attempt, 0
        self._at = Cursor(step.version, attempt, seq)

    async def _catch_up(self) -> AsyncIterator[Batch]:
        execution = await self._executions.get(self._execution_id)
        if execution is None:  # deleted while it was being read
            yield [Frame("end", self._at, b"{}")]
            return
        if self._claimed:
            self._claimed = False
            if (gap := await self._ahead(execution)) is not None:
                yield [gap]
        batch: Batch = []
        for step in execution.history:
            if step.version <= self._at.version:
                continue
            closes = step.attempt - 1 if step.type == ExecutionRestarted.type else step.attempt
            if step.type in _ENDED or step.type in (ResultStored.type, ExecutionRestarted.type):
                if batch:
                    yield batch
                    batch = []
                async for page in self._records(execution, closes):
                    yield page
                if execution.result is None and step.type in _ENDED and not self._precedes(execution, step):
                    return  # its last records are on their way to the tape
            self._step(step)
            summary = None
            if step.type == ResultStored.type:
                summary = await summary_of(execution, self._tape)
            batch.append(Frame(None, self._at, lifecycle_frame(execution, step, summary)))
        if execution.result is not None:
            if batch:
                yield batch
            # A cursor at the very end gets `end` again; one inside the last attempt gets what it lacks first.
            async for page in self._records(execution, execution.attempt):
                yield page
            yield [Frame("end", self._at, b"{}")]
            return
        if batch:
            yield batch
        async for page in self._records(execution, execution.attempt):
            yield page
        place = await self._queue.place(execution.id) if execution.status is Status.QUEUED else None
        if place is not None:
            yield [
                Frame(
                    None,
                    None,
                    _encode(
                        {
                            "event_type": "execution_queued",
                            "execution_id": execution.id,
                            "position": place.position,
                            "estimated_wait_s": place.estimated_wait_s,
                        }
                    ),
                )
            ]

    async def _records(self, execution: Execution, last_attempt: int) -> AsyncIterator[Batch]:
        """Yield what the tape holds beyond the cursor, up to the end of `last_attempt`, and tell what it lacks."""
        for attempt in range(max(1, self._at.attempt), last_attempt + 1):
            if attempt > self._at.attempt:
                self._at = Cursor(self._at.version, attempt, 0)
            while batch := await self._page(PodKey(execution.id, attempt)):
                yield batch
        if self._pruned(execution, last_attempt):
            yield [self._skip_to(execution.last_seq)]

    async def _page(self, key: PodKey) -> Batch:
        """Return the frames of the next records; what the tape gave is not kept while they are sent."""
        batch: Batch = []
        for record in await self._tape.read(key, self._at.seq, PAGE_BYTES):
            if record.seq > self._at.seq + 1:
                batch.append(self._skip_to(record.seq - 1))
            self._at = Cursor(self._at.version, key.attempt, record.seq)
            batch.append(Frame("output", self._at, output_frame(key.attempt, record)))
        return batch

    def _pruned(self, execution: Execution, attempt: int) -> bool:
        """Whether the tape of `attempt`, which was read to its end, has lost its end since it was complete."""
        if execution.result is None or attempt != execution.attempt or self._at.seq >= execution.last_seq:
            return False
        # What was lost before the tape was complete is told by the outcome.
        return execution.outcome is None or execution.outcome.reason != OUTPUT_LOST

    def _skip_to(self, seq: int) -> Frame:
        since = self._at
        self._at = Cursor(since.version, since.attempt, seq)
        return _gap(since, self._at, "retention")

    async def _ahead(self, execution: Execution) -> Frame | None:
        """Return a gap, and go back to what there is, when the cursor lies beyond document or tape."""
        at = self._at
        attempt, seq = at.attempt, at.seq
        if attempt > execution.attempt:
            attempt, seq = execution.attempt, (1 << 63) - 1
        if attempt and seq:
            summary_seq = await self._last_seq(execution, attempt, seq)
            seq = min(seq, summary_seq)
        elif not attempt:
            seq = 0
        actual = Cursor(min(at.version, execution.version), attempt, seq)
        if actual == at:
            return None
        self._at = actual
        return _gap(at, actual, "ahead")

    async def _last_seq(self, execution: Execution, attempt: int, seq: int) -> int:
        told = execution.outcome is not None and (execution.result is not None or seq <= execution.last_seq)
        if told and attempt == execution.attempt:
            return execution.last_seq
        return (await self._tape.summary(PodKey(execution.id, attempt))).last_seq


def _gap(since: Cursor, until: Cursor, reason: str) -> Frame:
    body = _encode({"from_id": str(since), "to_id": str(until), "reason": reason})
    return Frame("gap", until, body)


class Streams:
    """Opens streams; the caller has checked that the principal may read the execution."""

    def __init__(
        self,
        *,
        executions: ExecutionStore,
        tape: TapeStore,
        feed: LiveFeed,
        queue: AdmissionQueue,
        clock: Clock,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._executions = executions
        self._tape = tape
        self._feed = feed
        self._queue = queue
        self._clock = clock
        self._heartbeat_s = heartbeat_s

    def open(
        self, execution_id: ExecutionId, cursor: Cursor, confirm: Confirm = always
    ) -> tuple[ExecutionStream, Subscription]:
        """Subscribe at once and return the stream with its subscription, which the caller closes."""
        subscription = self._feed.subscribe(execution_id)
        stream = ExecutionStream(
            executions=self._executions,
            tape=self._tape,
            feed=self._feed,
            queue=self._queue,
            clock=self._clock,
            execution_id=execution_id,
            cursor=cursor,
            subscription=subscription,
            heartbeat_s=self._heartbeat_s,
            confirm=confirm,
        )
        return stream, subscription
