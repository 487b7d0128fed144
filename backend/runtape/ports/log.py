"""The event log: messages by topic, in order per execution, read by consumer groups."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtape.domain.dead_letter import RawMessage
from runtape.domain.events import Message
from runtape.domain.replay import ReplaySessionId


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message for one group; redelivered after a restart unless it was acknowledged.

    ``replayed_by`` names the session that has published it again; the message is as it was, and so is its id.
    """

    message: Message
    offset: int
    replayed_by: ReplaySessionId | None = None


@dataclass(frozen=True, slots=True)
class UndecodableDelivery:
    """What stands in the place of a message and is none, for the reason `cause`; delivered like one."""

    raw: RawMessage
    cause: str

    @property
    def offset(self) -> int:
        """Where it stands."""
        return self.raw.offset


class EventLog(Protocol):
    """Reads the log.  Messages get into it with the change that caused them (`UnitOfWork.commit`)."""

    def consume(self, group: str, topics: Sequence[str]) -> AsyncGenerator[Delivery | UndecodableDelivery, None]:
        """Yield the messages of `topics` that `group` has not acknowledged, oldest first, then live.

        At-least-once, in order per execution and topic.  One consumer per group and process.  What cannot be decoded is
        delivered all the same, in its place, to every group of its topic: nobody can say whom it was for.  The caller
        closes it.
        """
        ...

    def acknowledge(self, group: str, delivery: Delivery | UndecodableDelivery) -> None:
        """Note that `group` is done with it; may be called in any order, and is durable some time later."""
        ...

    async def raw(self, delivery: Delivery) -> RawMessage | None:
        """Return the message as the log holds it; None when it was deleted there meanwhile.  Raises: Transient."""
        ...

    async def decode(self, raw: RawMessage) -> Message:
        """Return the message that `raw` holds.  Raises: Poison; Transient."""
        ...

    async def ready(self) -> None:
        """Return when the log can be written and read.  Raises: Transient."""
        ...
