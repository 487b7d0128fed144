"""A small application behind the real gate: the identity routes, and one route for each way that a route can answer."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from dishka import Provider, Scope, make_async_container
from dishka.integrations.fastapi import setup_dishka
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from runtape.adapters.embedded import identity_store
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.identity_store import SqliteIdentityStore
from runtape.adapters.embedded.passwords import Argon2Hasher
from runtape.adapters.embedded.rate_limiter import GcraRateLimiter
from runtape.api import handlers
from runtape.api.dependencies import PrincipalDep
from runtape.api.gate import ALLOWANCES, Gate
from runtape.api.routers import api_keys, auth
from runtape.application.identity import Identity
from runtape.domain.errors import IdempotencyConflict, QueueFull
from runtape.ports.errors import Permanent, Transient
from runtape.ports.limits import Allowance
from tests.clocks import CountingIds, ManualClock

PASSWORD = "correct horse battery staple"
SECRET = "hunter2-must-not-leak"

router = APIRouter()


class Limits(BaseModel):
    wall_s: float = Field(default=1, gt=0)


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")
    script: str
    password: str = Field(default="", max_length=5)
    limits: Limits = Limits()


@router.post("/execute")
async def execute(request: Request) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@router.post("/executions/{execution_id}/retry")
async def retry(execution_id: str) -> dict[str, str]:
    return {"execution_id": execution_id}


@router.post("/orders")
async def order(body: Order) -> Order:
    return body


@router.get("/orders")
async def orders(limit: int) -> dict[str, int]:
    return {"limit": limit}


@router.get("/open")
async def anyone() -> dict[str, str]:
    return {"for": "anyone"}


@router.get("/cached")
async def cached() -> Response:
    return Response("public", headers={"cache-control": "public, max-age=600"})


@router.get("/private")
async def private(principal: PrincipalDep) -> dict[str, str]:
    return {"username": principal.username}


@router.get("/health/live")
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get("/fails/{how}")
async def fails(how: str) -> None:
    raise {
        "unhandled": RuntimeError(f"the password is {SECRET}"),
        "permanent": Permanent(f"the password is {SECRET}"),
        "transient": Transient(f"the password is {SECRET}", retry_after_s=2.5),
        "queue": QueueFull("1000 executions wait", retry_after_s=7),
        "conflict": IdempotencyConflict("the key was used for another body", field="Idempotency-Key"),
        "teapot": HTTPException(418, "no coffee here"),
        "range": HTTPException(416, "beyond the end"),
    }[how]


@dataclass(slots=True)
class SmallApp:
    """The parts of one running application; `client` speaks to it through the gate."""

    app: FastAPI
    gate: Gate
    identity: Identity
    store: SqliteIdentityStore
    database: Database
    clock: ManualClock
    client: httpx2.AsyncClient

    def from_peer(self, address: str, *, scheme: str = "http") -> httpx2.AsyncClient:
        """Return a client without cookies whose socket's address is `address`."""
        return _client(self.gate, address, scheme)

    async def log_in(self, client: httpx2.AsyncClient | None = None) -> str:
        """Log the admin in through `client` and return the CSRF token."""
        form = {"username": "admin", "password": PASSWORD}
        answer = await (client or self.client).post("/api/v1/auth/login", data=form)
        assert answer.status_code == 200, answer.text
        return answer.json()["csrf_token"]


@asynccontextmanager
async def small_app(
    folder: Path, allowances: Mapping[str, Allowance] = ALLOWANCES, max_body_bytes: int = 1000
) -> AsyncIterator[SmallApp]:
    """Run the application over a store in `folder`, with the user admin."""
    # What is grown in advance for speed costs a test 0.3 s.
    database = Database(folder / "runtape.db", identity_store.SCHEMA, wal_bytes=1 << 16)
    await database.open()
    clock = ManualClock()
    store = SqliteIdentityStore(database)
    hasher = Argon2Hasher(memory_kib=8, passes=1)
    identity = Identity(store, hasher, clock, CountingIds())
    await identity.ensure_admin(PASSWORD)
    provider = Provider(scope=Scope.APP)
    provider.provide(lambda: identity, provides=Identity)
    container = make_async_container(provider)
    app = FastAPI()
    handlers.install(app)
    for routes in (auth.router, api_keys.router, router):
        app.include_router(routes, prefix="/api/v1")
    app.add_api_route("/", lambda: Response("<!doctype html>", media_type="text/html"))
    setup_dishka(container, app)
    gate = Gate(app, identity, GcraRateLimiter(clock), allowances, max_body_bytes)
    try:
        async with _client(gate, "192.0.2.1", "http") as client:
            yield SmallApp(app, gate, identity, store, database, clock, client)
    finally:
        await container.close()
        hasher.close()
        await database.close()


def _client(gate: Gate, address: str, scheme: str) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=gate, client=(address, 50_000))
    return httpx2.AsyncClient(transport=transport, base_url=f"{scheme}://runtape.test")
