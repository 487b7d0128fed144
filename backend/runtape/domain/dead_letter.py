"""Dead letters: messages that a consumer group could not handle, and what becomes of them.

The open letters of one group and key are a *line*, in the order in which they were appended; while there is one the
key is parked for that group.  The first of a line has failed, those behind it only wait: nobody has tried them.  They
are retried from the front, so the messages of a key keep their order (docs/decisions/0015).
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from runtape.domain.events import EXECUTION_EVENTS, POD_COMMANDS
from runtape.domain.ids import DeadLetterId, EventId

NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMessage:
    """A message as the log holds it, whether or not anybody can decode it.

    ``offset`` counts within the partition.  ``headers`` has what was found of ``correlation_id``, ``traceparent``,
    ``causation_id`` and ``schema``, the fingerprint of the schema that ``body`` was written with.
    """

    topic: str
    partition: int
    offset: int
    key: str
    type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)


class FailureKind(StrEnum):
    """Why a message is dead."""

    TRANSIENT = "transient"
    """What it needs went on failing."""
    PERMANENT = "permanent"
    """What it needs will fail again."""
    POISON = "poison"
    """It cannot be decoded, or its handler breaks on it."""
    PARKED = "parked"
    """It did not fail: one before it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How the last try ended, after `attempts` tries.

    ``stack_digest`` is the same for failures that came the same way through the code; the log line that has the
    stack carries it.
    """

    kind: FailureKind
    cause: str
    stack_digest: str | None = None
    attempts: int = 0


PARKED = Failure(kind=FailureKind.PARKED, cause="an earlier message of this key is dead")


class LetterStatus(StrEnum):
    """Where a letter stands; the first two are open."""

    PENDING = "pending"
    """It waits: for those before it, or for an administrator."""
    SCHEDULED = "scheduled"
    """It is the first of its line and will be retried at ``next_retry_at``."""
    RETRIED = "retried"
    """It was handled."""
    DISCARDED = "discarded"
    """It will not be handled: somebody said so."""


OPEN = frozenset({LetterStatus.PENDING, LetterStatus.SCHEDULED})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead message of one consumer group.

    ``attempts`` counts every call of the handler, ``retries`` those since it died.  ``message_id`` is None for what
    cannot be decoded.  ``resolved_by`` is None where the schedule did it.
    """

    id: DeadLetterId
    group: str
    message: RawMessage
    message_id: EventId | None
    failure: FailureKind
    cause: str
    stack_digest: str | None
    attempts: int
    retries: int = 0
    first_at: datetime
    last_at: datetime
    status: LetterStatus
    next_retry_at: datetime | None = None
    resolved_at: datetime | None = None
    resolved_by: str | None = None
    reason: str | None = None

    @property
    def open(self) -> bool:
        """Whether it keeps its key parked."""
        return self.status in OPEN

    @property
    def at_once(self) -> bool:
        """Whether it is to be tried whatever its policy says: its turn has come, or somebody asked for it.

        It is scheduled for a time that has passed: by the clocks of all processes, also where one of them is ahead.
        """
        return self.next_retry_at is not None and self.next_retry_at <= self.last_at


class Strategy(StrEnum):
    """How the time until the next retry grows."""

    EXPONENTIAL = "exponential"
    FIXED = "fixed"
    IMMEDIATE = "immediate"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When the first letter of a line is retried by itself.

    ``exponential``: after ``base_delay_s * multiplier ** retries``, at most ``max_delay_s``; ``fixed``: after
    ``base_delay_s``; ``immediate``: at once; ``manual``: never.  At most ``max_retries`` times.  Delays vary by the
    fraction ``jitter`` up and down.
    """

    strategy: Strategy
    max_retries: int
    base_delay_s: float
    max_delay_s: float
    multiplier: float = 2.0
    jitter: float = 0.1

    def delay_s(self, retries: int, spread: float) -> float | None:
        """Return the time until the next retry after `retries` of them, None for never; `spread` lies in [0, 1)."""
        if self.strategy is Strategy.MANUAL or retries >= self.max_retries:
            return None
        if self.strategy is Strategy.IMMEDIATE:
            return 0.0
        delay_s = self.base_delay_s
        if self.strategy is Strategy.EXPONENTIAL:
            delay_s = min(delay_s * self.multiplier**retries, self.max_delay_s)
        return delay_s * (1 + self.jitter * (2 * spread - 1))


_MESSAGES = RetryPolicy(strategy=Strategy.EXPONENTIAL, max_retries=5, base_delay_s=30, max_delay_s=300)
DEFAULT_POLICY = RetryPolicy(
    strategy=Strategy.EXPONENTIAL, max_retries=4, base_delay_s=60, max_delay_s=1800, multiplier=2.5
)
DEFAULT_POLICIES: Mapping[str, RetryPolicy] = {
    EXECUTION_EVENTS: _MESSAGES,
    POD_COMMANDS: _MESSAGES,
    "pod.events.v1": RetryPolicy(
        strategy=Strategy.EXPONENTIAL, max_retries=3, base_delay_s=60, max_delay_s=600, multiplier=3
    ),
}
"""What holds for a topic until an administrator says otherwise; `DEFAULT_POLICY` for any other."""


def spread_of(*parts: object) -> float:
    """Return a number in [0, 1) that follows from `parts`.

    It spreads the retries of many letters that died together, as a random number would, and is the same each time.
    """
    return zlib.crc32(":".join(map(str, parts)).encode(errors="replace")) / 2**32


def bury(
    message: RawMessage, message_id: EventId | None, group: str, failure: Failure, policy: RetryPolicy, at: datetime
) -> DeadLetter:
    """Return the letter of a message that `group` could not handle; the store gives it its id."""
    letter = DeadLetter(
        id=DeadLetterId(""),
        group=group,
        message=message,
        message_id=message_id,
        failure=failure.kind,
        cause=failure.cause,
        stack_digest=failure.stack_digest,
        attempts=failure.attempts,
        first_at=at,
        last_at=at,
        status=LetterStatus.PENDING,
    )
    return letter if failure.kind is FailureKind.PARKED else _scheduled(letter, policy, at)


def try_again(letter: DeadLetter, policy: RetryPolicy, at: datetime) -> DeadLetter:
    """Return the letter with one more retry on its account, and the time of the next one should this one fail.

    It is stored before the handler is called, so a message that kills the process is not retried for ever.
    """
    tried = replace(letter, attempts=letter.attempts + 1, retries=letter.retries + 1, last_at=at)
    return _scheduled(tried, policy, at)


def ask_for(letter: DeadLetter) -> DeadLetter:
    """Return the letter on the schedule of whoever handles it, to be tried at once."""
    return replace(letter, status=LetterStatus.SCHEDULED, next_retry_at=letter.last_at)


def give_up(letter: DeadLetter) -> DeadLetter:
    """Return the letter without a schedule: an administrator has to decide."""
    return replace(letter, status=LetterStatus.PENDING, next_retry_at=None)


def failed_again(letter: DeadLetter, failure: Failure) -> DeadLetter:
    """Return the letter with the failure of the retry that `try_again` has counted."""
    return replace(letter, failure=failure.kind, cause=failure.cause, stack_digest=failure.stack_digest)


def _scheduled(letter: DeadLetter, policy: RetryPolicy, at: datetime) -> DeadLetter:
    position = letter.message.topic, letter.message.partition, letter.message.offset
    delay_s = policy.delay_s(letter.retries, spread_of(letter.group, *position, letter.retries))
    if delay_s is None:
        return give_up(letter)
    return replace(letter, status=LetterStatus.SCHEDULED, next_retry_at=at + timedelta(seconds=delay_s))
