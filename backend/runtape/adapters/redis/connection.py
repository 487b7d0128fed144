"""The connection to Redis, and what its failures are called."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError

from runtape.ports.errors import Transient, Unavailable

TIMEOUT_S = 1.0
"""How long a try may take: a Redis that stands still is one that is not there."""
RETRIES = 1
CONNECTIONS = 32
REFUSED_WAIT_S = 10.0
"""The pause after credentials were refused, where somebody waits for Redis: only a person ends that."""


def connect(url: str, **options: Any) -> Redis:
    """Return a client of the Redis at `url`, which connects when it is used; the caller closes it.

    `options` are redis-py's, for credentials and certificates.
    """
    # Who finds no connection free waits for one: a burst is no reason to say that Redis is gone.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        health_check_interval=10,
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.2), RETRIES),
        **options,
    )
    return Redis.from_pool(pool)


@contextlib.contextmanager
def transient() -> Iterator[None]:
    """Let failures of Redis be known as such.  Raises: Unavailable, Transient.

    The client may swallow a cancellation that meets it while a connection fails: it is told here.
    """
    task = asyncio.current_task()
    cancellations = task.cancelling() if task is not None else 0
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        _tell_cancellation(task, cancellations)
        # A server that does not know how it is greeted repeats the greeting, which has the password in it.
        raise _transient(error) from (None if _unknown(error) else error)
    _tell_cancellation(task, cancellations)


def _tell_cancellation(task: "asyncio.Task[object] | None", before: int) -> None:
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


def _unknown(error: Exception) -> bool:
    return isinstance(error, exceptions.ResponseError) and str(error).startswith("unknown command")


def _transient(error: Exception) -> Transient:
    if isinstance(error, (exceptions.AuthenticationError, exceptions.NoPermissionError)):
        return Unavailable(f"Redis refuses the user: {error}", retry_after_s=REFUSED_WAIT_S)
    if _unknown(error):
        return Unavailable("Redis does not know a command: it is older than Redis 6, or a proxy that knows fewer")
    if isinstance(error, exceptions.ResponseError) and not isinstance(error, exceptions.BusyLoadingError):
        return Transient(f"Redis refuses: {type(error).__name__}")
    message = f"Redis does not answer: {type(error).__name__}"
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError)):
        message += f": {error}"
    return Unavailable(message)
