"""The shapes of notifications."""

import re
from datetime import datetime
from enum import StrEnum

from pydantic import ConfigDict, Field

from runtape.api.models import EXECUTION_EXAMPLE, Answer
from runtape.application.notifications import NotificationPage
from runtape.domain.errors import ValidationFailed
from runtape.domain.ids import NotificationId
from runtape.domain.notification import Notification, Severity
from runtape.domain.times import microseconds, moment
from runtape.ports.notifications import COUNTED, NotificationPosition

NOTIFICATION_EXAMPLE = f"{EXECUTION_EXAMPLE}.4"
CURSOR_EXAMPLE = f"1767605400011900.{NOTIFICATION_EXAMPLE}"
_CURSOR = re.compile(r"(\d{1,16})\.([!-~]{1,200})\Z", re.ASCII)

_NOTIFICATION = {
    "notification_id": NOTIFICATION_EXAMPLE,
    "severity": "high",
    "subject": "python 3.13 run failed",
    "body": "The program needed more memory than it may have: oom",
    "tags": ["execution", "entity:execution", f"exec:{EXECUTION_EXAMPLE}", "failed"],
    "execution_id": EXECUTION_EXAMPLE,
    "status": "unread",
    "created_at": "2026-01-05T09:30:00.011900Z",
}
_UNREAD = f"how many are unread, whatever is asked for; {COUNTED} also stands for more"


class ReadStatus(StrEnum):
    """Whether a notification was read."""

    READ = "read"
    UNREAD = "unread"


class NotificationAnswer(Answer):
    """Something that the user is told; `execution_id` is what it is about."""

    model_config = ConfigDict(json_schema_extra={"example": _NOTIFICATION})

    notification_id: str = Field(examples=[NOTIFICATION_EXAMPLE])
    severity: Severity
    subject: str
    body: str
    tags: list[str]
    execution_id: str | None = Field(default=None, examples=[EXECUTION_EXAMPLE])
    status: ReadStatus
    created_at: datetime
    read_at: datetime | None = None

    @classmethod
    def of(cls, notification: Notification) -> "NotificationAnswer":
        """Show `notification`."""
        return cls(
            notification_id=notification.id,
            severity=notification.severity,
            subject=notification.subject,
            body=notification.body,
            tags=list(notification.tags),
            execution_id=notification.execution_id,
            status=ReadStatus.UNREAD if notification.read_at is None else ReadStatus.READ,
            created_at=notification.created_at,
            read_at=notification.read_at,
        )


class NotificationList(Answer):
    """A page of notifications, newest first; `next_cursor` is null on the last one."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"notifications": [_NOTIFICATION], "next_cursor": CURSOR_EXAMPLE, "unread_count": 3}
        }
    )

    notifications: list[NotificationAnswer]
    next_cursor: str | None
    unread_count: int = Field(description=_UNREAD)

    @classmethod
    def of(cls, page: NotificationPage) -> "NotificationList":
        """Show `page`."""
        return cls(
            notifications=[NotificationAnswer.of(each) for each in page.notifications],
            next_cursor=page.next and f"{microseconds(page.next.at)}.{page.next.id}",
            unread_count=page.unread_count,
        )


class UnreadCount(Answer):
    """How much there is to read."""

    model_config = ConfigDict(json_schema_extra={"example": {"unread_count": 3}})

    unread_count: int = Field(description=_UNREAD)


def position_of(cursor: str | None) -> NotificationPosition | None:
    """Return what `cursor` stands for.  Raises: ValidationFailed."""
    if cursor is None:
        return None
    found = _CURSOR.match(cursor)
    if found is None:
        raise ValidationFailed(f'"{cursor[:80]}" is no cursor; send the next_cursor of the page before', field="cursor")
    return NotificationPosition(moment(int(found[1])), NotificationId(found[2]))
