"""The saga_orchestrator's work: who runs when, and following each execution to its end."""

import asyncio
from contextlib import suppress

import structlog

from runtape.application.announcing import Announcer
from runtape.application.flow import NOTHING, Documents, Effect, Flow, Step
from runtape.application.retrying import persistently
from runtape.domain import saga as sagas
from runtape.domain.errors import NotWaiting
from runtape.domain.events import ExecutionEnded, ExecutionEvent, ExecutionRequested, Message, Priority
from runtape.domain.ids import ExecutionId
from runtape.domain.saga import Saga, SagaStep
from runtape.ports.admission import AdmissionQueue, Entry
from runtape.ports.clock import Clock
from runtape.ports.errors import Transient
from runtape.ports.stores import Change, Durability, SagaStore
from runtape.ports.tracing import NoSpans, StepSpans

log = structlog.get_logger(__name__)

GROUP = "saga-orchestrator"

RESTORE_PAGE = 500
ADMIT_TRIES = 8
GRANT_S = 10.0
"""How long a place may be held before the saga that it was given to has to say so."""

TELLING_INTERVAL_S = 0.5
TOLD = 100
"""Those next in line are told their place when it changes, at most this many and this often; each stream looks at
its place again with every heartbeat."""


def _change(
    before: Saga | None, after: Saga, messages: tuple[Message, ...], durability: Durability = Durability.PROCESS
) -> Change:
    # A saga can be made again from its execution, so it need not survive the loss of power by itself.
    return Change(
        document=after,
        expected_version=before.version if before else 0,
        messages=messages,
        durability=durability,
    )


class Admission:
    """Admits executions, queues those that have to wait, and passes places on."""

    def __init__(
        self,
        *,
        queue: AdmissionQueue,
        sagas: SagaStore,
        flow: Flow,
        announcer: Announcer,
        clock: Clock,
        spans: StepSpans | None = None,
    ) -> None:
        self._queue = queue
        self._sagas = sagas
        self._flow = flow
        self._announcer = announcer
        self._clock = clock
        self._spans = spans or NoSpans()
        self._telling = False

    async def on_requested(self, message: Message, documents: Documents) -> Step:
        """Begin the saga of a new execution: admitted at once when there is room, else queued."""
        assert isinstance(message, ExecutionRequested)
        begun = await documents.saga(message.execution_id)
        execution = await documents.execution(message.execution_id)
        if execution is None or execution.status.terminal:
            return NOTHING
        if begun is not None:
            # Told again, perhaps because whoever stored the saga died before it stood in line.
            waits = begun.step is SagaStep.QUEUE
            return Step(effects=(self._enqueueing(_entry(begun)),)) if waits else NOTHING
        saga = sagas.begin(message, execution.attempt + 1, execution.correlation)
        entry = _entry(saga)
        if not await self._queue.offer(entry):
            # In line only once the saga is stored: whoever is granted a place must have one to admit.
            saga = sagas.wait(saga, message.at)
            return Step(changes=(_change(None, saga, ()),), effects=(self._enqueueing(entry),))
        admitted, commands = sagas.admit(saga, message.at)
        return Step(changes=(_change(None, admitted, tuple(commands)),), undo=self._taking_back(entry.execution_id))

    async def on_event(self, message: Message, documents: Documents) -> Step:
        """Follow an event of the execution; its end frees a place for the next one."""
        assert isinstance(message, ExecutionEvent)
        saga = await documents.saga(message.execution_id)
        followed, commands = sagas.follow(saga, message) if saga is not None else (None, [])
        # The event of the end may have been lost: what comes after it frees the place as well.
        frees = isinstance(message, ExecutionEnded) or (
            saga is not None and followed is not None and saga.admitted and not followed.admitted
        )
        effects = (self._passing_on(message.execution_id),) if frees else ()
        if saga is None or followed is None or followed is saga:
            return Step(effects=effects)
        return Step(changes=(_change(saga, followed, tuple(commands)),), effects=(*effects, *self._tracing(followed)))

    async def admit_waiting(self) -> None:
        """Admit whoever may run now."""
        granted = await self._queue.grant()
        for entry in granted:
            await self._take_place(entry)
        if granted and not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_later(TELLING_INTERVAL_S, self._tell_soon)

    async def check(self, execution_id: ExecutionId) -> None:
        """Compare an overdue saga with its execution and do what is lacking."""

        async def decide(documents: Documents) -> Step:
            saga = await documents.saga(execution_id)
            if saga is None:
                return NOTHING
            execution = await documents.execution(execution_id)
            checked, commands = sagas.check(saga, self._clock.now(), execution)
            over = execution is None or execution.status.terminal
            effects = (self._passing_on(execution_id),) if over else ()
            if checked is saga:
                return Step(effects=effects)
            return Step(changes=(_change(saga, checked, tuple(commands)),), effects=(*effects, *self._tracing(checked)))

        await self._flow.perform(decide)

    async def requeue(self, saga: Saga) -> None:
        """Bring a waiting saga into the queue, or carry out its grant, if that was lost."""
        if saga.step is not SagaStep.QUEUE:
            return
        entry = _entry(saga)
        if await self._queue.offer(entry):
            await self._take_place(entry)
        else:
            await self._queue.enqueue(entry)
            await self.admit_waiting()

    async def reconcile(self) -> None:
        """Give places back whose sagas hold none, carry out grants that were lost, and admit whoever may run now.

        What frees a place, and what passes it on then, is an effect: it is lost with its process, or with the answer to
        the commit before it.
        """
        for execution_id in await self._queue.held(GRANT_S):
            saga = await self._sagas.get(execution_id)
            if saga is not None and saga.step is SagaStep.QUEUE:
                await self.requeue(saga)
            elif saga is None or not saga.admitted:
                await self._passing_on(execution_id)()
        await self.admit_waiting()

    async def restart(self, execution_id: ExecutionId, attempt: int) -> None:
        """Ask for `attempt`, whose ``execution.restarted`` was lost."""

        async def decide(documents: Documents) -> Step:
            saga = await documents.saga(execution_id)
            if saga is None:
                return NOTHING
            again, commands = sagas.restart(saga, attempt, self._clock.now())
            return NOTHING if again is saga else Step(changes=(_change(saga, again, tuple(commands)),))

        await self._flow.perform(decide)

    async def rank(self, execution_id: ExecutionId, priority: Priority) -> Saga:
        """Let an execution that waits do so with another priority, for good.  Raises: NotWaiting; Transient."""
        ranked: list[Saga] = []

        async def decide(documents: Documents) -> Step:
            ranked.clear()
            saga = await documents.saga(execution_id)
            execution = await documents.execution(execution_id)
            over = execution is None or execution.status.terminal
            if over or saga is None or saga.step is not SagaStep.QUEUE:
                raise NotWaiting(f"execution {execution_id} does not wait for a place")
            ranked.append(sagas.rank(saga, priority, self._clock.now()))
            if ranked[0] is saga:
                return NOTHING
            return Step(changes=(_change(saga, ranked[0], (), Durability.POWER),))

        await self._flow.perform(decide)
        await self._queue.rank(_entry(ranked[0]))
        self._announcer.queue_moved(await self._queue.front(TOLD))
        return ranked[0]

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

    async def _take_place(self, entry: Entry) -> None:
        try:
            await persistently(
                lambda: self._flow.perform(lambda documents: self._admit(entry, documents)), "admit", ADMIT_TRIES
            )
        except Transient as error:
            # The place stays taken; the sweeper finds the saga in the queue and comes here again.
            log.error("admission.failed", error=str(error))

    async def _admit(self, entry: Entry, documents: Documents) -> Step:
        saga = await documents.saga(entry.execution_id)
        execution = await documents.execution(entry.execution_id)
        if saga is None or execution is None or execution.status.terminal:
            ended = saga and sagas.check(saga, self._clock.now(), execution)[0]
            changes = (
                (_change(saga, ended, ()),) if saga is not None and ended is not None and ended is not saga else ()
            )
            return Step(changes=changes, effects=(self._passing_on(entry.execution_id),))
        admitted, commands = sagas.admit(saga, self._clock.now())
        if admitted is saga:
            return NOTHING if saga.admitted else Step(effects=(self._passing_on(entry.execution_id),))
        return Step(changes=(_change(saga, admitted, tuple(commands)),))

    def _tell_soon(self) -> None:
        self._telling = False
        self._flow.soon(self._tell_waiting)

    async def _tell_waiting(self) -> None:
        with suppress(Transient):  # each stream looks at its place again by itself
            self._announcer.queue_moved(await self._queue.front(TOLD))

    def _enqueueing(self, entry: Entry) -> Effect:
        async def enqueue() -> None:
            await self._queue.enqueue(entry)
            await self.admit_waiting()

        return enqueue

    def _taking_back(self, execution_id: ExecutionId) -> Effect:
        async def take_back() -> None:
            try:
                saga = await self._sagas.get(execution_id)
            except Transient:
                return  # `reconcile` looks again: a place that is given back twice would be two
            # The commit may have failed because somebody else had admitted it: then it keeps its place.
            if saga is None or not saga.admitted:
                await self._passing_on(execution_id)()

        return take_back

    def _tracing(self, saga: Saga) -> tuple[Effect, ...]:
        if saga.step is not SagaStep.DONE or not self._spans.recording:
            return ()

        async def trace() -> None:
            self._spans.tell(saga)

        return (trace,)

    def _passing_on(self, execution_id: ExecutionId) -> Effect:
        async def pass_on() -> None:
            await self._queue.release(execution_id)
            await self.admit_waiting()

        return pass_on


def _entry(saga: Saga) -> Entry:
    return Entry(saga.execution_id, saga.project_id, saga.lang, saga.priority, saga.waiting_since)
