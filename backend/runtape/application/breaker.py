"""A part that fails is left alone for a while, so that not every request waits for it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from runtape.ports.clock import Clock
from runtape.ports.errors import Transient

T = TypeVar("T")

log = structlog.get_logger(__name__)

ASK_AGAIN_S = 1.0
"""How long a part is left alone after each failure."""


class Breaker:
    """Asks a part while it answers; the log is told when that changes, by the names `gone` and `back`."""

    def __init__(self, clock: Clock, *, gone: str, back: str) -> None:
        self._clock = clock
        self._gone = gone
        self._back = back
        self._left_alone_until_s: float | None = None

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Return what the part answers, None while it does not."""
        if self._left_alone_until_s is not None and self._clock.monotonic_s() < self._left_alone_until_s:
            return None
        try:
            answer = await call()
        except Transient as error:
            if self._left_alone_until_s is None:
                log.warning(self._gone, error=str(error))
            self._left_alone_until_s = self._clock.monotonic_s() + ASK_AGAIN_S
            return None
        if self._left_alone_until_s is not None:
            self._left_alone_until_s = None
            log.info(self._back)
        return answer
