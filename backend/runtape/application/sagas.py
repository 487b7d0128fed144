"""Reading and cancelling sagas, by the rights that somebody has on their executions."""

from collections.abc import Sequence
from dataclasses import replace

from runtape.application.queries import Queries
from runtape.application.submission import Submissions
from runtape.domain.errors import NotFound
from runtape.domain.identity import Principal, Scope
from runtape.domain.ids import ExecutionId
from runtape.domain.saga import Saga, settled
from runtape.ports.stores import SagaFilter, SagaStore


class Sagas:
    """Sagas for principals; a saga has the id of its execution."""

    def __init__(self, *, sagas: SagaStore, queries: Queries, submissions: Submissions) -> None:
        self._sagas = sagas
        self._queries = queries
        self._submissions = submissions

    async def saga(self, principal: Principal, execution_id: ExecutionId) -> Saga:
        """Return the saga.  Raises: NotFound, also when it belongs to another project or has not begun yet."""
        execution = await self._queries.execution(principal, execution_id)
        saga = await self._sagas.get(execution_id)
        if saga is None:
            raise NotFound(f"no saga of execution {execution_id}")
        return settled(saga, execution.status)

    async def list(
        self, principal: Principal, where: SagaFilter, limit: int, before: ExecutionId | None
    ) -> tuple[Sequence[Saga], ExecutionId | None]:
        """Return up to `limit` sagas, newest first, and where the next page begins.

        Administrators see all of them, everybody else those of their own executions.
        """
        if Scope.ADMIN not in principal.scopes:
            where = replace(where, user_id=principal.user_id)
        found = await self._sagas.list(where, limit + 1, before)
        page = found[:limit]
        return page, page[-1].execution_id if len(found) > limit else None

    async def cancel(self, principal: Principal, execution_id: ExecutionId, reason: str | None) -> Saga:
        """Cancel the execution, whatever step its saga is at, and return the saga as it then stands.

        Raises: NotFound; AlreadyTerminal.
        """
        await self.saga(principal, execution_id)
        await self._submissions.cancel(principal, execution_id, reason)
        return await self.saga(principal, execution_id)
