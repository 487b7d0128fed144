"""Telling those who watch, while it happens.  A nudge, never the truth: the documents and the tape are that."""

from dataclasses import dataclass
from typing import Protocol

from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.replay import ReplaySessionId


@dataclass(frozen=True, slots=True)
class OutputNudge:
    """Records that are now on the tape, `first_seq` to `last_seq`, each encoded once for all who read it."""

    attempt: int
    first_seq: int
    last_seq: int
    bodies: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class LifecycleNudge:
    """Events that are now part of the document, which comes along so that nobody has to read it again.

    ``bodies`` are the encoded frames of the last events of `execution`, whose versions end with its own.
    """

    execution: Execution
    bodies: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class QueueNudge:
    """The execution has another place in the admission queue."""


@dataclass(frozen=True, slots=True)
class PodNudge:
    """How the execution's program has come to its pod, encoded; told while it happens, and stored nowhere."""

    body: bytes


@dataclass(frozen=True, slots=True)
class SessionNudge:
    """The replay session has come further."""


Nudge = OutputNudge | LifecycleNudge | QueueNudge | PodNudge | SessionNudge
Watched = ExecutionId | ReplaySessionId


class FeedClosed(Exception):
    """The service is shutting down: no more nudges will come."""


class SubscriptionClosed(Exception):
    """The subscription was closed by its reader."""


class Subscription(Protocol):
    """One reader of one execution or session; bounded, so that a slow reader costs nobody else."""

    async def next(self, timeout_s: float) -> Nudge | None:
        """Return the next nudge; None after `timeout_s`, or at once when some were lost since the last call.

        After None the reader looks at the document and the tape.  Raises: FeedClosed, SubscriptionClosed.
        """
        ...

    def pending(self) -> Nudge | None:
        """Return a nudge that waits already; None when there is none or some were lost."""
        ...

    def close(self) -> None:
        """End the subscription and wake its reader; idempotent."""
        ...


class LiveFeed(Protocol):
    """Fan-out of nudges by execution or replay session."""

    def publish(self, watched_id: Watched, nudge: Nudge) -> None:
        """Tell the present subscribers, in publishing order; never waits and never fails."""
        ...

    def watched(self, watched_id: Watched) -> bool:
        """Whether anybody may be subscribed; False saves the publisher the work of encoding."""
        ...

    def subscribe(self, watched_id: Watched) -> Subscription:
        """Subscribe from now on; the caller closes it."""
        ...

    def close(self) -> None:
        """Wake every reader with `FeedClosed`; later subscriptions are closed from the start.  Idempotent."""
        ...
