"""The ASGI application: gate, hot routes, then FastAPI for everything else.

Importing FastAPI and building its routes takes longer than all else that a server does before it is ready.  A server
that is started for one run does it when somebody asks for such a route, which is mostly never.
"""

import asyncio
from collections.abc import Callable, Mapping

from dishka import AsyncContainer
from starlette.types import ASGIApp, Receive, Scope, Send

from runtape.api.gate import Gate
from runtape.api.health import HealthRoutes
from runtape.api.raw import RawRoutes
from runtape.api.sse import SSEService
from runtape.application.health import Health
from runtape.application.identity import Identity
from runtape.application.queries import Queries
from runtape.application.streaming import Streams
from runtape.application.submission import Submissions
from runtape.ports.clock import Clock
from runtape.ports.limits import Allowance, RateLimiter


class Deferred:
    """ASGI: an application that is made when it is wanted, in a thread, so that streams go on meanwhile."""

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._app: ASGIApp | None = None
        self._lock = asyncio.Lock()

    async def made(self) -> ASGIApp:
        """Return the application, once it is made."""
        async with self._lock:
            if self._app is None:
                self._app = await asyncio.to_thread(self._make)
        return self._app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app or await self.made()
        await app(scope, receive, send)


async def make_app(
    container: AsyncContainer, allowances: Mapping[str, Allowance], max_body_bytes: int, *, whole: bool = True
) -> ASGIApp:
    """Return the application over the services in `container`; unless it is `whole`, its rest is made when wanted."""

    def rest() -> ASGIApp:
        from runtape.api.rest import make_fastapi

        return make_fastapi(container)

    deferred = Deferred(rest)
    if whole:
        await deferred.made()
    identity = await container.get(Identity)
    raw = RawRoutes(
        deferred,
        identity=identity,
        submissions=await container.get(Submissions),
        queries=await container.get(Queries),
        streams=SSEService(await container.get(Streams)),
        health=HealthRoutes(await container.get(Health), await container.get(Clock)),
    )
    return Gate(raw, identity, await container.get(RateLimiter), allowances, max_body_bytes)
