"""What documents have yet to tell: for stores that cannot write a document and the log in one step.

A change is stored with its messages in the document itself, in one conditional write (`UnitOfWork.commit`); a relay
carries them to the log afterwards (`runtape.application.relaying`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from runtape.domain.events import Message
from runtape.domain.ids import EventId, ExecutionId
from runtape.ports.stores import Change


class DocumentKind(StrEnum):
    """The kinds of documents that have an outbox."""

    EXECUTION = "execution"
    SAGA = "saga"


@dataclass(frozen=True, slots=True)
class DocumentKey:
    """One document: an execution, or its saga, which has the same id."""

    kind: DocumentKind
    id: ExecutionId


@dataclass(frozen=True, slots=True)
class Waiting:
    """A document that has something to tell; `mark` is another one once somebody has taken it up."""

    document: DocumentKey
    mark: int


class DocumentWriter(Protocol):
    """Writes documents one by one, each with its messages in its outbox."""

    async def commit(
        self, changes: Sequence[Change], handled_by: frozenset[str] = frozenset()
    ) -> Collection[DocumentKey]:
        """Store `changes` as `UnitOfWork` does.

        Returns those of the documents with messages that had something to tell before: what these are to publish comes
        after that.
        """
        ...


class Outbox(Protocol):
    """The outboxes of all documents."""

    async def read(self, document: DocumentKey) -> Sequence[Message]:
        """Return what the document has yet to tell, in the order of its changes; nothing when there is none.

        Raises: Transient.
        """
        ...

    async def remove(self, document: DocumentKey, published: Collection[EventId]) -> None:
        """Take the messages with exactly these ids out; idempotent, and the document's version stays.

        Raises: Transient.
        """
        ...

    async def unpublished(self, limit: int) -> Sequence[Waiting]:
        """Return up to `limit` documents that have something to tell, those that have waited longest first.

        Raises: Transient.
        """
        ...

    async def take_up(self, waiting: Waiting) -> bool:
        """Return whether the caller is the one who publishes what was found waiting; one of several is.

        Raises: Transient.
        """
        ...


class Publisher(Protocol):
    """Writes to the log."""

    async def publish(self, message: Message) -> None:
        """Append `message` to its topic, under its execution's key; return once that is durable.

        A message may be appended although this raises.  Raises: Transient.
        """
        ...
