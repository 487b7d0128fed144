"""What an operator sees of admission, and does to it."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from runtape.application.admission import Admission
from runtape.domain.errors import NotFound
from runtape.domain.events import Priority
from runtape.domain.ids import ExecutionId
from runtape.domain.saga import Saga
from runtape.ports.admission import AdmissionQueue, Gate, GateStore, Place, Survey, Waiting
from runtape.ports.stores import ExecutionStore

log = structlog.get_logger(__name__)


class AdmissionControl:
    """The queue in the hands of an operator.  The gate is stored before it holds, so it outlives this process."""

    def __init__(
        self, *, queue: AdmissionQueue, gates: GateStore, executions: ExecutionStore, admission: Admission
    ) -> None:
        self._queue = queue
        self._gates = gates
        self._executions = executions
        self._admission = admission
        self._setting = asyncio.Lock()

    async def restore(self) -> None:
        """Put the gate where it was left; runs before anybody is admitted."""
        await self._queue.set_gate(await self._gates.gate())

    async def pause(self) -> Survey:
        """Let nobody to a place until `resume`; who runs goes on, and who comes waits."""
        return await self._set(Gate.PAUSED)

    async def drain(self, wait_s: float) -> Survey:
        """Let nobody in at all until `resume`; return once nobody runs any more, after `wait_s` at the latest."""
        await self._set(Gate.DRAINING)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._queue.drained(), wait_s)
        return await self._queue.survey()

    async def resume(self) -> Survey:
        """Let everybody in again."""
        await self._set(Gate.OPEN)
        await self._admission.admit_waiting()
        return await self._queue.survey()

    async def survey(self) -> Survey:
        """Return how the queue stands."""
        return await self._queue.survey()

    async def waiting(self, limit: int, after: ExecutionId | None) -> tuple[Sequence[Waiting], ExecutionId | None]:
        """Return up to `limit` of those who wait, the longest first, and where the next page begins."""
        found = await self._queue.waiting(limit + 1, after)
        page = found[:limit]
        return page, page[-1].entry.execution_id if len(found) > limit else None

    async def rank(self, execution_id: ExecutionId, priority: Priority) -> tuple[Saga, Place | None]:
        """Let an execution wait with another priority; return its saga, and its place while it still has one.

        Raises: NotFound; NotWaiting.
        """
        if await self._executions.get(execution_id) is None:
            raise NotFound(f"no execution {execution_id}")
        saga = await self._admission.rank(execution_id, priority)
        return saga, await self._queue.place(execution_id)

    async def _set(self, gate: Gate) -> Survey:
        async with self._setting:
            await self._gates.put_gate(gate)
            await self._queue.set_gate(gate)
        log.info("admission.gate", gate=gate)
        return await self._queue.survey()
