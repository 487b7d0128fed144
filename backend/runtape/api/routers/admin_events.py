"""What administrators see of all events, and how they take one out of the log."""

from enum import StrEnum
from typing import Annotated, Any

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Path, Query
from fastapi.responses import Response, StreamingResponse

from runtape.api import exports
from runtape.api.access import require
from runtape.api.dependencies import PrincipalDep
from runtape.api.downloads import attachment
from runtape.api.models import EXECUTION_EXAMPLE
from runtape.api.models_events import (
    CURSOR_EXAMPLE,
    EVENT_EXAMPLE,
    HOURS_LIMIT,
    ArchivedEventList,
    ArchivedEventRecord,
    BrowseRequest,
    EventDetailAnswer,
    EventRecord,
    EventRecordList,
    EventStatisticsAnswer,
    ExportQuery,
    cursor_of,
    position_of,
)
from runtape.api.problems import documented
from runtape.application.events import EventBrowser
from runtape.domain.identity import Scope
from runtape.domain.ids import EventId, ExecutionId

router = APIRouter(prefix="/admin/events", route_class=DishkaRoute, tags=["events (administrators only)"])

_READ = ("unauthenticated", "scope_missing", "validation_failed", "rate_limited")

EventIdPath = Annotated[EventId, Path(examples=[EVENT_EXAMPLE])]


class ExportFormat(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    JSON = "json"


_MEDIA = {
    ExportFormat.CSV: ("text/csv; charset=utf-8; header=present", exports.as_csv),
    ExportFormat.JSON: ("application/json", exports.as_json),
}
_EXPORTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The events, newest first, as an attachment",
        "content": {
            "text/csv": {"schema": {"type": "string"}, "example": '"Event ID","Event Type"\r\n'},
            "application/json": {"schema": {"type": "array", "items": {"type": "object"}}, "example": []},
        },
    }
}


@router.post("/browse", response_model=EventRecordList, responses=documented(*_READ, "malformed_json", "csrf_failed"))
async def browse_events(body: BrowseRequest, principal: PrincipalDep, events: FromDishka[EventBrowser]) -> Response:
    """List events of all users, newest first.

    A search looks at a bounded number of events: go on with `next_cursor` until there is none.
    """
    require(principal, Scope.ADMIN)
    page = await events.browse(body.filters.filter(), body.limit, position_of(body.cursor))
    answer = EventRecordList(events=[EventRecord.of(event) for event in page.events], next_cursor=cursor_of(page.next))
    return Response(answer.model_dump_json(), media_type="application/json")


@router.get("/stats", response_model=EventStatisticsAnswer, responses=documented(*_READ))
async def event_statistics(
    principal: PrincipalDep,
    events: FromDishka[EventBrowser],
    hours: Annotated[int, Query(ge=1, le=HOURS_LIMIT, description="how far back")] = 24,
) -> EventStatisticsAnswer:
    """Count the events of the last hours."""
    require(principal, Scope.ADMIN)
    return EventStatisticsAnswer.of(*await events.statistics(hours))


@router.get("/archive", response_model=ArchivedEventList, responses=documented(*_READ))
async def list_archived_events(
    principal: PrincipalDep,
    events: FromDishka[EventBrowser],
    execution_id: Annotated[ExecutionId | None, Query(examples=[EXECUTION_EXAMPLE])] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before", examples=[CURSOR_EXAMPLE])
    ] = None,
) -> ArchivedEventList:
    """List the events that were taken out of the log, last archived first."""
    require(principal, Scope.ADMIN)
    page, following = await events.archived(limit, position_of(cursor), execution_id)
    return ArchivedEventList(
        events=[ArchivedEventRecord.of_archived(each) for each in page], next_cursor=cursor_of(following)
    )


@router.get("/export/{format}", response_class=StreamingResponse, responses={**_EXPORTED, **documented(*_READ)})
async def export_events(
    format: ExportFormat,
    wanted: Annotated[ExportQuery, Query()],
    principal: PrincipalDep,
    events: FromDishka[EventBrowser],
) -> StreamingResponse:
    """Write events of all users into a file, newest first, while they are read.

    In CSV a cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    require(principal, Scope.ADMIN)
    media_type, write = _MEDIA[format]
    pages = events.export(wanted.filter(), wanted.limit)
    return StreamingResponse(write(pages), media_type=media_type, headers=attachment(f"events.{format}"))


@router.get("/{event_id}", response_model=EventDetailAnswer, responses=documented(*_READ, "not_found"))
async def get_event(
    event_id: EventIdPath, principal: PrincipalDep, events: FromDishka[EventBrowser]
) -> EventDetailAnswer:
    """Show an event with what belongs to it."""
    require(principal, Scope.ADMIN)
    return EventDetailAnswer.of(await events.detail(event_id))


@router.delete(
    "/{event_id}",
    status_code=204,
    responses=documented(*_READ, "csrf_failed", "not_found", "not_terminal"),
)
async def archive_event(
    event_id: EventIdPath,
    principal: PrincipalDep,
    events: FromDishka[EventBrowser],
    reason: Annotated[
        str, Query(min_length=1, max_length=500, description="what for", examples=["holds a secret"])
    ] = "an administrator removed it",
) -> None:
    """Take an event out of the log into the archive, unless its execution still needs it."""
    require(principal, Scope.ADMIN)
    await events.archive(principal, event_id, reason)
