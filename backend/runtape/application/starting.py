"""An attempt in a worker's hands, and how its start waits for what every start meets alike (ADR 0026).

Where pods are made may be away for minutes: the cluster's API is upgraded, or cannot be reached.  That is no failure of
a start and costs no attempt.  Each waits under its own lease, which goes on being extended, and holds the place that it
was admitted to, so no more are taken on.  Only three things end that: the run is cancelled, the lease is lost, or this
process is to end and gives the attempt back to whoever comes next.
"""

import asyncio
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from typing import Final

from runtape.application import retrying
from runtape.domain.dead_letter import spread_of
from runtape.ports.errors import Unavailable
from runtape.ports.pod_runtime import PodKey

TELL_INTERVAL_S: Final = 5.0
"""How often the log is told what the starts of a process wait for, however many they are."""


class Stop(StrEnum):
    """Why an attempt is not started any more."""

    KILLED = "killed"
    LOST = "lost"
    """The lease is another's, or nobody's."""
    LEAVING = "leaving"
    """This process is going to end."""


class Stopped(Exception):
    """A start that waited does so no longer."""

    def __init__(self, why: Stop) -> None:
        super().__init__(why.value)
        self.why = why


class LiveAttempt:
    """An attempt that a process is starting or recording, under a lease that is stored up to `expires_at`."""

    def __init__(self, key: PodKey, expires_at: datetime) -> None:
        self.key = key
        self.expires_at = expires_at
        self.ended = asyncio.Event()
        """Set once the pod has ended."""
        self.waiting = False
        """Whether its start waits for a part that does not answer anybody."""
        self._waits = 0
        self._stopped = asyncio.Event()
        self._why: Stop | None = None

    def stop(self, why: Stop) -> None:
        """End the waiting for a start, now and later; no effect on one that need not wait."""
        if self._why is None:
            self._why = why
            self._stopped.set()

    async def outlast(self, error: Unavailable) -> None:
        """Return when it is time to try again, as late as `error` asks for.  Raises: Stopped, at once."""
        pause_s = min(retrying.FIRST_PAUSE_S * 2 ** min(self._waits, 20), retrying.LONGEST_PAUSE_S)
        self._waits += 1
        # Spread, so that those who wait together do not all ask at once when it is back.
        pause_s *= (1 + spread_of(self.key.execution_id, self.key.attempt, self._waits)) / 2
        with suppress(TimeoutError):
            async with asyncio.timeout(max(error.retry_after_s or 0.0, pause_s)):
                await self._stopped.wait()
        if self._why is not None:
            raise Stopped(self._why)
