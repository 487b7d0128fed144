"""Documents, blobs and the tape at rest.

A document is changed by one conditional write, together with the messages that the change leads to (its
outbox): `Change`.  No transaction spans documents, so none is promised; `UnitOfWork.commit` may carry several
changes and applies them in order, each at most once.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Protocol

from runtape.domain.events import Message, Priority
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId, ProjectId, UserId
from runtape.domain.notification import Notification
from runtape.domain.outcome import Status
from runtape.domain.saga import Saga, SagaState
from runtape.domain.tape import Record, Stream
from runtape.ports.events import Archival
from runtape.ports.pod_runtime import PodKey

NEVER = datetime.max.replace(tzinfo=UTC)


class Durability(Enum):
    """What a write survives once it returned."""

    PROCESS = "the death of any process"
    POWER = "the loss of power as well"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One conditional write: `document` replaces the version `expected_version` of it (0: there is none).

    `notifications` are what its owner is told of what has happened.
    """

    document: Execution | Saga
    expected_version: int
    messages: tuple[Message, ...]
    durability: Durability
    notifications: tuple[Notification, ...] = ()


def folded(changes: Sequence[Change]) -> list[Change]:
    """Return `changes` with the successive ones of one document made into one write, in the order of the first."""
    found: dict[str, Change] = {}
    for change in changes:
        document = change.document
        name = "execution:" + document.id if isinstance(document, Execution) else "saga:" + document.execution_id
        earlier = found.get(name)
        if earlier is None:
            found[name] = change
        else:
            durable = Durability.POWER in (earlier.durability, change.durability)
            found[name] = Change(
                document=document,
                expected_version=earlier.expected_version,
                messages=earlier.messages + change.messages,
                durability=Durability.POWER if durable else Durability.PROCESS,
                notifications=earlier.notifications + change.notifications,
            )
    return list(found.values())


class UnitOfWork(Protocol):
    """Commits changes with their messages."""

    async def commit(self, changes: Sequence[Change], handled_by: frozenset[str] = frozenset()) -> None:
        """Apply `changes` in order, as durably as the strictest of them asks; return when that is so.

        Each message is published at least once after its change is stored, in order per execution, except to
        the consumer groups `handled_by`: they have acted on all of these messages in these very changes.
        An adapter that can applies all changes or none; else a failure leaves those before it applied.
        A change's notifications are stored with it, or right before it where no write spans the two; one whose id is
        there already is left as it is.
        Raises: VersionConflict; IdempotencyKeyTaken, when a new execution's key is in use; Transient.
        """
        ...


class IdempotencyKeyTaken(Exception):
    """Another execution of the same user holds the idempotency key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionFilter:
    """Which executions to list: all conditions hold together; times bound ``created_at``, the upper one open."""

    user_id: UserId | None = None
    project_id: ProjectId | None = None
    status: Status | None = None
    lang: str | None = None
    priority: Priority | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None


class ExecutionStore(Protocol):
    """Execution documents."""

    async def get(self, execution_id: ExecutionId) -> Execution | None:
        """Return the newest committed document."""
        ...

    async def by_idempotency_key(self, user_id: UserId, key: str) -> Execution | None:
        """Return the execution that holds `key` for that user, also when the key has expired."""
        ...

    async def release_idempotency_key(self, execution: Execution) -> None:
        """Take the key from `execution` if it still holds it; the version stays."""
        ...

    async def extend_lease(self, keys: Sequence[PodKey], owner: str, expires_at: datetime) -> Sequence[PodKey]:
        """Move the expiry of the leases that `owner` holds on `keys`; return those that were held.

        The version stays: a lease's expiry is no event.
        """
        ...

    async def due(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Sequence[Execution]:
        """Return unfinished executions whose ``due_at`` has passed, the longest overdue first.

        After them come those that are due later than `beyond`, which no clock that is right can have written.
        """
        ...

    def unfinished(self) -> AsyncIterator[Execution]:
        """Yield every document with a ``due_at``, in that order; one that is changed meanwhile may come twice."""
        ...

    async def defer(self, execution: Execution, due_at: datetime) -> None:
        """Move ``due_at`` of an unfinished document that needs nothing just now; the version stays.

        No effect when the stored document has another version than `execution`.
        """
        ...

    async def list(self, where: ExecutionFilter, limit: int, before: ExecutionId | None) -> Sequence[Execution]:
        """Return up to `limit` matching executions, newest first, beginning after `before`."""
        ...

    async def delete(self, execution_id: ExecutionId, archival: Archival) -> None:
        """Remove the execution with its saga, tape and notifications, and its claim on blobs, and archive its events.

        Idempotent.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaFilter:
    """Which sagas to list: all conditions hold together."""

    user_id: UserId | None = None
    execution_id: ExecutionId | None = None
    state: SagaState | None = None


class SagaStore(Protocol):
    """Saga documents."""

    async def get(self, execution_id: ExecutionId) -> Saga | None:
        """Return the newest committed document."""
        ...

    def unfinished(self) -> AsyncIterator[Saga]:
        """Yield every saga that still waits or holds a place, oldest first."""
        ...

    async def due(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Sequence[Saga]:
        """Return sagas whose ``due_at`` has passed, the longest overdue first, then those due beyond `beyond`."""
        ...

    async def list(self, where: SagaFilter, limit: int, before: ExecutionId | None) -> Sequence[Saga]:
        """Return up to `limit` matching sagas of executions that exist, newest first, beginning after `before`."""
        ...


class BlobStore(Protocol):
    """Immutable bytes under the SHA-256 of their content: sources, and artifacts."""

    async def put(self, data: bytes) -> str:
        """Store `data` and return its digest in hex; idempotent.  Durable with the next durable commit."""
        ...

    async def get(self, sha256: str) -> bytes | None:
        """Return the bytes, or None when there are none under that digest."""
        ...

    async def ready(self) -> None:
        """Return when the store answers.  Raises: Transient."""
        ...

    async def sweep(self, created_before: datetime) -> int:
        """Remove blobs older than that which no document refers to; return how many."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeSummary:
    """What the tape of one attempt holds so far.

    ``stdout_head`` and ``stderr_head`` are the first `HEAD_BYTES` bytes of each stream at most.
    """

    last_seq: int
    stdout_bytes: int
    stderr_bytes: int
    stdout_sha256: str
    stderr_sha256: str
    stdout_head: bytes
    stderr_head: bytes
    truncated: bool


class TapeSealed(Exception):
    """The tape takes no more records: its attempt was taken for lost."""


HEAD_BYTES = 65_536
"""How much of each stream a result carries inline."""


class TapeStore(Protocol):
    """Output records, by attempt."""

    def open_tape(self, key: PodKey) -> None:
        """Say that this process is going to append to the attempt's tape."""
        ...

    async def append(self, key: PodKey, records: Sequence[Record]) -> None:
        """Store `records`, which follow one another; return once they survive the death of any process.

        Idempotent by ``seq``: a record that is there already is left as it is.
        Raises: TapeSealed, and stores nothing, when a record is new and the tape was sealed; Transient.
        """
        ...

    async def read(self, key: PodKey, after_seq: int, limit_bytes: int) -> Sequence[Record]:
        """Return the records beyond `after_seq` in order: at least one if there is any, else up to the limit.

        None that a `summary` which is asked for later does not count.
        """
        ...

    def read_stream(self, key: PodKey, stream: Stream, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes `start` to `end` (exclusive) of one stream in order."""
        ...

    async def kept(self, key: PodKey) -> bool:
        """Whether any record of the attempt is there; of one that has printed, whether its tape is not pruned."""
        ...

    async def summary(self, key: PodKey) -> TapeSummary:
        """Return what the tape holds now."""
        ...

    async def seal(self, key: PodKey) -> TapeSummary:
        """Let the tape take no more records, and return what it holds: it holds that from now on.

        Whoever waits for more of it is told that nobody writes it.  Idempotent.
        """
        ...

    async def reached(self, key: PodKey, seq: int) -> bool:
        """Return True once the tape holds every record up to `seq`, False when nobody is writing it any more."""
        ...

    async def close_tape(self, key: PodKey) -> None:
        """Say that this process appends no more to the attempt's tape, and forget what was kept for it."""
        ...
