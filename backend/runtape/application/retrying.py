"""Trying a step of our own again while the failure is transient."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from runtape.ports.errors import Transient, Unavailable

T = TypeVar("T")
log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


async def persistently(
    action: Callable[[], Awaitable[T]],
    what: str,
    tries: int | None = None,
    outlast: Callable[[Unavailable], Awaitable[None]] | None = None,
) -> T:
    """Await `action` until it succeeds, with growing pauses, `tries` times at most; None: for as long as it takes.

    A failure that asks for a pause gets one at least as long, and a longer one the more often it failed.  What is
    `Unavailable` is not counted if there is an `outlast`, which waits instead, or raises when it is not to be waited.
    Raises: what it raised the last time; anything but Transient at once.
    """
    pause_s = FIRST_PAUSE_S
    number = 0
    while True:
        number += 1
        try:
            return await action()
        except Transient as error:
            if outlast is not None and isinstance(error, Unavailable):
                number -= 1
                await outlast(error)
                continue
            if number == tries:
                raise
            log.warning("step.retried", what=what, tries=number, error=str(error))
            await asyncio.sleep(max(error.retry_after_s or 0.0, pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
