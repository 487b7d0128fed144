"""Everybody's executions, and the queue, for administrators."""

from typing import Annotated

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Query

from runtape.api.access import require
from runtape.api.dependencies import PrincipalDep
from runtape.api.models_admission import (
    OwnedExecutionAnswer,
    OwnedExecutionList,
    PriorityAnswer,
    PriorityRequest,
    QueueAnswer,
    QueueState,
    WaitingAnswer,
)
from runtape.api.paging import ExecutionIdPath, PageCursor, PageLimit, execution_cursor
from runtape.api.problems import documented
from runtape.application.admission_control import AdmissionControl
from runtape.application.queries import Queries
from runtape.domain.errors import ValidationFailed
from runtape.domain.events import Priority
from runtape.domain.identity import Scope
from runtape.domain.outcome import Status
from runtape.ports.identity import IdentityStore
from runtape.ports.stores import ExecutionFilter

router = APIRouter(prefix="/admin/executions", route_class=DishkaRoute, tags=["admin"])

_ALWAYS = ("unauthenticated", "scope_missing", "validation_failed", "rate_limited")
_READ = documented(*_ALWAYS)
_CHANGE = documented(*_ALWAYS, "csrf_failed")

LONGEST_WAIT_S = 300.0


@router.get("", response_model=OwnedExecutionList, responses=_READ)
async def list_all_executions(
    principal: PrincipalDep,
    queries: FromDishka[Queries],
    identities: FromDishka[IdentityStore],
    status: Status | None = None,
    lang: Annotated[str | None, Query(examples=["python"])] = None,
    user: Annotated[str | None, Query(description="a user's name", examples=["alice"])] = None,
    priority: Priority | None = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> OwnedExecutionList:
    """List everybody's executions, newest first; `priority` is the one that was asked for."""
    require(principal, Scope.ADMIN)
    owner = await identities.user_by_name(user) if user is not None else None
    if user is not None and owner is None:
        raise ValidationFailed(f'there is no user "{user[:80]}"', field="user")
    where = ExecutionFilter(user_id=owner and owner.id, status=status, lang=lang, priority=priority)
    page, next_cursor = await queries.list(where, limit, execution_cursor(cursor))
    return OwnedExecutionList(executions=[OwnedExecutionAnswer.whole(each) for each in page], next_cursor=next_cursor)


@router.get("/queue", response_model=QueueAnswer, responses=_READ)
async def get_queue(
    principal: PrincipalDep, control: FromDishka[AdmissionControl], limit: PageLimit = 50, cursor: PageCursor = None
) -> QueueAnswer:
    """Show how the queue stands, and who waits, the oldest first.

    `by_priority` counts by the priority that an execution's wait has made of its own.
    """
    require(principal, Scope.ADMIN)
    page, next_cursor = await control.waiting(limit, execution_cursor(cursor))
    entries = [WaitingAnswer.of(each) for each in page]
    return QueueAnswer.of(await control.survey(), entries=entries, next_cursor=next_cursor)


@router.post("/queue/pause", response_model=QueueState, responses=_CHANGE)
async def pause_queue(principal: PrincipalDep, control: FromDishka[AdmissionControl]) -> QueueState:
    """Admit nobody until `resume`, also after a restart: who runs goes on, and who comes waits."""
    require(principal, Scope.ADMIN)
    return QueueState.of(await control.pause())


@router.post("/queue/drain", response_model=QueueState, responses=_CHANGE)
async def drain_queue(
    principal: PrincipalDep,
    control: FromDishka[AdmissionControl],
    wait_s: Annotated[
        float, Query(ge=0, le=LONGEST_WAIT_S, description="how long to wait until nothing runs any more, s")
    ] = 0.0,
) -> QueueState:
    """Accept and admit nobody until `resume`, also after a restart; new requests get 503 `draining`.

    Who waits goes on waiting, and nothing of it is lost when the service is stopped.
    """
    require(principal, Scope.ADMIN)
    return QueueState.of(await control.drain(wait_s))


@router.post("/queue/resume", response_model=QueueState, responses=_CHANGE)
async def resume_queue(principal: PrincipalDep, control: FromDishka[AdmissionControl]) -> QueueState:
    """Accept and admit again, after `pause` and after `drain`."""
    require(principal, Scope.ADMIN)
    return QueueState.of(await control.resume())


@router.put(
    "/{execution_id}/priority",
    response_model=PriorityAnswer,
    responses=documented(*_ALWAYS, "not_found", "csrf_failed", "malformed_json", "not_waiting"),
)
async def set_priority(
    execution_id: ExecutionIdPath, body: PriorityRequest, principal: PrincipalDep, control: FromDishka[AdmissionControl]
) -> PriorityAnswer:
    """Let an execution that waits do so with another priority, from now on and after a restart too."""
    require(principal, Scope.ADMIN)
    return PriorityAnswer.of(*await control.rank(execution_id, body.priority))
