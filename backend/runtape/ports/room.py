"""What a program may have at most where it runs, whatever the service would allow it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The greatest that one program may have, and how many fit; None where nothing is known to bound it."""

    cpu: float | None = None
    """Processors at once."""
    memory_mb: int | None = None
    disk_mb: int | None = None
    """What it may write where it is not memory."""
    programs: int | None = None
    """How many with the default limits fit at once, where nothing else does."""


class Rooms(Protocol):
    """Tells what room there is."""

    async def room(self) -> Room | None:
        """Return the room there is, perhaps of half a minute ago; None: nothing but the service's limits is known.

        It does not fail, and does not wait long.
        """
        ...


class NoRooms:
    """Where nothing but the service's own limits bounds programs, or nobody knows what else does."""

    async def room(self) -> None:
        return None
