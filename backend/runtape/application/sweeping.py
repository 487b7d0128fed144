"""Finding what a crash or a lost message left behind.

Every unfinished document carries ``due_at``.  When it passes, the sweeper does again what the document's state
says comes next; each of these is idempotent.  At start everything is looked at once (`recover`), because the
runtime of the process before is known to be dead.

An attempt whose lease has run out by the wall clock may be alive: that clock jumps, and another machine's is off.
It is taken for dead once its lease was seen unchanged for as long as a lease lasts, with its grace, by this process's
own monotonic time: whoever held it would have extended it, and its runtime has killed it since.

A ``due_at`` that was written while a wall clock was ahead comes late.  What is due beyond `HORIZON` no right clock has
written: it is looked at at once, whoever wrote it and whenever.  What lies nearer is found by the process whose clock
is set back: it notices the jump and looks once at everything that is due within its length.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import TypeVar

import structlog

from runtape.application.admission import Admission
from runtape.application.flow import Flow
from runtape.application.monitoring import PodMonitor
from runtape.application.storing import ResultProcessor
from runtape.domain.events import ENDED_BY_STATUS, ExecutionRequested, Lease
from runtape.domain.execution import ADMISSION_DUE, LEASE_GRACE, RESULT_DUE, Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import Usage
from runtape.domain.saga import Saga
from runtape.ports.clock import Clock
from runtape.ports.errors import Transient
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import BlobStore, ExecutionStore, SagaStore

log = structlog.get_logger(__name__)

D = TypeVar("D", Execution, Saga)

SWEEP_INTERVAL_S = 5.0
PAGE = 200
BLOB_INTERVAL = timedelta(minutes=10)
BLOB_AGE = timedelta(hours=1)
"""How long a blob may lie unreferred to: longer than any request takes between blob and document."""

JUMP = timedelta(seconds=2)
"""By how much the wall clock may run apart from the monotonic one between two looks before it has jumped."""

LONGEST_WAIT_DUE = timedelta(minutes=5)
"""How often at least an execution that waits in line is looked at: as often as its age doubles, up to this."""

HORIZON = 2 * LONGEST_WAIT_DUE
"""What is due later than that was written by a clock that was ahead, and is looked at now."""


class Sweeper:
    """Looks after overdue documents and unused blobs."""

    def __init__(
        self,
        *,
        executions: ExecutionStore,
        sagas: SagaStore,
        blobs: BlobStore,
        admission: Admission,
        monitor: PodMonitor,
        results: ResultProcessor,
        flow: Flow,
        clock: Clock,
    ) -> None:
        self._executions = executions
        self._sagas = sagas
        self._blobs = blobs
        self._admission = admission
        self._monitor = monitor
        self._results = results
        self._flow = flow
        self._clock = clock
        self._ahead_s = _ahead_s(clock)
        """By how much the wall clock was ahead of the monotonic one at the last look."""
        self._overdue: dict[ExecutionId, tuple[Lease, float]] = {}
        """The leases that have run out by the wall clock, and when each was first seen, by monotonic time."""

    async def recover(self, owner: str, *, alone: bool = True) -> None:
        """Take up every unfinished execution of the processes before this one, whose worker id is `owner`.

        When this process is `alone`, no attempt of theirs can be alive; else their leases tell, and `sweep` looks after
        them.  Runs before the first message is consumed.
        """
        asked = await self._admission.restore()
        seen: set[ExecutionId] = set()
        async for execution in self._executions.unfinished():
            # One whose `due_at` is moved here comes again, and would for ever.
            if execution.id in seen:
                continue
            seen.add(execution.id)
            if execution.lease is not None and not alone:
                continue
            if execution.lease is not None and execution.lease.owner != owner:
                await self._monitor.interrupt(execution.id, execution.attempt, "worker_lost")
                if execution.id not in asked and (lost := await self._executions.get(execution.id)) is not None:
                    await self._look_after(lost)  # no saga is told of its restart
            elif execution.outcome is not None or asked.get(execution.id, 0) <= execution.attempt:
                await self._look_after(execution)
        async for saga in self._sagas.unfinished():
            if saga.due_at is not None:
                await self._admission.check(saga.execution_id)
        await self._admission.admit_waiting()

    async def succeed(self, owners: Collection[str], told: Collection[PodKey] = ()) -> None:
        """Take for lost what the workers with the ids `owners`, which are known to be dead, were running, but `told`.

        Idempotent.  Raises: Transient.
        """
        async for execution in self._executions.unfinished():
            key = PodKey(execution.id, execution.attempt)
            if execution.lease is not None and execution.lease.owner in owners and key not in told:
                await self._monitor.interrupt(execution.id, execution.attempt, "worker_lost")

    async def run(self) -> None:
        """Sweep from time to time; runs until cancelled.

        A wall clock that was set forward makes every blob old, and they have to wait for as long as any request takes.
        """
        blobs_at_s = self._clock.monotonic_s() + BLOB_INTERVAL.total_seconds()
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                jump = self._jump()
                if jump:
                    log.warning("clock.jumped", seconds=round(jump.total_seconds(), 3))
                await self.sweep(LONGEST_WAIT_DUE - jump if jump < timedelta() else timedelta())
                if jump or self._clock.monotonic_s() >= blobs_at_s:
                    blobs_at_s = self._clock.monotonic_s() + BLOB_INTERVAL.total_seconds()
                    if not jump:
                        await self._blobs.sweep(self._clock.now() - BLOB_AGE)
            except Transient as error:
                log.warning("sweep.failed", error=str(error))

    def _jump(self) -> timedelta:
        """Return by how much the wall clock has jumped since the last call, nothing while it ran evenly."""
        ahead_s, self._ahead_s = self._ahead_s, _ahead_s(self._clock)
        jump = timedelta(seconds=self._ahead_s - ahead_s)
        return jump if abs(jump) > JUMP else timedelta()

    async def sweep(self, early: timedelta = timedelta()) -> None:
        """Look after every document whose time has come, or comes within `early`."""
        now = self._clock.now() + early
        beyond = now + HORIZON
        before, self._overdue = self._overdue, {}
        async for execution in _each(lambda limit: self._executions.due(now, limit, beyond), attrgetter("id")):
            if execution.lease is not None:
                await self._apart(self._expire(execution.id, execution.lease, before.get(execution.id)), execution)
            else:
                await self._apart(self._look_after(execution), execution)
        async for saga in _each(lambda limit: self._sagas.due(now, limit, beyond), attrgetter("execution_id")):
            await self._apart(self._admission.check(saga.execution_id), saga)
        await self._admission.reconcile()

    async def _expire(self, execution_id: ExecutionId, lease: Lease, seen: tuple[Lease, float] | None) -> None:
        """End an attempt whose lease was seen as it is for longer than it lasts."""
        now_s = self._clock.monotonic_s()
        if seen is None or seen[0] != lease:
            seen = lease, now_s
        self._overdue[execution_id] = seen
        if now_s - seen[1] < (self._monitor.lease_ttl + LEASE_GRACE).total_seconds():
            return
        current = await self._executions.get(execution_id)  # what was found overdue may be out of date
        if current is not None and current.lease == lease:
            await self._monitor.expire(execution_id, lease)

    async def _apart(self, work: Coroutine[object, object, None], document: Execution | Saga) -> None:
        try:
            await work
        except Exception as error:  # one document must not keep the others from being looked after
            log.error("sweep.document_failed", document=type(document).__name__, exc_info=error)

    async def _look_after(self, execution: Execution) -> None:
        if execution.outcome is not None:
            await self._store_result(execution)
        elif not execution.live:
            await self._request_again(execution)

    async def _store_result(self, execution: Execution) -> None:
        outcome = execution.outcome
        assert outcome is not None
        again = ENDED_BY_STATUS[outcome.status](
            execution_id=execution.id,
            project_id=execution.project_id,
            at=execution.finished_at or self._clock.now(),
            attempt=execution.attempt,
            version=execution.version,
            outcome=outcome,
            usage=execution.usage or Usage(),
            last_seq=execution.last_seq,
            artifacts=execution.artifacts,
        )
        await self._executions.defer(execution, self._clock.now() + RESULT_DUE)
        await self._flow.handle(self._admission.on_event, again)
        await self._flow.handle(self._results.on_ended, again)

    async def _request_again(self, execution: Execution) -> None:
        now = self._clock.now()
        wait = min(max(ADMISSION_DUE, now - execution.created_at), LONGEST_WAIT_DUE)
        await self._executions.defer(execution, now + wait)
        saga = await self._sagas.get(execution.id)
        if saga is None:
            again = ExecutionRequested(
                execution_id=execution.id,
                project_id=execution.project_id,
                at=execution.created_at,
                version=1,
                lang=execution.spec.lang,
                lang_version=execution.spec.lang_version,
                priority=execution.spec.priority,
            )
            await self._flow.handle(self._admission.on_requested, again)
        elif execution.attempt >= saga.attempt:
            await self._admission.restart(execution.id, execution.attempt + 1)
        else:
            await self._admission.requeue(saga)


async def _each(due: Callable[[int], Awaitable[Sequence[D]]], id_of: Callable[[D], ExecutionId]) -> AsyncIterator[D]:
    """Yield each document that is due, once; `due` gives the first so many.

    One that was looked after has moved on, mostly.  Those that stay come first again: more is asked for then, so that
    they keep nobody behind them waiting.
    """
    seen: set[ExecutionId] = set()
    limit = PAGE
    while True:
        page = await due(limit)
        fresh = [document for document in page if id_of(document) not in seen]
        for document in fresh:
            seen.add(id_of(document))
            yield document
        if not fresh:
            if len(page) < limit:
                return
            limit += PAGE


def _ahead_s(clock: Clock) -> float:
    return clock.now().timestamp() - clock.monotonic_s()
