"""Idempotency keys that somebody has come with."""

from typing import Protocol

from runtape.domain.ids import UserId


class SeenKeys(Protocol):
    """A hint whether a key has to be looked up in the store, which alone decides what it stands for."""

    async def add(self, user_id: UserId, key: str) -> bool:
        """Note that the user has come with the key; return whether nobody has before, as far as is known.

        Of those who come at once one is the first.  Either answer may be wrong: False costs a look into the store, True
        an insertion that it refuses.  Raises: Transient.
        """
        ...
