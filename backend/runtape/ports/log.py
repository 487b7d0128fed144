"""The event log: messages by topic, in order per execution, read by consumer groups."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtape.domain.events import Message


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message for one group; redelivered after a restart unless it was acknowledged."""

    message: Message
    offset: int


class EventLog(Protocol):
    """Reads the log.  Messages get into it with the change that caused them (`UnitOfWork.commit`)."""

    def consume(self, group: str, topics: Sequence[str]) -> AsyncIterator[Delivery]:
        """Yield the messages of `topics` that `group` has not acknowledged, oldest first, then live.

        At-least-once, in order per execution.  One consumer per group and process.
        """
        ...

    def acknowledge(self, group: str, delivery: Delivery) -> None:
        """Note that `group` is done with it; may be called in any order, and is durable some time later."""
        ...

    async def ready(self) -> None:
        """Return when the log can be written and read.  Raises: Transient."""
        ...
