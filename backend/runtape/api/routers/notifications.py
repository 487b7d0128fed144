"""Notifications: what a user is told, what of it was read, and what may go."""

from typing import Annotated

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Path, Query
from pydantic import StringConstraints

from runtape.api.access import require
from runtape.api.dependencies import PrincipalDep
from runtape.api.models_notifications import (
    CURSOR_EXAMPLE,
    NOTIFICATION_EXAMPLE,
    NotificationList,
    ReadStatus,
    UnreadCount,
    position_of,
)
from runtape.api.problems import documented
from runtape.application.notifications import Notifications
from runtape.domain.identity import Scope
from runtape.domain.ids import NotificationId
from runtape.ports.notifications import NotificationFilter

router = APIRouter(prefix="/notifications", route_class=DishkaRoute, tags=["notifications"])

PAGE_LIMIT = 100
TAGS_LIMIT = 20
_READ = ("unauthenticated", "scope_missing", "validation_failed", "rate_limited")
_CHANGE = ("unauthenticated", "scope_missing", "csrf_failed", "rate_limited")
_CHANGE_ONE = (*_CHANGE, "not_found", "validation_failed")

NotificationIdPath = Annotated[NotificationId, Path(alias="id", examples=[NOTIFICATION_EXAMPLE])]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=200)]


@router.get("", response_model=NotificationList, responses=documented(*_READ))
async def list_notifications(
    principal: PrincipalDep,
    notifications: FromDishka[Notifications],
    status: ReadStatus | None = None,
    include_tags: Annotated[
        list[Tag] | None, Query(max_length=TAGS_LIMIT, description="one of them at least", examples=[["failed"]])
    ] = None,
    exclude_tags: Annotated[
        list[Tag] | None, Query(max_length=TAGS_LIMIT, description="none of them", examples=[["timeout"]])
    ] = None,
    tag_prefix: Annotated[Tag | None, Query(description="how one of its tags begins", examples=["exec:"])] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before", examples=[CURSOR_EXAMPLE])
    ] = None,
) -> NotificationList:
    """List the caller's notifications, newest first.

    A run that failed or ran out of time makes one.  One that ended by itself, with whatever exit code, makes none.
    """
    require(principal, Scope.READ)
    where = NotificationFilter(
        read=None if status is None else status is ReadStatus.READ,
        include_tags=frozenset(include_tags or ()),
        exclude_tags=frozenset(exclude_tags or ()),
        tag_prefix=tag_prefix,
    )
    return NotificationList.of(await notifications.page(principal, where, limit, position_of(cursor)))


@router.get(
    "/unread-count",
    response_model=UnreadCount,
    responses=documented("unauthenticated", "scope_missing", "rate_limited"),
)
async def count_unread(principal: PrincipalDep, notifications: FromDishka[Notifications]) -> UnreadCount:
    """Count the caller's unread notifications."""
    require(principal, Scope.READ)
    return UnreadCount(unread_count=await notifications.unread_count(principal))


@router.post("/mark-all-read", status_code=204, responses=documented(*_CHANGE))
async def mark_all_read(principal: PrincipalDep, notifications: FromDishka[Notifications]) -> None:
    """Mark all of the caller's notifications as read."""
    require(principal, Scope.EXECUTE)
    await notifications.mark_all_read(principal)


@router.put("/{id}/read", status_code=204, responses=documented(*_CHANGE_ONE))
async def mark_read(
    notification_id: NotificationIdPath, principal: PrincipalDep, notifications: FromDishka[Notifications]
) -> None:
    """Mark a notification as read; somebody else's is not found."""
    require(principal, Scope.EXECUTE)
    await notifications.mark_read(principal, notification_id)


@router.delete("/{id}", status_code=204, responses=documented(*_CHANGE_ONE))
async def delete_notification(
    notification_id: NotificationIdPath, principal: PrincipalDep, notifications: FromDishka[Notifications]
) -> None:
    """Remove a notification for good; somebody else's is not found."""
    require(principal, Scope.EXECUTE)
    await notifications.delete(principal, notification_id)
