"""Carrying messages through their handlers: commit once per effect.

Theory of operation
===================
A `Step` changes documents and may have effects in the world.  `Flow.perform` runs the function that makes the
first step; when *fused*, the messages of a step go straight to their handlers, whose steps join the chain, until
nothing follows without an effect in the world.  Then everything is committed, with the log rows, and only then
do the effects run.  Not fused (*stepwise*), each step is committed by itself and its messages come back through
the log; the handlers are the same.

* A handler sees the chain's own uncommitted documents through `Documents`.
* A commit that finds another version than expected runs the whole chain again on fresh documents, so handlers
  may run more than once per message, but only committed steps have effects.
* What a handler did to an index (a place in the admission queue) is taken back by its step's `undo` when the
  chain is not committed.
* Effects are lost when the process dies after the commit.  Each has a document whose ``due_at`` brings it back.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtape.application.announcing import Announcer
from runtape.domain.copying import replace
from runtape.domain.events import ExecutionEvent, Message
from runtape.domain.execution import Execution, evolve
from runtape.domain.ids import EventId, ExecutionId
from runtape.domain.saga import Saga
from runtape.ports.errors import Transient, VersionConflict
from runtape.ports.stores import Change, Durability, ExecutionStore, SagaStore, UnitOfWork

CONFLICT_RETRIES = 20
"""How often a chain is run again.  Each conflict means that somebody else made progress."""

RESTART_PAUSE_S = 0.5

Effect = Callable[[], Coroutine[object, object, None]]


@dataclass(frozen=True, slots=True)
class Step:
    """What a handler decided.

    `effects` run after the commit, each as a task of its own and at least once: they must be idempotent.
    `undo` runs instead when the step is not committed.
    """

    changes: tuple[Change, ...] = ()
    effects: tuple[Effect, ...] = ()
    undo: Effect | None = None


NOTHING = Step()


class Documents:
    """The documents as a chain sees them: its own changes laid over what is stored."""

    def __init__(self, executions: ExecutionStore, sagas: SagaStore) -> None:
        self._execution_store = executions
        self._saga_store = sagas
        self._executions: dict[ExecutionId, Execution] = {}
        self._sagas: dict[ExecutionId, Saga] = {}
        self._made: set[ExecutionId] = set()

    async def execution(self, execution_id: ExecutionId) -> Execution | None:
        """Return the execution, None when there is none."""
        return self._executions.get(execution_id) or await self._execution_store.get(execution_id)

    async def saga(self, execution_id: ExecutionId) -> Saga | None:
        """Return the saga, None when there is none."""
        if execution_id in self._made:  # an execution that this chain makes has no saga but the chain's own
            return self._sagas.get(execution_id)
        return self._sagas.get(execution_id) or await self._saga_store.get(execution_id)

    def put(self, change: Change) -> None:
        """Lay `change` over what is stored."""
        if isinstance(change.document, Execution):
            self._executions[change.document.id] = change.document
            if change.expected_version == 0:
                self._made.add(change.document.id)
        else:
            self._sagas[change.document.execution_id] = change.document


class Handler(Protocol):
    """One consumer group's reaction to one type of message."""

    async def __call__(self, message: Message, documents: Documents, /) -> Step:
        """Decide; `NOTHING` for a message that was handled before or is out of date.  May run again."""
        ...


@dataclass(frozen=True, slots=True)
class Subscription:
    """A consumer group's handler for one type of message."""

    group: str
    handler: Handler


Subscriptions = Mapping[str, Sequence[Subscription]]
"""The handlers of each message type, by its name, in the order in which a fused chain calls them."""


def execution_change(
    execution: Execution, messages: Sequence[Message], durability: Durability = Durability.POWER
) -> Change:
    """Return the change that applies the events among `messages` to `execution` and publishes all of them."""
    document = execution
    for message in messages:
        if isinstance(message, ExecutionEvent):
            document = evolve(document, message)
    return Change(
        document=document, expected_version=execution.version, messages=tuple(messages), durability=durability
    )


class Tasks:
    """Background tasks by name: held while they run, cancelled together, and their failures told."""

    def __init__(self, on_failure: Callable[[str, BaseException], None]) -> None:
        self._tasks: dict[asyncio.Task[None], None] = {}  # in the order in which they were spawned
        self._on_failure = on_failure

    def spawn(self, coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Run `coroutine` until it ends or `close` is called."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def keep(self, run: Callable[[], Coroutine[object, object, None]], name: str) -> asyncio.Task[None]:
        """Run `run`, which is meant to go on until it is cancelled, and start it again whenever it ends."""

        async def again() -> None:
            while True:
                try:
                    await run()
                except Exception as error:  # the loop's edge: without this task the service only seems to live
                    self._on_failure(name, error)
                await asyncio.sleep(RESTART_PAUSE_S)

        return self.spawn(again(), name)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(task.get_name(), error)

    async def close(self) -> None:
        """Cancel what runs, and what that starts while it ends, and wait for all of it."""
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class _Chain:
    documents: Documents
    changes: list[Change] = field(default_factory=list[Change])
    effects: list[Effect] = field(default_factory=list[Effect])
    undo: list[Effect] = field(default_factory=list[Effect])

    def add(self, step: Step, cause: EventId | None) -> tuple[Message, ...]:
        """Take over `step`, a reaction to `cause`, and return its messages."""
        told: tuple[Message, ...] = ()
        for change in step.changes:
            self.documents.put(change)
            if change.messages:
                correlation = change.document.correlation
                messages = tuple(message.caused(correlation, cause) for message in change.messages)
                change = replace(change, messages=messages)
                told += messages
            self.changes.append(change)
        self.effects += step.effects
        if step.undo is not None:
            self.undo.append(step.undo)
        return told


class Flow:
    """Runs chains of steps; see the theory of operation above."""

    def __init__(
        self,
        *,
        unit_of_work: UnitOfWork,
        executions: ExecutionStore,
        sagas: SagaStore,
        announcer: Announcer,
        tasks: Tasks,
        fused: bool,
    ) -> None:
        self._unit_of_work = unit_of_work
        self._executions = executions
        self._sagas = sagas
        self._announcer = announcer
        self._tasks = tasks
        self._fused = fused
        self._subscriptions: Subscriptions = {}
        self._handled_by: frozenset[str] = frozenset()
        """The groups that have acted on all messages of a chain once it is committed."""

    def subscribe(self, subscriptions: Subscriptions) -> None:
        """Set the handlers that run in this process; called once, before the first step."""
        self._subscriptions = subscriptions
        if self._fused:
            # Also those that have no handler for a message, so that the log does not hand it to them in vain.
            self._handled_by = frozenset(each.group for handlers in subscriptions.values() for each in handlers)

    async def perform(self, first: Callable[[Documents], Awaitable[Step]], cause: EventId | None = None) -> Step:
        """Carry out the step that `first` makes, and return it once it is committed.

        `cause` is the message that it reacts to, if it does.  `first` runs again on fresh documents after a version
        conflict.  Raises: what it raised; Transient.
        """
        for _ in range(CONFLICT_RETRIES):
            chain = _Chain(Documents(self._executions, self._sagas))
            try:
                step = await first(chain.documents)
                told = chain.add(step, cause)
                if self._fused:
                    await self._follow(chain, told)
                if chain.changes:
                    await self._unit_of_work.commit(chain.changes, self._handled_by)
            except VersionConflict:
                await _undo(chain)
                continue
            except BaseException:
                await _undo(chain)
                raise
            self._announcer.announce(chain.changes)
            for effect in chain.effects:
                self.soon(effect)
            return step
        raise Transient("the document changed too often to be written", retry_after_s=0.5)

    def soon(self, effect: Effect) -> None:
        """Run `effect` as a task of its own."""
        self._tasks.spawn(effect(), "effect")

    async def handle(self, handler: Handler, message: Message) -> None:
        """Carry out what `handler` decides about a message from the log."""
        await self.perform(lambda documents: handler(message, documents), message.id)

    async def _follow(self, chain: _Chain, told: Sequence[Message]) -> None:
        pending = deque(told)
        while pending:
            message = pending.popleft()
            for subscription in self._subscriptions.get(message.type, ()):
                step = await subscription.handler(message, chain.documents)
                pending.extend(chain.add(step, message.id))


async def _undo(chain: _Chain) -> None:
    for undo in reversed(chain.undo):
        await undo()
