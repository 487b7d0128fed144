"""Trying a step of our own again while the failure is transient."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from runtape.ports.errors import Transient

T = TypeVar("T")
log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


async def persistently(action: Callable[[], Awaitable[T]], what: str, tries: int) -> T:
    """Await `action` until it succeeds, with growing pauses, `tries` times at most.

    Raises: what it raised the last time; anything but Transient at once.
    """
    pause_s = FIRST_PAUSE_S
    for number in range(1, tries):
        try:
            return await action()
        except Transient as error:
            log.warning("step.retried", what=what, tries=number, error=str(error))
            await asyncio.sleep(error.retry_after_s or pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    return await action()
