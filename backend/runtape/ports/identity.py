"""Users, sessions and API keys at rest, and the hashing of passwords."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from runtape.domain.identity import ApiKey, Session, User
from runtape.domain.ids import ApiKeyId, SessionId, UserId


class IdentityStore(Protocol):
    """Documents of identity.  A read sees every write that returned before.  Raises, everywhere: Transient.

    Credentials are found by the digest of their secret, together with their user; one whose user is gone is
    not found.  What this store returns may have expired: the caller looks.
    """

    async def has_users(self) -> bool:
        """Return whether there is any user."""
        ...

    async def user_by_name(self, username: str) -> User | None:
        """Return the user of exactly that name."""
        ...

    async def add_user(self, user: User) -> bool:
        """Store a new user and return True; False, and nothing changes, when the name or the id is in use.

        Survives the loss of power.
        """
        ...

    async def replace_password_hash(self, user_id: UserId, old: str, new: str) -> None:
        """Store the hash `new` if the user's is still `old`."""
        ...

    async def add_session(self, session: Session) -> None:
        """Store a new session; survives the death of any process."""
        ...

    async def session_by_digest(self, token_sha256: str) -> tuple[Session, User] | None:
        """Return the session whose token has that digest."""
        ...

    async def remove_session(self, session_id: SessionId) -> None:
        """Forget the session for good, also over a loss of power; idempotent."""
        ...

    async def forget_sessions(self, expired_before: datetime) -> None:
        """Forget the sessions that ran out before then."""
        ...

    async def put_key(self, key: ApiKey) -> None:
        """Store the key, in place of the one with the same id; survives the loss of power."""
        ...

    async def key_by_digest(self, key_sha256: str) -> tuple[ApiKey, User] | None:
        """Return the key whose plain text has that digest."""
        ...

    async def keys_of(self, user_id: UserId) -> Sequence[ApiKey]:
        """Return the user's keys, oldest first."""
        ...

    async def remove_key(self, user_id: UserId, key_id: ApiKeyId) -> bool:
        """Forget that key of that user for good, also over a loss of power; False when there is none."""
        ...


class PasswordHasher(Protocol):
    """Slow, salted hashing.  What it returns tells its own parameters."""

    async def hash(self, password: str) -> str:
        """Return a new hash of `password`."""
        ...

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether `password_hash` was made from `password`.

        None stands for a user who does not exist: the work is the same and the answer is False.
        """
        ...

    def outdated(self, password_hash: str) -> bool:
        """Whether `password_hash` was made with other parameters than `hash` uses now."""
        ...
