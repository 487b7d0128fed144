"""The k8s_worker's work: hold the lease, start the program, put what it prints on the tape.

The worker records every pod that its runtime has, from the first byte to the last, and extends the leases of
those that live.  It starts nothing without a committed lease.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import timedelta

import structlog

from runtape.application.announcing import Announcer
from runtape.application.flow import NOTHING, Documents, Effect, Flow, Step, Tasks, execution_change
from runtape.application.retrying import persistently
from runtape.application.sources import SourceLibrary
from runtape.application.starting import TELL_INTERVAL_S, LiveAttempt, Stop, Stopped
from runtape.domain import execution as executions
from runtape.domain.events import ExecutionEvent, ExecutionRestarted, Message, PodCreate, PodKill
from runtape.domain.execution import Execution
from runtape.domain.outcome import Outcome, OutcomeKind, Status, Usage
from runtape.ports.clock import Clock
from runtape.ports.errors import InfrastructureError, Permanent, Transient, Unavailable
from runtape.ports.pod_runtime import PodKey, PodRuntime, PodSpec
from runtape.ports.stores import ExecutionStore, TapeSealed, TapeStore

log = structlog.get_logger(__name__)

GROUP = "k8s-worker"

LEASE_TTL = timedelta(seconds=30)
LEASE_EXTENSIONS = 3
"""How often a lease is extended in the time that it has."""

TIDY_INTERVAL_S = 10.0
FLUSH_INTERVAL_S = 0.02
"""The pause after a flush of a pod's output, in which more can gather; none after the first and at the end."""

START_TRIES = 9
"""With their pauses 16 s.  What every start meets alike is waited for beside that."""
LOOK_TRIES = 5
KILL_TRIES = 5


class Worker:
    """Runs pods on `pods` under leases in the name of `owner`, which is unique to this process."""

    def __init__(
        self,
        *,
        owner: str,
        pods: PodRuntime,
        executions: ExecutionStore,
        tape: TapeStore,
        library: SourceLibrary,
        flow: Flow,
        announcer: Announcer,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self.owner = owner
        self.lease_ttl = LEASE_TTL
        self._pods = pods
        self._executions = executions
        self._tape = tape
        self._library = library
        self._flow = flow
        self._announcer = announcer
        self._tasks = tasks
        self._clock = clock
        self._live: dict[PodKey, LiveAttempt] = {}
        self._leaving = False
        self._tell_at_s = 0.0
        """When the log is next told what starts wait for, monotonic."""

    async def on_create(self, message: Message, documents: Documents) -> Step:
        """Take the lease of the attempt; the program starts once that is durable."""
        assert isinstance(message, PodCreate)
        execution = await documents.execution(message.execution_id)
        if execution is None:
            return NOTHING
        events = executions.start(execution, message.attempt, self.owner, self._clock.now(), self.lease_ttl)
        if not events:
            return NOTHING
        change = execution_change(execution, events)
        assert isinstance(change.document, Execution)
        return Step(changes=(change,), effects=(self._starting(change.document),))

    async def on_kill(self, message: Message, documents: Documents) -> Step:
        """End the attempt's program, wherever it stands."""
        assert isinstance(message, PodKill)
        key = PodKey(message.execution_id, message.attempt)

        async def kill() -> None:
            if (live := self._live.get(key)) is not None:
                live.stop(Stop.KILLED)
            await persistently(lambda: self._pods.kill(key), "pod.kill", KILL_TRIES)

        return Step(effects=(kill,))

    async def on_over(self, message: Message, documents: Documents) -> Step:
        """Remove the pod of an attempt whose end is stored."""
        assert isinstance(message, ExecutionEvent)
        attempt = message.attempt - 1 if isinstance(message, ExecutionRestarted) else message.attempt
        key = PodKey(message.execution_id, attempt)

        async def remove() -> None:
            try:
                await self._pods.remove(key)
            except InfrastructureError as error:
                again = f"it is tried again within {TIDY_INTERVAL_S:g} s"
                log.warning("pod.not_removed", error=str(error), then=again)

        return Step(effects=(remove,)) if attempt else NOTHING

    async def extend_leases(self) -> None:
        """Extend the leases of all live pods, in the store first; runs until cancelled."""
        while True:
            await asyncio.sleep(self.lease_ttl.total_seconds() / LEASE_EXTENSIONS)
            keys = list(self._live)
            if not keys:
                continue
            expires_at = self._clock.now() + self.lease_ttl
            try:
                held = await self._executions.extend_lease(keys, self.owner, expires_at)
            except Transient as error:
                log.warning("lease.not_extended", error=str(error), count=len(keys))
                continue
            for key in keys:
                live = self._live.get(key)
                if key in held:
                    if live is not None:
                        live.expires_at = expires_at
                    await self._pods.extend(key, expires_at)
                elif live is not None:
                    live.stop(Stop.LOST)
                    await self._pods.kill(key)

    @property
    def busy(self) -> int:
        """How many attempts this process is starting or recording."""
        return len(self._live)

    def holds(self, key: PodKey) -> bool:
        """Whether this process is starting the attempt or recording what it prints."""
        return key in self._live

    def leave(self) -> None:
        """Give back, now and from now on, what waits to be started: this process is going to end."""
        self._leaving = True
        for live in self._live.values():
            live.stop(Stop.LEAVING)

    async def tidy(self) -> None:
        """Look after pods that a lost message or effect has left behind; runs until cancelled."""
        while True:
            await asyncio.sleep(TIDY_INTERVAL_S)
            try:
                await self.tidy_up()
            except InfrastructureError as error:
                log.warning("pods.not_tidied", error=str(error))

    async def tidy_up(self) -> None:
        """Remove each pod whose attempt is over, and kill those that were cancelled, with or without a pod.

        Raises: what the last of those met that could not be looked after; the others were.
        """
        for live in [each for each in self._live.values() if each.waiting]:
            execution = await self._executions.get(live.key.execution_id)
            if execution is None or not _is_wanted(execution, live.key):
                live.stop(Stop.KILLED)
        failure: InfrastructureError | None = None
        for key in await self._pods.list():
            try:
                await self._tidy(key)
            except InfrastructureError as error:
                failure = error
        if failure is not None:
            raise failure

    async def _tidy(self, key: PodKey) -> None:
        execution = await self._executions.get(key.execution_id)
        if execution is None or _is_over(execution, key):
            await self._pods.remove(key)
        elif execution.cancel_requested:
            await self._pods.kill(key)

    def ended(self, key: PodKey) -> None:
        """Say that the pod has ended, so that its last output is flushed without waiting."""
        live = self._live.get(key)
        if live is not None:
            live.ended.set()

    def _starting(self, execution: Execution) -> Effect:
        key, lease = PodKey(execution.id, execution.attempt), execution.lease
        assert lease is not None

        async def run() -> None:
            try:
                if await self._start(execution, self._live[key]):
                    if not await self._may_run(key):
                        await self._pods.kill(key)
                    await self._record(key)
            finally:
                self._live.pop(key, None)
                await self._tape.close_tape(key)

        def start() -> Coroutine[object, object, None]:
            # Open before anybody hears of the attempt: its first readers know that there is nothing to read yet.
            live = self._live[key] = LiveAttempt(key, lease.expires_at)
            if self._leaving:
                live.stop(Stop.LEAVING)
            self._tape.open_tape(key)
            return run()

        return start

    async def _may_run(self, key: PodKey) -> bool:
        """Whether the attempt is still wanted: what was decided before the pod was known here has killed nothing."""
        try:
            current = await persistently(lambda: self._executions.get(key.execution_id), "attempt.look_up", LOOK_TRIES)
        except Transient:
            return False
        return current is not None and _is_wanted(current, key)

    async def _start(self, execution: Execution, live: LiveAttempt) -> bool:
        key = live.key

        async def hand_over() -> None:
            if self._clock.now() >= live.expires_at:  # this process stood still: somebody else may have the attempt
                raise Permanent("the lease has run out before the program was started")
            spec = PodSpec(
                execution_id=execution.id,
                lang=execution.spec.lang,
                lang_version=execution.spec.lang_version,
                source=await self._library.load(execution.source),
                limits=execution.spec.limits,
                timeline=execution.spec.timeline,
            )
            how = await self._pods.start(spec, execution.attempt, live.expires_at)
            live.waiting = False
            if how is not None:
                self._announcer.started(key, how)

        async def outlast(error: Unavailable) -> None:
            live.waiting = True
            self._tell_waiting(error)
            await live.outlast(error)

        try:
            await persistently(hand_over, "pod.start", START_TRIES, outlast)
            return True
        except Stopped as stopped:
            log.info("pod.start_stopped", why=stopped.why)
            if stopped.why is not Stop.LOST:
                await self._decide(lambda documents: self._give_back(key, documents))
            return False
        except InfrastructureError as error:
            log.error("pod.start_failed", error=str(error))
        outcome = Outcome(
            kind=OutcomeKind.SANDBOX_ERROR, reason="start_failed", message="the sandbox could not be started"
        )
        await self._decide(lambda documents: self._give_up(key, outcome, documents))
        return False

    async def _decide(self, decision: Callable[[Documents], Awaitable[Step]]) -> None:
        """Perform what may be decided again, although the store may be away as well.  Raises: Transient."""
        await persistently(lambda: self._flow.perform(decision), "attempt.decide", START_TRIES)

    async def _give_up(self, key: PodKey, outcome: Outcome, documents: Documents) -> Step:
        execution = await documents.execution(key.execution_id)
        if execution is None:
            return NOTHING
        events = executions.finish(execution, key.attempt, outcome, Usage(), 0, self._clock.now(), ran=False)
        return Step(changes=(execution_change(execution, events),)) if events else NOTHING

    async def _give_back(self, key: PodKey, documents: Documents) -> Step:
        execution = await documents.execution(key.execution_id)
        events = executions.give_back(execution, key.attempt, self._clock.now()) if execution is not None else []
        if execution is None or not events:
            return NOTHING
        return Step(changes=(execution_change(execution, events),))

    def _tell_waiting(self, error: Unavailable) -> None:
        now_s = self._clock.monotonic_s()
        if now_s >= self._tell_at_s:
            self._tell_at_s = now_s + TELL_INTERVAL_S
            runs = sum(each.waiting for each in self._live.values())
            log.warning("pod.start_waits", runs=runs, error=str(error))

    async def _record(self, key: PodKey) -> None:
        """Put the pod's output on the tape, then tell those who watch; flushes are paced, the first is not."""
        ended = self._live[key].ended
        first = True
        try:
            async for records in self._pods.records(key):
                # For as long as it takes: the program waits at its full pipe, and its lease ends it if need be.
                await persistently(lambda batch=records: self._tape.append(key, batch), "tape.append")
                self._announcer.output(key, records)
                if not first and not ended.is_set():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(ended.wait(), FLUSH_INTERVAL_S)
                first = False
        except InfrastructureError as error:
            # The tape cannot be written at all: end the program rather than lose what it prints.
            log.error("tape.lost", error=str(error))
            await self._pods.kill(key)
        except TapeSealed as error:
            log.warning("attempt.lost", error=str(error))
            await self._pods.kill(key)


def _is_over(execution: Execution, key: PodKey) -> bool:
    """Whether nothing of the attempt's pod is needed any more."""
    if execution.attempt > key.attempt or execution.result is not None:
        return True
    return execution.attempt == key.attempt and execution.status is Status.QUEUED


def _is_wanted(execution: Execution, key: PodKey) -> bool:
    return execution.live and execution.attempt == key.attempt and not execution.cancel_requested
