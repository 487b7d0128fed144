"""The ASGI application: gate, hot routes, then FastAPI for everything else."""

from collections.abc import Mapping

from dishka import AsyncContainer
from dishka.integrations.fastapi import setup_dishka
from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from runtape import __version__
from runtape.api import openapi, problems
from runtape.api.gate import Gate
from runtape.api.raw import RawRoutes
from runtape.api.routers import (
    admin_events,
    admin_executions,
    admin_replay,
    api_keys,
    auth,
    catalog,
    dead_letters,
    executions,
    health,
    sagas,
)
from runtape.api.sse import EventStreams
from runtape.application.identity import Identity
from runtape.application.queries import Queries
from runtape.application.streaming import Streams
from runtape.application.submission import Submissions
from runtape.ports.limits import Allowance, RateLimiter

PREFIX = "/api/v1"


def make_fastapi(container: AsyncContainer | None) -> FastAPI:
    """Return the FastAPI part; without a container it can only tell its OpenAPI."""
    app = FastAPI(
        title="Runtape",
        version=__version__,
        summary="Runs other people's code safely and keeps the tape.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    api = APIRouter(prefix=PREFIX)
    for module in (
        auth,
        api_keys,
        executions,
        sagas,
        admin_executions,
        admin_events,
        admin_replay,
        dead_letters,
        catalog,
        health,
    ):
        api.include_router(module.router)
    app.include_router(api)
    problems.install(app)
    openapi.install(app)
    if container is not None:
        setup_dishka(container, app)
    return app


async def make_app(
    container: AsyncContainer,
    allowances: Mapping[str, Allowance],
    max_body_bytes: int,
) -> ASGIApp:
    """Return the whole application over the services in `container`."""
    identity = await container.get(Identity)
    raw = RawRoutes(
        make_fastapi(container),
        identity=identity,
        submissions=await container.get(Submissions),
        queries=await container.get(Queries),
        streams=EventStreams(await container.get(Streams)),
    )
    return Gate(raw, identity, await container.get(RateLimiter), allowances, max_body_bytes)
