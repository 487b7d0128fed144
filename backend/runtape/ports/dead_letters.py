"""Where dead letters are kept, in lines by consumer group and key, with the policies of their retries."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from runtape.domain.dead_letter import DeadLetter, FailureKind, LetterStatus, RetryPolicy
from runtape.domain.ids import DeadLetterId
from runtape.ports.stores import NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Which letters are meant: all conditions hold together; times bound ``first_at``, the upper one open."""

    ids: frozenset[DeadLetterId] | None = None
    statuses: frozenset[LetterStatus] | None = None
    topic: str | None = None
    type: str | None = None
    group: str | None = None
    key: str | None = None
    failure: FailureKind | None = None
    stack_digest: str | None = None
    from_: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterCount:
    """How many letters have all of this in common, and when the oldest and the newest of them died."""

    topic: str
    group: str
    type: str
    status: LetterStatus
    count: int
    oldest_at: datetime
    newest_at: datetime


class DeadLetterTopic(Protocol):
    """Where a copy of each dead letter goes, for who watches the log and not the store."""

    async def copy(self, letter: DeadLetter) -> None:
        """Append a copy of `letter`, which is in the store; return once that is durable.

        Called again for a letter whose message comes again.  Raises: Transient.
        """
        ...


class DeadLetterStore(Protocol):
    """Dead letters; each write is durable when it returns.  Every method raises Transient."""

    async def append(self, letter: DeadLetter) -> DeadLetter:
        """Put `letter` at the end of its line and return it with its id; ids are ordered as letters are appended.

        Idempotent: a letter of the same group and place in the log, or an open one of the same group, key and
        message id (a message that is published twice is the same message), is returned as it stands instead.  One that
        is only parked and finds its line empty is scheduled for its ``first_at``: nothing before it would ever do that.
        """
        ...

    async def get(self, letter_id: DeadLetterId) -> DeadLetter | None:
        """Return the letter, None when there is none."""
        ...

    async def first(self, group: str, key: str) -> DeadLetter | None:
        """Return the first letter of a line, None when the key is not parked."""
        ...

    async def replace(self, before: DeadLetter, after: DeadLetter) -> bool:
        """Store `after` unless the letter was retried, scheduled or resolved since it was `before`; say whether."""
        ...

    async def resolve(
        self, letter_id: DeadLetterId, status: LetterStatus, at: datetime, by: str | None, reason: str | None
    ) -> int | None:
        """Close an open letter and return how many are left in its line; None when it was not open.

        In the same write the letter that is first now is scheduled unless it has been tried before: for its
        ``first_at``, which has passed, so that it is due at once whatever the clocks of other processes say.
        """
        ...

    def parked(self) -> AsyncIterator[tuple[str, str]]:
        """Yield group and key of every line, once each."""
        ...

    async def due(
        self, groups: Collection[str], before: datetime, limit: int, beyond: datetime = NEVER
    ) -> Sequence[DeadLetter]:
        """Return scheduled letters of `groups` whose time has come, the longest overdue first.

        After them come those whose ``last_at`` is later than `beyond`, which no clock that is right can have written.
        What comes next was reckoned from there, and a policy may put it off by days: the time of the next retry alone
        does not tell the two apart.
        """
        ...

    async def next_retry_at(self, groups: Collection[str], after: datetime) -> datetime | None:
        """Return when the next letter of `groups` comes due, later than `after`."""
        ...

    async def list(self, where: DeadLetterFilter, limit: int, before: DeadLetterId | None) -> Sequence[DeadLetter]:
        """Return up to `limit` matching letters, newest first, beginning after `before`."""
        ...

    async def oldest(self, where: DeadLetterFilter, limit: int) -> Sequence[DeadLetter]:
        """Return up to `limit` matching letters, in the order in which they were appended."""
        ...

    async def counts(self) -> Sequence[DeadLetterCount]:
        """Return how many letters there are, by topic, group, type and status."""
        ...

    async def policy(self, topic: str) -> RetryPolicy | None:
        """Return the policy that was set for `topic`, None when none was."""
        ...

    async def put_policy(self, topic: str, policy: RetryPolicy) -> None:
        """Set the policy of `topic`."""
        ...

    async def prune(self, before: datetime, limit: int) -> int:
        """Remove up to `limit` letters that were resolved before that, the oldest first; return how many.

        An open letter is never removed: it is all that is left of its message.
        """
        ...
