"""Time and ids come in through ports, so that the core is a function of its inputs."""

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """Return the current time, in UTC and with that zone; it may jump."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that never go back; only differences mean anything."""
        ...


class Ids(Protocol):
    """Makes ids and secrets."""

    def new_id(self) -> str:
        """Return a new id: unique, and ordered by the time it was made.  It is not a secret."""
        ...

    def new_traceparent(self) -> str:
        """Return the head of a new trace, for a request that comes without one (W3C Trace Context, 3.2)."""
        ...

    def new_secret(self) -> str:
        """Return 256 random bits as URL-safe text."""
        ...
