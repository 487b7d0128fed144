"""Sagas: how far the control plane is with an execution, and what it had to give back."""

from typing import Annotated, Any

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Query

from runtape.api.access import require
from runtape.api.dependencies import PrincipalDep
from runtape.api.models import EXECUTION_EXAMPLE, CancelRequest
from runtape.api.models_sagas import SagaAnswer, SagaList
from runtape.api.paging import ExecutionIdPath, PageCursor, PageLimit, execution_cursor
from runtape.api.problems import documented
from runtape.application.sagas import Sagas
from runtape.domain.identity import Scope
from runtape.domain.ids import ExecutionId
from runtape.domain.saga import SagaState
from runtape.ports.stores import SagaFilter

router = APIRouter(route_class=DishkaRoute, tags=["sagas"])

_ALWAYS = ("unauthenticated", "scope_missing", "validation_failed", "rate_limited")
_READ: dict[int | str, dict[str, Any]] = documented(*_ALWAYS, "not_found")


@router.get("/sagas", response_model=SagaList, responses=documented(*_ALWAYS))
async def list_sagas(
    principal: PrincipalDep,
    sagas: FromDishka[Sagas],
    state: SagaState | None = None,
    execution_id: Annotated[ExecutionId | None, Query(examples=[EXECUTION_EXAMPLE])] = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> SagaList:
    """List the sagas of the caller's executions, newest first; administrators see everybody's."""
    require(principal, Scope.READ)
    where = SagaFilter(state=state, execution_id=execution_id)
    page, next_cursor = await sagas.list(principal, where, limit, execution_cursor(cursor))
    return SagaList(sagas=[SagaAnswer.of(saga) for saga in page], next_cursor=next_cursor)


@router.get("/sagas/{execution_id}", response_model=SagaAnswer, responses=_READ)
async def get_saga(execution_id: ExecutionIdPath, principal: PrincipalDep, sagas: FromDishka[Sagas]) -> SagaAnswer:
    """Show a saga; it has the id of its execution."""
    require(principal, Scope.READ)
    return SagaAnswer.of(await sagas.saga(principal, execution_id))


@router.get("/sagas/execution/{execution_id}", response_model=SagaAnswer, responses=_READ)
async def get_saga_of_execution(
    execution_id: ExecutionIdPath, principal: PrincipalDep, sagas: FromDishka[Sagas]
) -> SagaAnswer:
    """Show the saga of an execution."""
    require(principal, Scope.READ)
    return SagaAnswer.of(await sagas.saga(principal, execution_id))


@router.post(
    "/sagas/{execution_id}/cancel",
    response_model=SagaAnswer,
    responses=documented(*_ALWAYS, "not_found", "csrf_failed", "malformed_json", "already_terminal"),
)
async def cancel_saga(
    execution_id: ExecutionIdPath, principal: PrincipalDep, sagas: FromDishka[Sagas], body: CancelRequest | None = None
) -> SagaAnswer:
    """Cancel the execution at whatever step its saga is: what was done is compensated, and nothing else."""
    require(principal, Scope.EXECUTE)
    return SagaAnswer.of(await sagas.cancel(principal, execution_id, body.reason if body else None))
