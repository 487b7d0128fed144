"""The pod_monitor's work: tell how each pod ended, and find those that can no longer tell it themselves."""

from collections.abc import Callable
from datetime import timedelta

import structlog

from runtape.application.artifacts import ArtifactLibrary
from runtape.application.flow import NOTHING, Documents, Flow, Step, Tasks, execution_change
from runtape.application.retrying import persistently
from runtape.application.running import Worker
from runtape.domain import execution as executions
from runtape.domain.artifact import NO_ARTIFACTS, Artifacts
from runtape.domain.events import ExecutionEvent, Lease
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import OUTPUT_LOST, Outcome
from runtape.ports.clock import Clock
from runtape.ports.pod_runtime import PodEnded, PodKey, PodRuntime
from runtape.ports.stores import TapeStore

log = structlog.get_logger(__name__)

GROUP = "pod-monitor"


class PodMonitor:
    """Turns the ends of pods into the ends of attempts."""

    def __init__(
        self,
        *,
        pods: PodRuntime,
        tape: TapeStore,
        library: ArtifactLibrary,
        worker: Worker,
        flow: Flow,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._pods = pods
        self._library = library
        self._tape = tape
        self._worker = worker
        self._flow = flow
        self._tasks = tasks
        self._clock = clock
        self._ending: set[PodKey] = set()
        """Attempts whose end is known here and not recorded yet."""

    @property
    def lease_ttl(self) -> timedelta:
        """How long a lease lasts that is not extended."""
        return self._worker.lease_ttl

    async def watch(self) -> None:
        """Finish every pod that ends; runs until cancelled."""
        async for ended in self._pods.watch():
            self._ending.add(ended.key)
            self._worker.ended(ended.key)
            self._tasks.spawn(self.finish(ended), "finish")

    async def finish(self, ended: PodEnded) -> None:
        """Record the end of an attempt; nothing when it was recorded before."""
        try:
            await self._finish(ended)
        finally:
            self._ending.discard(ended.key)

    async def _finish(self, ended: PodEnded) -> None:
        # Its tape first, and its files: once the end is stored, a crash would lose what is not in the store yet, and
        # when another attempt follows, streams leave this one behind.
        if not await persistently(lambda: self._tape.reached(ended.key, ended.last_seq), "tape.reached"):
            # Whoever was recording it is gone, and what it printed since with it: it counts as lost.
            key = ended.key
            await persistently(lambda: self.interrupt(key.execution_id, key.attempt, OUTPUT_LOST), "finish")
            return

        async def record() -> None:
            # The files again at each try: what nothing refers to is swept away once it is old enough.
            artifacts = await self._library.keep(ended) if ended.artifacts or ended.left_out else NO_ARTIFACTS
            await self._flow.perform(lambda documents: decide(documents, artifacts))

        async def decide(documents: Documents, artifacts: Artifacts) -> Step:
            execution = await documents.execution(ended.key.execution_id)
            if execution is None:
                return NOTHING
            events = executions.finish(
                execution,
                ended.key.attempt,
                ended.outcome,
                ended.usage,
                ended.last_seq,
                self._clock.now(),
                ended.timeline,
                artifacts,
                ran=ended.ran,
            )
            return Step(changes=(execution_change(execution, events),)) if events else NOTHING

        # For as long as it takes: nobody else knows how the program ended.
        await persistently(record, "finish")

    async def interrupt(self, execution_id: ExecutionId, attempt: int, reason: str) -> None:
        """Record that a live attempt is dead and did not tell its outcome."""
        # Sealed: a recorder that goes on later would tell readers of another tape than those before it.
        last_seq = (await self._tape.seal(PodKey(execution_id, attempt))).last_seq
        await self._change(
            execution_id,
            lambda execution: executions.interrupt(execution, attempt, reason, last_seq, self._clock.now()),
        )

    async def expire(self, execution_id: ExecutionId, lease: Lease) -> None:
        """Record that the attempt under `lease`, which ran out, is dead; nothing when it was extended since.

        Nor while this process holds the attempt: its pod keeps to the lease by a clock that does not jump, and its end
        is told here, also when that cannot be recorded for long.
        """
        key = PodKey(execution_id, lease.fence)
        if self._worker.holds(key) or key in self._ending:
            return
        last_seq = (await self._tape.seal(key)).last_seq
        await self._change(
            execution_id, lambda execution: executions.expire(execution, lease, last_seq, self._clock.now())
        )

    async def lose(self, execution_id: ExecutionId, lease: Lease, outcome: Outcome, *, ran: bool) -> None:
        """Record how the pod of the attempt under `lease` has ended, whose worker is gone.

        Nothing when the lease was extended since.
        """
        last_seq = (await self._tape.seal(PodKey(execution_id, lease.fence))).last_seq
        await self._change(
            execution_id,
            lambda execution: executions.lose(execution, lease, outcome, last_seq, self._clock.now(), ran=ran),
        )

    async def _change(self, execution_id: ExecutionId, interrupt: Callable[[Execution], list[ExecutionEvent]]) -> None:
        async def decide(documents: Documents) -> Step:
            execution = await documents.execution(execution_id)
            events = interrupt(execution) if execution is not None else []
            if execution is None or not events:
                return NOTHING
            log.warning("execution.interrupted", attempt=execution.attempt, to=events[0].type)
            return Step(changes=(execution_change(execution, events),))

        await self._flow.perform(decide)
