"""A document server as the cluster profile has one: each write changes one document, and its outbox with it."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from runtape.application.relaying import key_of
from runtape.domain.events import Message
from runtape.domain.execution import LEASE_GRACE, Execution
from runtape.domain.ids import EventId, ExecutionId, NotificationId, UserId
from runtape.domain.notification import Notification
from runtape.domain.outcome import Status
from runtape.domain.saga import Saga, SagaStep
from runtape.ports.errors import VersionConflict
from runtape.ports.outbox import DocumentKey, DocumentKind, Waiting
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import NEVER, Change, ExecutionFilter, IdempotencyKeyTaken, folded
from tests.simulation.network import Remote

Watch = Callable[[Execution], None]


@dataclass(slots=True)
class _Stored:
    document: Any
    outbox: list[Message] = field(default_factory=list[Message])
    taken_up: int = 0


class DocumentServer:
    """Executions and sagas; its methods are the stores' and the outbox's, as plain functions."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.executions: dict[ExecutionId, _Stored] = {}
        self.sagas: dict[ExecutionId, _Stored] = {}
        self.notifications: dict[NotificationId, Notification] = {}

    def write(self, change: Change) -> bool:
        """Carry out one conditional write; return whether the document had something to tell before.

        Raises: VersionConflict, IdempotencyKeyTaken.
        """
        if isinstance(change.document, Execution):
            return self._write_execution(change.document, change)
        return self._write(self.sagas, change.document.execution_id, change)

    def _write_execution(self, execution: Execution, change: Change) -> bool:
        if change.expected_version == 0:
            key = execution.idempotency
            if key is not None and self.by_idempotency_key(execution.user_id, key.key) is not None:
                raise IdempotencyKeyTaken(key.key)
        else:
            stored = self.get(execution.id)
            if stored is not None and stored.version == change.expected_version:
                change = replace(change, document=_over(execution, stored))
        behind = self._write(self.executions, execution.id, change)
        self._watch(self.executions[execution.id].document)
        return behind

    def _write(self, where: dict[ExecutionId, _Stored], document_id: ExecutionId, change: Change) -> bool:
        stored = where.get(document_id)
        if (stored.document.version if stored else 0) != change.expected_version:
            raise VersionConflict(f"{document_id} is not at version {change.expected_version}")
        if stored is None:
            stored = where[document_id] = _Stored(change.document)
        stored.document = change.document
        behind = bool(stored.outbox)
        stored.outbox += change.messages
        return behind

    def tell(self, notifications: Sequence[Notification]) -> None:
        """Store those of `notifications` that are not there."""
        for each in notifications:
            self.notifications.setdefault(each.id, each)

    # Executions.

    def get(self, execution_id: ExecutionId) -> Execution | None:
        stored = self.executions.get(execution_id)
        return stored.document if stored else None

    def by_idempotency_key(self, user_id: UserId, key: str) -> Execution | None:
        for stored in self.executions.values():
            found: Execution = stored.document
            if found.user_id == user_id and found.idempotency is not None and found.idempotency.key == key:
                return found
        return None

    def release_idempotency_key(self, execution: Execution) -> None:
        stored = self.executions.get(execution.id)
        if stored is not None and stored.document.idempotency == execution.idempotency:
            stored.document = replace(stored.document, idempotency=None)

    def extend_lease(self, keys: Sequence[PodKey], owner: str, expires_at: datetime) -> Sequence[PodKey]:
        held: list[PodKey] = []
        for key in keys:
            execution = self.get(key.execution_id)
            if execution is None or execution.attempt != key.attempt or execution.lease is None:
                continue
            if execution.lease.owner == owner:
                lease = replace(execution.lease, expires_at=expires_at)
                self.executions[execution.id].document = replace(
                    execution, lease=lease, due_at=expires_at + LEASE_GRACE
                )
                held.append(key)
        return held

    def due(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Sequence[Execution]:
        found = [each for each in self._unfinished() if each.due_at and (each.due_at <= before or each.due_at > beyond)]
        return found[:limit]

    def page(self, after: int, size: int) -> Sequence[Execution]:
        """Return a page of the unfinished documents."""
        return self._unfinished()[after : after + size]

    def _unfinished(self) -> list[Execution]:
        found: list[Execution] = [stored.document for stored in self.executions.values()]
        return sorted((each for each in found if each.due_at is not None), key=lambda each: (each.due_at, each.id))

    def defer(self, execution: Execution, due_at: datetime) -> None:
        stored = self.executions.get(execution.id)
        if stored is not None and stored.document.version == execution.version and stored.document.due_at is not None:
            stored.document = replace(stored.document, due_at=due_at)

    def list(self, where: ExecutionFilter, limit: int, before: ExecutionId | None) -> Sequence[Execution]:
        found: list[Execution] = [stored.document for stored in self.executions.values()]
        return sorted(found, key=lambda each: each.id, reverse=True)[:limit]

    # Sagas.

    def saga(self, execution_id: ExecutionId) -> Saga | None:
        stored = self.sagas.get(execution_id)
        return stored.document if stored else None

    def unfinished_sagas(self) -> Sequence[Saga]:
        found: list[Saga] = [stored.document for stored in self.sagas.values()]
        return [saga for saga in found if saga.step is not SagaStep.DONE]

    def due_sagas(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Sequence[Saga]:
        found = [
            saga for saga in self.unfinished_sagas() if saga.due_at and (saga.due_at <= before or saga.due_at > beyond)
        ]
        return sorted(found, key=lambda saga: (saga.due_at, saga.execution_id))[:limit]

    # The outbox.

    def _of(self, key: DocumentKey) -> _Stored | None:
        return (self.executions if key.kind is DocumentKind.EXECUTION else self.sagas).get(key.id)

    def read(self, document: DocumentKey) -> Sequence[Message]:
        stored = self._of(document)
        return tuple(stored.outbox) if stored else ()

    def remove(self, document: DocumentKey, published: Collection[EventId]) -> None:
        stored = self._of(document)
        if stored is not None:
            stored.outbox = [message for message in stored.outbox if message.id not in published]

    def unpublished(self, limit: int) -> Sequence[Waiting]:
        found = [
            Waiting(DocumentKey(kind, document_id), stored.taken_up)
            for kind, where in ((DocumentKind.EXECUTION, self.executions), (DocumentKind.SAGA, self.sagas))
            for document_id, stored in where.items()
            if stored.outbox
        ]
        return found[:limit]

    def take_up(self, waiting: Waiting) -> bool:
        stored = self._of(waiting.document)
        if stored is None or not stored.outbox or stored.taken_up != waiting.mark:
            return False
        stored.taken_up += 1
        return True


def _over(execution: Execution, stored: Execution) -> Execution:
    """Return `execution` with what moved alone in `stored`: a released key, and the later of a live lease's ends."""
    if stored.idempotency is None and execution.idempotency is not None:
        execution = replace(execution, idempotency=None)
    lease, other = execution.lease, stored.lease
    if Status.RUNNING is not stored.status or lease is None or other is None or lease.expires_at >= other.expires_at:
        return execution
    return replace(execution, lease=other, due_at=stored.due_at)


class RemoteExecutions(Remote):
    """`ExecutionStore` over a document server."""

    async def unfinished(self) -> AsyncIterator[Execution]:
        """Yield page by page, so that documents change in between."""
        after = 0
        while page := await self._call(f"{self._name}.page", self._server.page, (after, 3), {}):
            for execution in page:
                yield execution
            after += len(page)


class RemoteSagas(Remote):
    """`SagaStore` over a document server, whose methods have other names."""

    def get(self, execution_id: ExecutionId) -> Any:
        """Return the newest committed document."""
        return self._call("sagas.get", self._server.saga, (execution_id,), {})

    async def unfinished(self) -> AsyncIterator[Saga]:
        """Yield what is unfinished when it is asked for."""
        for saga in await self._call("sagas.unfinished", self._server.unfinished_sagas, (), {}):
            yield saga

    def due(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Any:
        """Return sagas whose time has come."""
        return self._call("sagas.due", self._server.due_sagas, (before, limit, beyond), {})


class RemoteUnitOfWork(Remote):
    """`UnitOfWork` over a document server: one write after the other."""

    async def commit(
        self, changes: Sequence[Change], handled_by: frozenset[str] = frozenset()
    ) -> Collection[DocumentKey]:
        """Apply `changes` in order; a failure leaves those before it applied."""
        behind: list[DocumentKey] = []
        for change in folded(changes):
            if change.notifications:
                await self._call("documents.tell", self._server.tell, (change.notifications,), {})
            if await self._call("documents.write", self._server.write, (change,), {}):
                behind.append(key_of(change.document))
        return behind
