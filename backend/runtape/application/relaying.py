"""From the outbox of a document to the log: at once after a write, and by a sweep after a crash.

Theory of operation
===================
A relay publishes the outbox of one document in order and stops at the first failure, so the log never has a message
before the one that its document told earlier.  It removes exactly what it has published, and never touches the
document's version: a handler that changes the document meanwhile adds to the outbox and notices nothing.

Whoever has just written a document knows what it has to tell, unless there was something to tell before: only then is
the outbox read.

A message can be published and not removed, when the relay dies in between or two relays read the same outbox; then it
is published again, perhaps after later ones of its document.  Consumers are idempotent for that reason.  Lost is
nothing: what was written is in the outbox until it is in the log.

The sweep takes a document that it finds waiting twice in a row.  One that was just written is being published by
whoever wrote it, and no clock has to tell how long ago that was.  Of several processes that sweep one takes it up.
"""

import asyncio
from collections.abc import Sequence

import structlog

from runtape.application.flow import Tasks
from runtape.domain.events import Message
from runtape.domain.execution import Execution
from runtape.domain.ids import EventId
from runtape.domain.saga import Saga
from runtape.ports.errors import Transient
from runtape.ports.outbox import DocumentKey, DocumentKind, DocumentWriter, Outbox, Publisher, Waiting
from runtape.ports.stores import Change, folded

log = structlog.get_logger(__name__)

SWEEP_INTERVAL_S = 5.0
PAGE = 200


class Relay:
    """Carries what this process writes to the log, and what others have left behind."""

    def __init__(self, *, outbox: Outbox, publisher: Publisher, tasks: Tasks) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._tasks = tasks
        self._busy: dict[DocumentKey, bool] = {}
        """The documents that are being published now; True when one was written again since it was read."""
        self._waited: frozenset[Waiting] = frozenset()

    def soon(self, document: DocumentKey, messages: Sequence[Message] | None = None) -> None:
        """Publish `messages`, all that the document has to tell, in the background; None: look what it is.

        What fails is left to the sweep.
        """
        if document in self._busy:
            self._busy[document] = True
            return
        self._busy[document] = False
        self._tasks.spawn(self._drain(document, messages), "relay")

    async def _drain(self, document: DocumentKey, messages: Sequence[Message] | None) -> None:
        try:
            again = True
            while again:
                self._busy[document] = False
                await self.publish(document, messages)
                messages = None
                again = self._busy[document]
        except Transient as error:
            log.warning("outbox.not_published", document=document.kind, error=str(error))
        finally:
            del self._busy[document]

    async def publish(self, document: DocumentKey, messages: Sequence[Message] | None = None) -> None:
        """Publish `messages`, all that the document has to tell, or look what it is, up to the first failure.

        Raises: Transient.
        """
        published: list[EventId] = []
        try:
            for message in await self._outbox.read(document) if messages is None else messages:
                await self._publisher.publish(message)
                published.append(message.id)
        finally:
            if published:
                await self._outbox.remove(document, published)

    async def sweep(self) -> None:
        """Publish for those documents that were waiting at the sweep before as well.  Raises: Transient."""
        found = await self._outbox.unpublished(PAGE)
        for waiting in found:
            left = waiting in self._waited and waiting.document not in self._busy
            if left and await self._outbox.take_up(waiting):
                self.soon(waiting.document)
        self._waited = frozenset(found)

    async def run(self) -> None:
        """Sweep from time to time; runs until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                await self.sweep()
            except Transient as error:
                log.warning("outbox.not_swept", error=str(error))


class RelayingUnitOfWork:
    """`UnitOfWork` over one that stores messages in their documents: what it stored is published at once.

    Messages are published to the groups in `handled_by` all the same: without a commit over several documents nobody
    has acted on a message before it was told.
    """

    def __init__(self, inner: DocumentWriter, relay: Relay) -> None:
        self._inner = inner
        self._relay = relay

    async def commit(self, changes: Sequence[Change], handled_by: frozenset[str] = frozenset()) -> None:
        """Store `changes` and publish their messages in the background."""
        behind = await self._inner.commit(changes, handled_by)
        for change in folded(changes):
            if change.messages:
                document = key_of(change.document)
                self._relay.soon(document, None if document in behind else change.messages)


def key_of(document: Execution | Saga) -> DocumentKey:
    """Return the key under which `document` has its outbox."""
    if isinstance(document, Execution):
        return DocumentKey(DocumentKind.EXECUTION, document.id)
    return DocumentKey(DocumentKind.SAGA, document.execution_id)
