"""FastAPI's part of the application: every route but the hot ones."""

from dishka import AsyncContainer
from dishka.integrations.fastapi import setup_dishka
from fastapi import APIRouter, FastAPI

from runtape import __version__
from runtape.api import handlers, openapi
from runtape.api.routers import (
    admin_events,
    admin_executions,
    admin_replay,
    api_keys,
    auth,
    catalog,
    dead_letters,
    executions,
    notifications,
    sagas,
)

PREFIX = "/api/v1"
ROUTERS = (
    auth,
    api_keys,
    executions,
    notifications,
    sagas,
    admin_executions,
    admin_events,
    admin_replay,
    dead_letters,
    catalog,
)


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
    for module in ROUTERS:
        api.include_router(module.router)
    app.include_router(api)
    handlers.install(app)
    openapi.install(app)
    if container is not None:
        setup_dishka(container, app)
    return app
