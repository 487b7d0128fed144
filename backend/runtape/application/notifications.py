"""What users do with their notifications.  Everything is about the caller's own: another's does not exist."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtape.domain.errors import NotFound
from runtape.domain.identity import Principal
from runtape.domain.ids import NotificationId
from runtape.domain.notification import Notification
from runtape.ports.clock import Clock
from runtape.ports.notifications import NotificationFilter, NotificationPosition, NotificationStore


@dataclass(frozen=True, slots=True)
class NotificationPage:
    """Some notifications, newest first, where the next page begins, and how many are unread, up to `COUNTED`."""

    notifications: Sequence[Notification]
    next: NotificationPosition | None
    unread_count: int


class Notifications:
    """Reads and changes for principals, administrators included: nobody looks at another's."""

    def __init__(self, *, store: NotificationStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def page(
        self, principal: Principal, where: NotificationFilter, limit: int, after: NotificationPosition | None
    ) -> NotificationPage:
        """Return up to `limit` notifications of the principal."""
        found = await self._store.list(principal.user_id, where, limit + 1, after)
        page = found[:limit]
        following = NotificationPosition(page[-1].created_at, page[-1].id) if len(found) > limit else None
        return NotificationPage(page, following, await self.unread_count(principal))

    async def unread_count(self, principal: Principal) -> int:
        """Return how many of the principal's are unread, up to `COUNTED`."""
        return await self._store.unread_count(principal.user_id)

    async def mark_read(self, principal: Principal, notification_id: NotificationId) -> None:
        """Say that the principal has read it; idempotent.  Raises: NotFound."""
        if not await self._store.mark_read(principal.user_id, notification_id, self._clock.now()):
            raise NotFound(f"no notification {notification_id}")

    async def mark_all_read(self, principal: Principal) -> None:
        """Say that the principal has read all there are."""
        await self._store.mark_all_read(principal.user_id, self._clock.now())

    async def delete(self, principal: Principal, notification_id: NotificationId) -> None:
        """Remove it for good.  Raises: NotFound."""
        if not await self._store.remove(principal.user_id, notification_id):
            raise NotFound(f"no notification {notification_id}")
