"""The saga_orchestrator's work: who runs when, and following each execution to its end."""

import asyncio

from runtape.application.announcing import Announcer
from runtape.application.flow import NOTHING, Documents, Effect, Flow, Step
from runtape.domain import saga as sagas
from runtape.domain.events import ExecutionEnded, ExecutionEvent, ExecutionRequested, Message
from runtape.domain.ids import ExecutionId
from runtape.domain.saga import Saga, SagaStep
from runtape.ports.admission import AdmissionQueue, Entry
from runtape.ports.clock import Clock
from runtape.ports.stores import Change, Durability, SagaStore

GROUP = "saga-orchestrator"

RESTORE_PAGE = 500

TELLING_INTERVAL_S = 0.5
TOLD = 100
"""Those next in line are told their place when it changes, at most this many and this often; each stream looks at
its place again with every heartbeat."""


def _change(before: Saga | None, after: Saga, messages: tuple[Message, ...]) -> Change:
    # A saga can be made again from its execution, so it need not survive the loss of power by itself.
    return Change(
        document=after,
        expected_version=before.version if before else 0,
        messages=messages,
        durability=Durability.PROCESS,
    )


class Admission:
    """Admits executions, queues those that have to wait, and passes places on."""

    def __init__(
        self, *, queue: AdmissionQueue, sagas: SagaStore, flow: Flow, announcer: Announcer, clock: Clock
    ) -> None:
        self._queue = queue
        self._sagas = sagas
        self._flow = flow
        self._announcer = announcer
        self._clock = clock
        self._telling = False

    async def on_requested(self, message: Message, documents: Documents) -> Step:
        """Begin the saga of a new execution: admitted at once when there is room, else queued."""
        assert isinstance(message, ExecutionRequested)
        if await documents.saga(message.execution_id) is not None:
            return NOTHING
        execution = await documents.execution(message.execution_id)
        if execution is None or execution.status.terminal:
            return NOTHING
        saga = sagas.begin(message)
        entry = _entry(saga)
        if not await self._queue.offer(entry):
            return Step(
                changes=(_change(None, saga, ()),),
                effects=(self.admit_waiting,),
                undo=self._releasing(entry.execution_id),
            )
        admitted, commands = sagas.admit(saga, message.at)
        return Step(changes=(_change(None, admitted, tuple(commands)),), undo=self._releasing(entry.execution_id))

    async def on_event(self, message: Message, documents: Documents) -> Step:
        """Follow an event of the execution; its end frees a place for the next one."""
        assert isinstance(message, ExecutionEvent)
        effects = (self._passing_on(message.execution_id),) if isinstance(message, ExecutionEnded) else ()
        saga = await documents.saga(message.execution_id)
        if saga is None:
            return Step(effects=effects)
        followed, commands = sagas.follow(saga, message)
        if followed is saga:
            return Step(effects=effects)
        return Step(changes=(_change(saga, followed, tuple(commands)),), effects=effects)

    async def admit_waiting(self) -> None:
        """Admit whoever may run now."""
        granted = await self._queue.grant()
        for entry in granted:
            await self._flow.perform(lambda documents, entry=entry: self._admit(entry, documents))
        if granted and not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_later(TELLING_INTERVAL_S, self._tell_waiting)

    async def check(self, execution_id: ExecutionId) -> None:
        """Compare an overdue saga with its execution and do what is lacking."""

        async def decide(documents: Documents) -> Step:
            saga = await documents.saga(execution_id)
            if saga is None:
                return NOTHING
            execution = await documents.execution(execution_id)
            ended = execution is None or execution.status.terminal
            stored = execution is None or execution.result is not None
            checked, commands = sagas.check(saga, self._clock.now(), ended=ended, stored=stored)
            effects = (self._passing_on(execution_id),) if ended else ()
            if checked is saga:
                return Step(effects=effects)
            return Step(changes=(_change(saga, checked, tuple(commands)),), effects=effects)

        await self._flow.perform(decide)

    async def restart(self, execution_id: ExecutionId, attempt: int) -> None:
        """Ask for `attempt`, whose ``execution.restarted`` was lost."""

        async def decide(documents: Documents) -> Step:
            saga = await documents.saga(execution_id)
            if saga is None:
                return NOTHING
            again, commands = sagas.restart(saga, attempt, self._clock.now())
            return NOTHING if again is saga else Step(changes=(_change(saga, again, tuple(commands)),))

        await self._flow.perform(decide)

    async def restore(self) -> dict[ExecutionId, int]:
        """Rebuild the queue from the sagas and return the attempt that each unfinished one asked for.

        Those that hold a place come first, then those that wait, in order; nobody is admitted meanwhile.
        """
        asked: dict[ExecutionId, int] = {}
        for admitted in (True, False):
            page: list[Entry] = []
            async for saga in self._sagas.unfinished():
                asked[saga.execution_id] = saga.attempt
                if saga.step is not SagaStep.STORE and saga.admitted is admitted:
                    page.append(_entry(saga))
                if len(page) == RESTORE_PAGE:
                    await self._queue.restore(page, admitted=admitted)
                    page = []
            await self._queue.restore(page, admitted=admitted)
        return asked

    async def _admit(self, entry: Entry, documents: Documents) -> Step:
        saga = await documents.saga(entry.execution_id)
        execution = await documents.execution(entry.execution_id)
        if saga is None or execution is None or execution.status.terminal:
            return Step(effects=(self._passing_on(entry.execution_id),))
        admitted, commands = sagas.admit(saga, self._clock.now())
        if admitted is saga:
            return NOTHING
        return Step(changes=(_change(saga, admitted, tuple(commands)),), undo=self._releasing(entry.execution_id))

    def _tell_waiting(self) -> None:
        self._telling = False
        self._announcer.queue_moved(self._queue.front(TOLD))

    def _releasing(self, execution_id: ExecutionId) -> Effect:
        async def release() -> None:
            await self._queue.release(execution_id)

        return release

    def _passing_on(self, execution_id: ExecutionId) -> Effect:
        async def pass_on() -> None:
            await self._queue.release(execution_id)
            await self.admit_waiting()

        return pass_on


def _entry(saga: Saga) -> Entry:
    return Entry(saga.execution_id, saga.project_id, saga.lang, saga.priority)
