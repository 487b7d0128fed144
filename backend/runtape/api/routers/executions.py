"""Reading, cancelling, retrying and deleting executions."""

from datetime import datetime
from functools import partial
from typing import Annotated, Any

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import Response

from runtape.api.access import require
from runtape.api.dependencies import PrincipalDep, RequestedDep
from runtape.api.downloads import DOWNLOADED, Download, WantedDep
from runtape.api.models import (
    Accepted,
    ArtifactAnswer,
    ArtifactList,
    CancelAnswer,
    CancelRequest,
    EventAnswer,
    EventList,
    ExecutionAnswer,
    ExecutionList,
    ResultAnswer,
)
from runtape.api.models_admission import ExecutionInQueueAnswer
from runtape.api.paging import ExecutionIdPath, PageCursor, PageLimit, execution_cursor
from runtape.api.problems import documented
from runtape.application.events import EventBrowser
from runtape.application.queries import Queries
from runtape.application.submission import Submissions
from runtape.domain.errors import ValidationFailed
from runtape.domain.identity import Scope
from runtape.domain.outcome import Status
from runtape.domain.tape import Stream
from runtape.ports.admission import AdmissionQueue
from runtape.ports.stores import ExecutionFilter

router = APIRouter(route_class=DishkaRoute, tags=["executions"])

_ALWAYS = ("unauthenticated", "scope_missing", "not_found", "validation_failed", "rate_limited")
_READ = documented(*_ALWAYS)


def _change(*codes: str) -> dict[int | str, dict[str, Any]]:
    return documented(*_ALWAYS, "csrf_failed", *codes)


@router.get("/executions/{execution_id}", response_model=ExecutionInQueueAnswer, responses=_READ)
async def get_execution(
    execution_id: ExecutionIdPath,
    principal: PrincipalDep,
    queries: FromDishka[Queries],
    queue: FromDishka[AdmissionQueue],
) -> ExecutionInQueueAnswer:
    """Show an execution as it stands, and while it waits for a place, where in the queue."""
    require(principal, Scope.READ)
    execution = await queries.execution(principal, execution_id)
    return ExecutionInQueueAnswer.at(execution, await queue.place(execution_id))


@router.get("/executions/{execution_id}/result", response_model=ResultAnswer, responses=_READ)
async def get_result(
    execution_id: ExecutionIdPath, principal: PrincipalDep, queries: FromDishka[Queries]
) -> ResultAnswer:
    """Show outcome, usage and output; before the end, what there is so far."""
    require(principal, Scope.READ)
    return ResultAnswer.model_validate(await queries.result(principal, execution_id))


@router.get(
    "/executions/{execution_id}/output/{stream}",
    response_class=Response,
    responses={**DOWNLOADED, **_READ, **documented("range_not_satisfiable", "output_expired")},
)
async def get_output(
    execution_id: ExecutionIdPath,
    stream: Stream,
    principal: PrincipalDep,
    queries: FromDishka[Queries],
    wanted: WantedDep,
) -> Response:
    """Give the exact bytes that the last attempt printed, as an attachment; one `Range` is understood."""
    require(principal, Scope.READ)
    output = await queries.output(principal, execution_id, stream)
    download = Download(f"{execution_id}.{stream}", output.size_bytes, output.sha256)
    return download.answer(partial(queries.output_bytes, output), wanted)


@router.get("/executions/{execution_id}/artifacts", response_model=ArtifactList, responses=_READ)
async def list_artifacts(
    execution_id: ExecutionIdPath, principal: PrincipalDep, queries: FromDishka[Queries]
) -> ArtifactList:
    """List the files that the program left in `out`, in the order of their paths; none before the end."""
    require(principal, Scope.READ)
    artifacts = (await queries.execution(principal, execution_id)).artifacts
    return ArtifactList(
        artifacts=[ArtifactAnswer.model_validate(artifact) for artifact in artifacts.kept],
        artifacts_left_out={each.reason: each.count for each in artifacts.left_out},
    )


@router.get(
    "/executions/{execution_id}/artifacts/{path:path}",
    response_class=Response,
    responses={**DOWNLOADED, **_READ, **documented("range_not_satisfiable")},
)
async def get_artifact(
    execution_id: ExecutionIdPath,
    path: Annotated[str, Path(description="as the list has it", examples=["figure-1.png"])],
    principal: PrincipalDep,
    queries: FromDishka[Queries],
    wanted: WantedDep,
) -> Response:
    """Give the exact bytes of an artifact, as an attachment; one `Range` is understood."""
    require(principal, Scope.READ)
    artifact = await queries.artifact(principal, execution_id, path)
    download = Download(path.rpartition("/")[2], artifact.size_bytes, artifact.sha256)
    return download.answer(partial(queries.artifact_bytes, artifact), wanted)


@router.get("/executions/{execution_id}/events", response_model=EventList, responses=_READ)
async def get_events(
    execution_id: ExecutionIdPath,
    principal: PrincipalDep,
    queries: FromDishka[Queries],
    browser: FromDishka[EventBrowser],
    event_types: Annotated[list[str] | None, Query(examples=[["execution_started"]])] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[
        str | None, Query(pattern=r"^\d{1,9}$", description="`next_cursor` of the page before", examples=["2"])
    ] = None,
) -> EventList:
    """List what has happened to an execution, oldest first; the output is on its stream."""
    require(principal, Scope.READ)
    execution = await queries.execution(principal, execution_id)
    wanted = set(event_types or ())
    steps = [
        step
        for step in execution.history
        if step.version > int(cursor or 0) and (not wanted or step.type.replace(".", "_") in wanted)
    ]
    causes = await browser.causes(execution_id)
    correlation = execution.correlation
    events = [
        EventAnswer(
            event_type=step.type.replace(".", "_"),
            event_id=execution.event_id(step.version),
            execution_id=execution.id,
            attempt=step.attempt,
            timestamp=step.at,
            status=step.status,
            reason=step.reason,
            correlation_id=correlation and correlation.id,
            causation_id=causes.get(execution.event_id(step.version)),
        )
        for step in steps[:limit]
    ]
    return EventList(events=events, next_cursor=str(steps[limit - 1].version) if len(steps) > limit else None)


@router.post(
    "/executions/{execution_id}/cancel",
    response_model=CancelAnswer,
    responses=_change("malformed_json", "already_terminal"),
)
async def cancel_execution(
    execution_id: ExecutionIdPath,
    principal: PrincipalDep,
    submissions: FromDishka[Submissions],
    body: CancelRequest | None = None,
) -> CancelAnswer:
    """Ask for the end of an execution; a running program is gone within a second."""
    require(principal, Scope.EXECUTE)
    execution = await submissions.cancel(principal, execution_id, body.reason if body else None)
    if execution.status is Status.CANCELLED:
        return CancelAnswer(execution_id=execution_id, status="cancelled", message="the execution never started")
    return CancelAnswer(
        execution_id=execution_id, status="cancellation_requested", message="the program is being ended"
    )


@router.post(
    "/executions/{execution_id}/retry",
    response_model=Accepted,
    responses=_change(
        "not_terminal",
        "runtime_unknown",
        "version_unknown",
        "packages_disabled",
        "limit_out_of_range",
        "idempotency_conflict",
        "queue_full",
        "draining",
    ),
)
async def retry_execution(
    execution_id: ExecutionIdPath,
    principal: PrincipalDep,
    submissions: FromDishka[Submissions],
    requested: RequestedDep,
    idempotency_key: Annotated[
        str | None, Header(description="the same key gives the same execution for 24 hours", examples=["order-4711"])
    ] = None,
) -> Accepted:
    """Run the same source with the same limits again, as a new execution."""
    require(principal, Scope.EXECUTE)
    accepted = await submissions.retry(principal, execution_id, idempotency_key, requested)
    return Accepted(execution_id=accepted, status=Status.QUEUED)


@router.delete("/executions/{execution_id}", status_code=204, responses=_change("not_terminal"))
async def delete_execution(
    execution_id: ExecutionIdPath, principal: PrincipalDep, submissions: FromDishka[Submissions]
) -> None:
    """Remove an ended execution with its tape (administrators only)."""
    require(principal, Scope.ADMIN)
    await submissions.delete(principal, execution_id)


@router.get(
    "/user/executions",
    response_model=ExecutionList,
    responses=documented("unauthenticated", "scope_missing", "validation_failed", "rate_limited"),
)
async def list_executions(
    principal: PrincipalDep,
    queries: FromDishka[Queries],
    status: Status | None = None,
    lang: Annotated[str | None, Query(examples=["python"])] = None,
    start_time: Annotated[
        datetime | None, Query(description="created at this time or later", examples=["2026-01-31T12:00:00Z"])
    ] = None,
    end_time: Annotated[
        datetime | None, Query(description="created before this time", examples=["2026-02-01T00:00:00Z"])
    ] = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> ExecutionList:
    """List the caller's executions, newest first."""
    require(principal, Scope.READ)
    for name, value in (("start_time", start_time), ("end_time", end_time)):
        if value is not None and value.tzinfo is None:
            raise ValidationFailed("give the time with its zone, as in 2026-01-31T12:00:00Z", field=name)
    where = ExecutionFilter(
        user_id=principal.user_id, status=status, lang=lang, created_from=start_time, created_before=end_time
    )
    page, next_cursor = await queries.list(where, limit, execution_cursor(cursor))
    return ExecutionList(executions=[ExecutionAnswer.of(execution) for execution in page], next_cursor=next_cursor)
