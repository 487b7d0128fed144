"""What FastAPI's routes depend on: who asks, and by what the request can be found again."""

from typing import Annotated

from fastapi import Depends, Request

from runtape.api.access import principal_of, requested_by
from runtape.application.submission import Requested
from runtape.domain.identity import Principal


async def _requested(request: Request) -> Requested:
    return requested_by(request.scope)


RequestedDep = Annotated[Requested, Depends(_requested)]
"""By what a route's request can be found again."""


async def _principal(request: Request) -> Principal:
    return principal_of(request.scope)


PrincipalDep = Annotated[Principal, Depends(_principal)]
"""The caller of a route, which answers 401 when there is none."""
