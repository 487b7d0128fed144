"""One program in one pod: what it prints and how it ends, over as many attachments as it takes.

Theory of operation.  A task attaches to the pod and listens.  When the connection breaks it attaches again, says what
it has, and the runner goes on behind that; so no byte is lost or told twice, whatever breaks between here and there.
Records are acknowledged when their reader has taken them: one who is slow has the program wait, in its pod.

A connection can be dead without anybody having closed it: whoever is asked has `ANSWER_S` to answer, and an extended
lease is such a question.  A runner that is out of reach for so long that every lease it can have heard of has run out
has killed its program: then, and not before, the attempt is lost, unless the API, which is asked first, knows better.

The runner tells the end.  A container that ends without it (killed by the memory limit, evicted, deleted) is seen by
the watch; what is still on its way then has `LAST_WORDS_S` to come.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import structlog

from runtape.adapters.kubernetes import protocol
from runtape.adapters.kubernetes.api import Attachment, PodApi
from runtape.adapters.kubernetes.manifests import CONTAINER, TOKEN
from runtape.adapters.kubernetes.outcomes import (
    FILES_LOST,
    deleted,
    left_to_live_s,
    not_enough_time,
    not_handed_over,
    out_of_reach,
    outcome_of,
    reported,
    unreported,
    usage_of,
)
from runtape.adapters.kubernetes.protocol import Link, Report, State
from runtape.adapters.kubernetes.warm import Taken
from runtape.adapters.sandbox.collection import Collection
from runtape.adapters.sandbox.keeper import wire
from runtape.adapters.sandbox.pod import CANCELLED
from runtape.adapters.sandbox.timeline import Timeline
from runtape.domain.execution import LEASE_GRACE
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, TimelinePoint, Usage
from runtape.domain.tape import Record
from runtape.ports.errors import InfrastructureError, Transient
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodKey

log = structlog.get_logger(__name__)

LAST_WORDS_S: Final = 2.0
WHY_S: Final = 5.0
"""How long Kubernetes may take to say why it had a runner end."""
ANSWER_S: Final = 10.0
"""How long a runner may take to answer before the connection is taken for dead."""
HAND_OVER_S: Final = 30.0
"""How long the program's hand-over may take, from when the container runs, or the API may have come back."""
SPARE_S: Final = 5.0
"""How much longer than its program's wall time a pod has to live when it takes the program."""
SAY_S: Final = 1.0
"""How long a frame may wait for room in a connection: nobody's lease is to wait for another's runner."""
_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0


class Attempt:
    """A program from the making of its pod to its removal."""

    def __init__(
        self,
        key: PodKey,
        limits: Limits,
        lease_due_s: float,
        on_ended: Callable[[PodEnded], None],
        *,
        timeline: bool = False,
    ) -> None:
        """Prepare; `lease_due_s` is a time of the event loop."""
        self._loop = asyncio.get_running_loop()
        self.key = key
        self._limits = limits
        self._lease_due_s = lease_due_s
        self._on_ended = on_ended
        self._points: list[protocol.Point] | None = [] if timeline else None
        self._records: list[Record] = []
        self._taken_seq = 0
        self._changed = asyncio.Event()
        self._attachment: Attachment | None = None
        self._patience = asyncio.timeout(None)
        """Ends the conversation when an answer does not come."""
        self._handed_over = False
        self._away = False
        """Whether the API has not answered when it was last asked for the pod."""
        self._told_due_s = 0.0
        """The latest end of the lease that the runner can have heard of."""
        self._pod: Mapping[str, Any] | None = None
        """As it was last seen."""
        self._killed = False
        self._collection: Collection | None = None
        self._report: Report | None = None
        self.token = secrets.token_bytes(protocol.TOKEN_BYTES)
        self.started: asyncio.Future[None] = self._loop.create_future()
        """Done once the program was handed over."""
        self.ended: PodEnded | None = None
        self.over = asyncio.Event()
        """Set once the end is known."""

    @property
    def artifacts(self) -> list[PodArtifact]:
        """The files that the program has left; known once it has ended."""
        return self._collection.files if self._collection is not None and self.ended is not None else []

    # The conversation

    async def converse(self, api: PodApi, name: str, order: wire.Order, taken: Taken | None = None) -> None:
        """Attach to the running pod `name`, and again, until the end is known; `order` is what it is to run.

        `taken` is the first connection where there is one already, which is closed here.
        """
        pause_s = _PAUSE_S
        handed_over_by_s = self._loop.time() + HAND_OVER_S
        while self.ended is None:
            heard = len(self._records)
            first, taken = taken, None
            try:
                async with contextlib.AsyncExitStack() as held, asyncio.timeout(ANSWER_S) as self._patience:
                    if first is not None:
                        await held.enter_async_context(contextlib.aclosing(first))
                        await self._talk(first.attachment, order, first.link)
                    else:
                        await self._talk(await held.enter_async_context(api.attached(name, CONTAINER)), order)
            except TimeoutError:
                log.warning("pod.attachment_lost", pod=name, error=f"no answer within {ANSWER_S:g} s")
            except (Transient, protocol.ProtocolError) as error:
                log.info("pod.attachment_lost", pod=name, error=str(error))
            dead_by_s = self._told_due_s + LEASE_GRACE.total_seconds()
            if self._loop.time() > (dead_by_s if self._handed_over else handed_over_by_s):
                await self._lose(api, name)
                handed_over_by_s = self._loop.time() + HAND_OVER_S
            pause_s = _PAUSE_S if len(self._records) > heard else min(2 * pause_s, _LONGEST_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), pause_s)
        if taken is not None:  # the end was there first
            await taken.aclose()

    async def _lose(self, api: PodApi, name: str) -> None:
        """End an attempt whose runner is out of reach, unless the API says how it ended, or says nothing."""
        try:
            pod = await api.read(name)
        except InfrastructureError as error:
            log.info("pod.not_looked_at", pod=name, error=str(error))
            self._away = True
            return
        away, self._away = self._away, False
        if self.seen(pod) or (away and not self._handed_over):  # it came back since: the runner could not be called
            return
        lost = out_of_reach() if self._handed_over else not_handed_over(HAND_OVER_S)
        self._conclude(CANCELLED if self._killed else lost, Usage())

    async def _talk(self, attachment: Attachment, order: wire.Order, waiting: Link | None = None) -> None:
        """Say what is to be said and listen; `waiting` has heard already that the runner waits."""
        link = waiting or Link(len(self._records))
        try:
            if waiting is None:
                await attachment.write(link.hello())
            else:
                await self._welcomed(State.WAITING, attachment, order)
            while self.ended is None and (data := await attachment.read()):
                for event in link.take(data):
                    await self._on(event, attachment, order)
        finally:
            self._attachment = None

    async def _on(self, event: protocol.Event, attachment: Attachment, order: wire.Order) -> None:
        match event:
            case protocol.Welcome():
                await self._welcomed(event.state, attachment, order)
            case protocol.Started():
                self._has_started()
                self._patience.reschedule(None)
            case protocol.Extended():
                self._patience.reschedule(None)
            case Record():
                self._take(event)
            case protocol.Point():
                if self._points is not None:
                    self._points.append(event)
            case Report():
                await self._take_report(event, attachment)
            case protocol.Files():
                await self._take_files(event.message, attachment)

    async def _welcomed(self, state: State, attachment: Attachment, order: wire.Order) -> None:
        if state is State.WAITING:
            left_s = left_to_live_s(self._pod) if self._pod is not None else None
            if left_s is not None and left_s < self._limits.wall_s + SPARE_S:
                self.fail(not_enough_time(left_s, self._limits.wall_s))
                return
            wanted = protocol.Run(
                token=self.token,
                lease_ns=self._lease_ns(),
                wall_ns=int(self._limits.wall_s * 1e9),
                cpu_ns=int(self._limits.cpu_s * 1e9),
                output_bytes=self._limits.output_bytes,
                timeline=self._points is not None,
            )
            self._handed_over = True
            self._told_due_s = self._lease_due_s
            await attachment.write(protocol.run(order, wanted))
        else:
            self._has_started()
            self._told_due_s = max(self._told_due_s, self._lease_due_s)
            await attachment.write(protocol.lease(self._lease_ns()))
        self._attachment = attachment
        if self._killed:
            await attachment.write(protocol.kill())

    def _has_started(self) -> None:
        if not self.started.done():
            self.started.set_result(None)

    def _take(self, record: Record) -> None:
        if record.seq != len(self._records) + 1:
            raise protocol.ProtocolError(f"record {record.seq} comes after {len(self._records)}")
        self._records.append(record)
        self._changed.set()

    async def _take_report(self, report: Report, attachment: Attachment) -> None:
        self._report = report
        if report.stopped_for == "deleted":
            self._loop.call_later(WHY_S, lambda: self._conclude_with(report))
        elif report.left_files and self._limits.artifacts:
            self._collection = Collection(self._limits)
            await attachment.write(protocol.collect(self._collection.request()))
        else:
            self._conclude_with(report)
            await attachment.write(protocol.leave())

    async def _take_files(self, message: bytes, attachment: Attachment) -> None:
        assert self._collection is not None and self._report is not None
        if not message or not self._collection.take(message):
            self._conclude_with(self._report)
            await attachment.write(protocol.leave())

    def _conclude_with(self, report: Report) -> None:
        self._conclude(outcome_of(report, self._limits, self._pod), usage_of(report), report.last_seq)

    # From outside

    @property
    def was_seen(self) -> bool:
        """Whether Kubernetes has said anything of the pod."""
        return self._pod is not None

    def owns(self, pod: Mapping[str, Any]) -> bool:
        """Whether a pod was made, or claimed, for this start of the attempt."""
        return (pod["metadata"].get("annotations") or {}).get(TOKEN) == self.token.hex()

    def seen(self, pod: Mapping[str, Any] | None) -> bool:
        """Take note of what Kubernetes says of the pod, None: it is gone; return whether that is its end.

        Another pod of its name is none of it: one that was made for an earlier start, of which nobody had an answer.
        """
        if self.ended is not None:
            return True
        if pod is not None:
            if not self.owns(pod):
                return False
            self._pod = pod
        report = reported(pod, self.token.hex()) if pod is not None else None
        outcome = unreported(pod) if pod is not None else CANCELLED if self._killed else deleted(self._pod)
        if report is None and outcome is None:
            return False
        if self._report is not None and self._report.stopped_for != "deleted":
            self._loop.call_later(LAST_WORDS_S, self._conclude, FILES_LOST, Usage())  # they were still to come
        elif (known := self._report or report) is not None:
            self._loop.call_later(LAST_WORDS_S, self._conclude_with, known)
        elif outcome is not None:
            self._loop.call_later(LAST_WORDS_S, self._conclude, outcome, Usage())
        return True

    async def extend(self, lease_due_s: float) -> None:
        """Move the end of the lease."""
        self._lease_due_s = lease_due_s
        if self._attachment is None or self.ended is not None:
            return
        self._told_due_s = max(self._told_due_s, lease_due_s)
        if self._patience.when() is None:  # else the answer to an earlier one has not come
            self._patience.reschedule(self._loop.time() + ANSWER_S)
        await self._say(protocol.lease(self._lease_ns()))

    async def kill(self) -> None:
        """Have the program killed; one that was not handed over ends at once."""
        self._killed = True
        if self.started.done():
            await self._say(protocol.kill())
        else:
            self._conclude(CANCELLED, Usage())

    def fail(self, outcome: Outcome) -> None:
        """End a program that was not handed over."""
        self._conclude(outcome, Usage())

    async def _say(self, frame: bytes) -> None:
        if self._attachment is not None and self.ended is None:
            with contextlib.suppress(Transient, TimeoutError):  # whoever attaches next says it
                async with asyncio.timeout(SAY_S):
                    await self._attachment.write(frame)

    def _lease_ns(self) -> int:
        return max(0, int((self._lease_due_s - self._loop.time()) * 1e9))

    # The end

    def _conclude(self, outcome: Outcome, usage: Usage, last_seq: int | None = None) -> None:
        if self.ended is not None:
            return
        collection = self._collection
        self.ended = PodEnded(
            key=self.key,
            outcome=outcome,
            usage=usage,
            last_seq=len(self._records) if last_seq is None else last_seq,
            timeline=self._timeline(usage),
            artifacts=len(collection.files) if collection is not None else 0,
            left_out=collection.left_out if collection is not None else (),
            ran=self._handed_over,
        )
        self._has_started()
        self._changed.set()
        self.over.set()
        self._on_ended(self.ended)

    def _timeline(self, usage: Usage) -> tuple[TimelinePoint, ...] | None:
        if self._points is None:
            return None
        if not self.started.done():
            return ()
        timeline = Timeline(0)
        for point in self._points:
            timeline.add(point.t_ns, point.memory_bytes, point.cpu_ns)
        return timeline.ended(usage)

    # Reading

    async def records(self, after_seq: int) -> AsyncIterator[tuple[Record, ...]]:
        """Yield the records behind `after_seq`, live, and stop after the last."""
        while True:
            self._changed.clear()
            batch = tuple(self._records[after_seq:])
            if batch:
                after_seq = batch[-1].seq
                yield batch
                if after_seq > self._taken_seq:
                    self._taken_seq = after_seq
                    await self._say(protocol.acknowledge(after_seq))
            elif self.ended is not None:
                return
            else:
                await self._changed.wait()
