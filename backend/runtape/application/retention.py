"""Removing what has been kept for as long as the operator wants it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from runtape.ports.clock import Clock
from runtape.ports.errors import Transient
from runtape.ports.retention import Expirable

log = structlog.get_logger(__name__)

INTERVAL_S = 600.0
PAGE = 100
PAUSE_S = 0.05
"""After each page, so that the runs of the day come first."""


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """How long one kind of record is kept; None: for ever."""

    name: str
    kind: Expirable
    keep: timedelta | None


class Retention:
    """Enforces the rules, one after another."""

    def __init__(self, *, rules: Sequence[RetentionRule], clock: Clock) -> None:
        self._rules = rules
        self._clock = clock

    async def run(self) -> None:
        """Sweep from time to time, the first time at once; runs until cancelled."""
        while True:
            await self.sweep()
            await asyncio.sleep(INTERVAL_S)

    async def sweep(self) -> dict[str, int]:
        """Remove what is too old and return how many of each kind; one that fails waits for the next time."""
        removed: dict[str, int] = {}
        for rule in self._rules:
            if rule.keep is None:
                continue
            before = self._clock.now() - rule.keep
            count = 0
            try:
                while page := await rule.kind.prune(before, PAGE):
                    count += page
                    await asyncio.sleep(PAUSE_S)
            except Transient as error:
                log.warning("retention.failed", kind=rule.name, error=str(error))
            if count:
                removed[rule.name] = count
        if removed:
            log.info("retention.swept", **removed)
        return removed
