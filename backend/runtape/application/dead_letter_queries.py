"""Looking at dead letters: pages, and how many there are of which."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from runtape.application.dead_letters import DeadLetters
from runtape.domain.dead_letter import OPEN, DeadLetter, LetterStatus, RetryPolicy
from runtape.domain.ids import DeadLetterId
from runtape.ports.dead_letters import DeadLetterCount, DeadLetterFilter, DeadLetterStore

WARNING = 100
CRITICAL = 1000


class Level(StrEnum):
    """How alarming the number of open letters is: from `WARNING` on, from `CRITICAL` on."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterStats:
    """How many letters there are; the three breakdowns count open ones."""

    by_status: dict[LetterStatus, int]
    open: int
    parked_keys: int
    oldest_open_at: datetime | None
    level: Level
    by_topic: dict[str, int]
    by_group: dict[str, int]
    by_type: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSummary:
    """The letters of one topic, and the policy that holds for it."""

    topic: str
    by_status: dict[LetterStatus, int]
    open: int
    oldest_open_at: datetime | None
    newest_at: datetime
    policy: RetryPolicy


class DeadLetterQueries:
    """Reads for administrators."""

    def __init__(self, store: DeadLetterStore, dead_letters: DeadLetters) -> None:
        self._store = store
        self._dead_letters = dead_letters

    async def page(
        self, where: DeadLetterFilter, limit: int, before: DeadLetterId | None
    ) -> tuple[Sequence[DeadLetter], DeadLetterId | None]:
        """Return up to `limit` letters, newest first, and where the next page begins."""
        found = await self._store.list(where, limit + 1, before)
        page = found[:limit]
        return page, page[-1].id if len(found) > limit else None

    async def stats(self) -> DeadLetterStats:
        """Return how many letters there are now."""
        counts = await self._store.counts()
        still_open = [each for each in counts if each.status in OPEN]
        total = sum(each.count for each in still_open)
        return DeadLetterStats(
            by_status=_by_status(counts),
            open=total,
            parked_keys=self._dead_letters.parked_keys,
            oldest_open_at=min((each.oldest_at for each in still_open), default=None),
            level=Level.CRITICAL if total >= CRITICAL else Level.WARNING if total >= WARNING else Level.OK,
            by_topic=_sums((each.topic, each.count) for each in still_open),
            by_group=_sums((each.group, each.count) for each in still_open),
            by_type=_sums((each.type, each.count) for each in still_open),
        )

    async def topics(self) -> Sequence[TopicSummary]:
        """Return a summary of each topic that has letters, by name."""
        counts = await self._store.counts()
        summaries: list[TopicSummary] = []
        for topic in sorted({each.topic for each in counts}):
            own = [each for each in counts if each.topic == topic]
            still_open = [each for each in own if each.status in OPEN]
            summaries.append(
                TopicSummary(
                    topic=topic,
                    by_status=_by_status(own),
                    open=sum(each.count for each in still_open),
                    oldest_open_at=min((each.oldest_at for each in still_open), default=None),
                    newest_at=max(each.newest_at for each in own),
                    policy=await self._dead_letters.policy(topic),
                )
            )
        return summaries


def _by_status(counts: Iterable[DeadLetterCount]) -> dict[LetterStatus, int]:
    found = _sums((each.status, each.count) for each in counts)
    return {status: found.get(status, 0) for status in LetterStatus}


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for name, count in pairs:
        totals[name] += count
    return dict(totals)
