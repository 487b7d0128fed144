"""Dead letters at work: parking keys, retrying by schedule and by hand, discarding.

Theory of operation
===================
A message that its group cannot handle becomes a dead letter, and its key is *parked* for that group: every later
message of the key joins the line behind it, while other keys go on.  The first of a line is retried as the policy of
its topic says, or when an administrator asks; when it is retried or discarded, the next one is scheduled at once, and
so on; with the last one the key is parked no longer.

* What touches a line is done in the consumer's own line of that key (`GroupConsumer.in_line`), one thing after
  another.  So nothing comes between the last letter and the next delivery, and of two who retry a letter the second
  finds it done.
* Which keys are parked is a copy of what the store says: `restore` reads it before the first message is consumed.  A
  message is acknowledged only once its letter is durable.
* A retry is counted before its handler runs and its end is stored after, so a crash between them runs the handler
  again.  Handlers are idempotent: a message that was handled before, or that its document has left behind, changes
  nothing.
* Parking holds for messages that come from the log.  A chain that goes on in memory (`Flow`) and the sweeper act on
  the document, whose version decides; what stands in a line meanwhile is out of date when its turn comes.
* Hence a dead message neither ends an execution nor loses one.  Its document still carries ``due_at``, and the sweeper
  does the step again from the document: at the pace of ``due_at``, and where the step itself fails once per sweep, so
  nothing spins.  What the sweeper publishes again has the id of the message that stands in the line and adds nothing
  to it.  And the end is a version of the document, which one write alone can make, whoever comes first with it.
"""

import asyncio
import contextlib
import hashlib
import traceback
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePath
from typing import Protocol, TypeVar

import structlog

from runtape.application.flow import Tasks
from runtape.domain.dead_letter import (
    DEFAULT_POLICIES,
    DEFAULT_POLICY,
    OPEN,
    DeadLetter,
    Failure,
    FailureKind,
    LetterStatus,
    RetryPolicy,
    Strategy,
    ask_for,
    bury,
    failed_again,
    give_up,
    try_again,
)
from runtape.domain.errors import DeadLetterBlocked, DeadLetterResolved, DomainError, NotFound
from runtape.domain.events import Message
from runtape.domain.ids import DeadLetterId
from runtape.ports.clock import Clock
from runtape.ports.dead_letters import DeadLetterFilter, DeadLetterStore, DeadLetterTopic
from runtape.ports.errors import Permanent, Transient
from runtape.ports.log import Delivery, EventLog, UndecodableDelivery

T = TypeVar("T")
log = structlog.get_logger(__name__)

PAGE = 100
LONGEST_WAIT_S = 60.0
"""How long the schedule sleeps at most while something is on it: the clock may jump."""

AHEAD = timedelta(seconds=60)
"""By how much the clock of another process may be ahead of this one's and be right.

A letter that was tried later than that was put off by a clock that was ahead, and is due now.
"""

PAUSE_S = 1.0
"""How long a retry that could not even be counted is left alone."""

CAUSE_CHARS = 2000


class GroupConsumer(Protocol):
    """The consumer of one group in this process."""

    async def in_line(self, key: str, work: Callable[[], Awaitable[T]], /) -> T:
        """Do `work` when what the group does about `key` just now is done, and nothing else about it meanwhile."""
        ...

    async def handle(self, message: Message, /) -> None:
        """Carry out what the group's handler decides about `message`, once."""
        ...


@dataclass(frozen=True, slots=True)
class LetterOutcome:
    """What became of one letter of many: a status, or the code of a refusal with its detail."""

    id: DeadLetterId
    outcome: str
    detail: str | None = None


class DeadLetters:
    """The dead letters of the groups that are consumed in this process."""

    def __init__(
        self,
        *,
        store: DeadLetterStore,
        event_log: EventLog,
        clock: Clock,
        tasks: Tasks,
        topic: DeadLetterTopic | None = None,
        look_s: float | None = None,
    ) -> None:
        """`look_s` is how often to look at what other processes have done; None where there are none."""
        self._store = store
        self._topic = topic
        self._event_log = event_log
        self._clock = clock
        self._tasks = tasks
        self._look_s = look_s
        self._parked: dict[str, set[str]] = {}
        self._parked_since: set[tuple[str, str]] = set()
        """The lines that were begun here since the last look began."""
        self._consumers: dict[str, GroupConsumer] = {}
        self._retrying: set[DeadLetterId] = set()
        self._woken = asyncio.Event()

    async def restore(self) -> None:
        """Learn which keys are parked; before the first message is consumed, and again where others park them."""
        self._parked_since.clear()
        found: dict[str, set[str]] = {}
        async for group, key in self._store.parked():
            found.setdefault(group, set()).add(key)
        for group, key in self._parked_since:
            found.setdefault(group, set()).add(key)
        for group in {*self._parked, *found}:
            keys, now = self._parked.setdefault(group, set()), found.get(group, set())
            keys &= now  # in place: consumers hold these sets
            keys |= now

    @property
    def parked_keys(self) -> int:
        """How many keys are parked, counted for each group."""
        return sum(map(len, self._parked.values()))

    def attach(self, group: str, consumer: GroupConsumer) -> Set[str]:
        """Let `consumer` serve `group`; return the keys that are parked for it, which change with time."""
        self._consumers[group] = consumer
        return self._parked.setdefault(group, set())

    async def bury(self, group: str, delivery: Delivery | UndecodableDelivery, failure: Failure) -> None:
        """Return once a dead letter of the delivery is durable; from then on its key is parked.

        Called in the line of its key.  Raises: Transient.
        """
        if isinstance(delivery, Delivery):
            raw, message_id = await self._event_log.raw(delivery), delivery.message.id
        else:
            raw, message_id = delivery.raw, None
        if raw is None:  # deleted, with all that it was about
            log.info("message.gone", group=group, offset=delivery.offset)
            return
        policy = await self.policy(raw.topic)
        letter = await self._store.append(bury(raw, message_id, group, failure, policy, self._clock.now()))
        if letter.open:  # else it was resolved, and has come again because its acknowledgement was lost
            self._parked.setdefault(group, set()).add(raw.key)
            self._parked_since.add((group, raw.key))
            self._woken.set()
        if self._topic is not None:
            await self._topic.copy(letter)
        log.info("letter.kept", letter=letter.id, group=group, type=raw.type, failure=letter.failure, key=raw.key)

    async def retry(self, letter_id: DeadLetterId, by: str | None) -> DeadLetter:
        """Run the handler on the original bytes, once, and return the letter as it stands then.

        One that was retried before is returned as it is.  `by` is None for the schedule, which retries only what is
        due.  A letter of a group that other processes consume is put on their schedule, to be tried at once.
        Raises: NotFound, DeadLetterResolved, DeadLetterBlocked, Transient.
        """
        letter = await self.get(letter_id)
        consumer = self._consumers.get(letter.group)
        if consumer is None and self._look_s is not None:
            return await self._ask_for(letter)
        if consumer is None:
            raise DeadLetterBlocked(f"no consumer of the group {letter.group} runs in this process")
        return await consumer.in_line(letter.message.key, lambda: self._retry(letter_id, consumer, by))

    async def _ask_for(self, letter: DeadLetter) -> DeadLetter:
        if letter.status is LetterStatus.RETRIED:
            return letter
        if letter.status is LetterStatus.DISCARDED:
            raise DeadLetterResolved(f"dead letter {letter.id} was discarded")
        await self._check_first(letter)
        asked = ask_for(letter)
        if not await self._store.replace(letter, asked):
            raise Transient(f"dead letter {letter.id} was changed by somebody else")
        return asked

    async def _check_first(self, letter: DeadLetter) -> None:
        """Raises: DeadLetterBlocked, unless the letter is the first of its line."""
        first = await self._store.first(letter.group, letter.message.key)
        if first is None or first.id != letter.id:
            raise DeadLetterBlocked(f"dead letter {first.id if first else '?'} of the same key comes first")

    async def discard(self, letter_id: DeadLetterId, reason: str, by: str | None) -> DeadLetter:
        """Close the letter without handling it.  Raises: NotFound, DeadLetterResolved, Transient."""
        letter = await self.get(letter_id)
        consumer = self._consumers.get(letter.group)

        async def work() -> DeadLetter:
            if not await self._close(letter, LetterStatus.DISCARDED, by, reason):
                raise DeadLetterResolved(f"dead letter {letter_id} was resolved before")
            return await self.get(letter_id)

        return await (work() if consumer is None else consumer.in_line(letter.message.key, work))

    async def retry_all(self, where: DeadLetterFilter, limit: int, by: str) -> tuple[list[LetterOutcome], bool]:
        """Retry up to `limit` letters, oldest first; return what became of each, and whether more match."""
        return await self._each(where, limit, lambda letter: self.retry(letter.id, by))

    async def discard_all(
        self, where: DeadLetterFilter, limit: int, reason: str, by: str | None
    ) -> tuple[list[LetterOutcome], bool]:
        """Discard up to `limit` letters, oldest first; return what became of each, and whether more match."""
        return await self._each(where, limit, lambda letter: self.discard(letter.id, reason, by))

    async def get(self, letter_id: DeadLetterId) -> DeadLetter:
        """Return the letter.  Raises: NotFound."""
        letter = await self._store.get(letter_id)
        if letter is None:
            raise NotFound(f'no dead letter "{letter_id[:40]}"')
        return letter

    async def policy(self, topic: str) -> RetryPolicy:
        """Return the policy that holds for `topic`."""
        return await self._store.policy(topic) or DEFAULT_POLICIES.get(topic, DEFAULT_POLICY)

    async def set_policy(self, topic: str, policy: RetryPolicy) -> None:
        """Let `policy` hold for what fails from now on, and ``manual`` for what is on the schedule too."""
        await self._store.put_policy(topic, policy)

    async def prune(self, before: datetime, limit: int) -> int:
        """Remove up to `limit` letters that were resolved before that, and discard up to as many that died before it.

        Return how many that were.  What is discarded is told by its letter for as long again.
        """
        removed = await self._store.prune(before, limit)
        where = DeadLetterFilter(statuses=OPEN, before=before)
        outcomes, _ = await self.discard_all(where, limit, "older than the retention of dead letters", None)
        return removed + sum(each.outcome == LetterStatus.DISCARDED for each in outcomes)

    async def run(self) -> None:
        """Retry what comes due; runs until cancelled, and sleeps while nothing is on the schedule."""
        while True:
            self._woken.clear()
            wait_s = await self.retry_due()
            if self._look_s is not None:
                await self.restore()
                wait_s = self._look_s if wait_s is None else min(wait_s, self._look_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()

    async def retry_due(self) -> float | None:
        """Begin to retry what is due, and return in how many seconds more may be; None: not before something fails."""
        now = self._clock.now()
        groups = sorted(self._consumers)
        for letter in await self._store.due(groups, now, PAGE, now + AHEAD):
            if letter.id not in self._retrying:
                self._retrying.add(letter.id)
                self._tasks.spawn(self._retry_by_schedule(letter.id), f"{letter.group}.retry")
        upcoming = await self._store.next_retry_at(groups, now)
        return None if upcoming is None else min((upcoming - now).total_seconds(), LONGEST_WAIT_S)

    async def _retry_by_schedule(self, letter_id: DeadLetterId) -> None:
        try:
            await self.retry(letter_id, None)
        except Exception as error:  # one letter must not keep the others from being retried
            log.error("letter.not_retried", letter=letter_id, exc_info=error)
            await asyncio.sleep(PAUSE_S)
        finally:
            self._retrying.discard(letter_id)
            self._woken.set()

    async def _retry(self, letter_id: DeadLetterId, consumer: GroupConsumer, by: str | None) -> DeadLetter:
        letter = await self.get(letter_id)
        now = self._clock.now()
        if letter.status is LetterStatus.RETRIED or (by is None and not _due(letter, now)):
            return letter
        if letter.status is LetterStatus.DISCARDED:
            raise DeadLetterResolved(f"dead letter {letter_id} was discarded")
        await self._check_first(letter)
        policy = await self.policy(letter.message.topic)
        if by is None and policy.strategy is Strategy.MANUAL and not letter.at_once:
            await self._store.replace(letter, give_up(letter))
            return give_up(letter)
        tried = try_again(letter, policy, now)
        if not await self._store.replace(letter, tried):
            if by is None and self._look_s is not None:  # another process of the group was sooner
                return await self.get(letter_id)
            raise Transient(f"dead letter {letter_id} was changed by somebody else")
        try:
            await consumer.handle(await self._event_log.decode(letter.message))
        except Exception as error:  # whatever it is, it is why the message is still dead
            failed = failed_again(tried, failure_of(error, tried.attempts))
            await self._store.replace(tried, failed)
            log.error(
                "letter.failed",
                letter=letter_id,
                group=failed.group,
                type=failed.message.type,
                retries=failed.retries,
                stack_digest=failed.stack_digest,
                exc_info=error,
            )
            self._woken.set()
            return failed
        await self._close(letter, LetterStatus.RETRIED, by, None)
        return await self.get(letter_id)

    async def _close(self, letter: DeadLetter, status: LetterStatus, by: str | None, reason: str | None) -> bool:
        """Resolve an open letter; its key is free again with the last one of its line."""
        left = await self._store.resolve(letter.id, status, self._clock.now(), by, reason)
        if left is None:
            return False
        if left == 0:
            self._parked.setdefault(letter.group, set()).discard(letter.message.key)
            self._parked_since.discard((letter.group, letter.message.key))
        self._woken.set()
        log.info(f"letter.{status}", letter=letter.id, group=letter.group, by=by, reason=reason, left=left)
        return True

    async def _each(
        self, where: DeadLetterFilter, limit: int, work: Callable[[DeadLetter], Awaitable[DeadLetter]]
    ) -> tuple[list[LetterOutcome], bool]:
        found = await self._store.oldest(where, limit + 1)
        outcomes: list[LetterOutcome] = []
        for letter in found[:limit]:
            try:
                done = await work(letter)
                outcomes.append(LetterOutcome(letter.id, done.status, done.cause if done.open else None))
            except DomainError as refusal:
                outcomes.append(LetterOutcome(letter.id, refusal.code, refusal.detail))
        return outcomes, len(found) > limit


def failure_of(error: Exception, attempts: int) -> Failure:
    """Return `error` as the failure of a message that was tried `attempts` times."""
    kind = FailureKind.POISON
    if isinstance(error, Transient):
        kind = FailureKind.TRANSIENT
    elif isinstance(error, Permanent):
        kind = FailureKind.PERMANENT
    told = "".join(traceback.format_exception_only(error)).strip()[:CAUSE_CHARS]
    # Lone surrogates are text that no store takes.
    cause = told.encode(errors="replace").decode()
    return Failure(kind=kind, cause=cause, stack_digest=stack_digest(error), attempts=attempts)


def stack_digest(error: BaseException) -> str:
    """Return a digest of what was raised and through which functions; without lines, which move with every edit."""
    parts: list[str] = []
    each: BaseException | None = error
    while each is not None and len(parts) < 200:
        parts.append(type(each).__qualname__)
        frames = traceback.extract_tb(each.__traceback__)
        parts += [f"{PurePath(frame.filename).name}:{frame.name}" for frame in frames]
        each = each.__cause__
    return hashlib.sha256("\n".join(parts).encode(errors="replace")).hexdigest()[:16]


def _due(letter: DeadLetter, now: datetime) -> bool:
    """Whether its time has come, or a clock that was ahead has put that off."""
    return letter.next_retry_at is not None and (letter.next_retry_at <= now or letter.last_at > now + AHEAD)
