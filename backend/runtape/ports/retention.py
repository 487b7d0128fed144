"""What may be kept for a time and no longer."""

from datetime import datetime
from typing import Protocol


class Expirable(Protocol):
    """One kind of record that has an age."""

    async def prune(self, before: datetime, limit: int) -> int:
        """Remove up to `limit` records that are older than `before`, the oldest first, and return how many.

        0 says that none is left to remove now.  Nothing is removed of an execution that has not ended, or whose
        result is not stored.  Raises: Transient.
        """
        ...
