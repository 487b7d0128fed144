"""Notifications at rest.

They are written by `UnitOfWork.commit`, together with the change that they tell of (`Change.notifications`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from runtape.domain.ids import NotificationId, UserId
from runtape.domain.notification import Notification

COUNTED = 1000
"""As many unread ones are counted at most: whoever has more has to be told no better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationFilter:
    """Which of a user's notifications to list: all conditions hold together.

    Of `include_tags` a notification has one at least, of `exclude_tags` none, and one that begins with `tag_prefix`.
    """

    read: bool | None = None
    include_tags: frozenset[str] = frozenset()
    exclude_tags: frozenset[str] = frozenset()
    tag_prefix: str | None = None


class NotificationPosition(NamedTuple):
    """A place among a user's notifications: right behind the one with this time and id, on the way to the older."""

    at: datetime
    id: NotificationId


class NotificationStore(Protocol):
    """Notifications, each for its user alone.  Raises, everywhere: Transient."""

    async def list(
        self, user_id: UserId, where: NotificationFilter, limit: int, after: NotificationPosition | None
    ) -> Sequence[Notification]:
        """Return up to `limit` matching notifications of the user, newest first, beginning behind `after`."""
        ...

    async def unread_count(self, user_id: UserId) -> int:
        """Return how many of the user's are unread, up to `COUNTED`."""
        ...

    async def mark_read(self, user_id: UserId, notification_id: NotificationId, at: datetime) -> bool:
        """Say that the user read it at that time; one that was read before stays so.  False when there is none."""
        ...

    async def mark_all_read(self, user_id: UserId, at: datetime) -> None:
        """Say that of all the user's that are unread."""
        ...

    async def remove(self, user_id: UserId, notification_id: NotificationId) -> bool:
        """Forget that notification of that user for good; False when there is none."""
        ...

    async def prune(self, before: datetime, limit: int) -> int:
        """Remove up to `limit` notifications that were made before that, the oldest first; return how many."""
        ...
