"""A proxy in front of the API server that loses answers, or refuses, as a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from enum import Enum, auto
from typing import Any

import aiohttp
from aiohttp import web
from kubernetes_asyncio import client


class Fault(Enum):
    """What becomes of a request."""

    LOSE_ANSWER = auto()
    """It is carried out, and the connection is cut instead of an answer."""
    REFUSE = auto()
    """It is answered with 503, and not carried out."""


Faults = Callable[[str, str], Fault | None]
"""Says by method and URL, from its path on, what becomes of a request; None: what should."""

_HOP = frozenset({"host", "connection", "content-length", "transfer-encoding", "content-encoding", "upgrade"})


@contextlib.asynccontextmanager
async def proxied(configuration: client.Configuration, faults: Faults) -> AsyncIterator[client.Configuration]:
    """Yield how to reach the API of `configuration` over the proxy, which takes its identity along."""
    async with client.ApiClient(configuration) as upstream:
        session: aiohttp.ClientSession = upstream.rest_client.pool_manager

        async def handle(request: web.Request) -> web.StreamResponse:
            fault = faults(request.method, request.path_qs)
            if fault is Fault.REFUSE:
                return web.json_response({"message": "the API server is busy"}, status=503)
            if request.headers.get("upgrade"):
                return await _pass_socket(session, str(configuration.host), request)
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
            url = f"{configuration.host}{request.path_qs}"
            body = await request.read()
            async with session.request(request.method, url, headers=headers, data=body, timeout=_NEVER) as answer:
                if fault is Fault.LOSE_ANSWER:
                    await answer.read()
                    assert request.transport is not None
                    request.transport.abort()
                passed = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
                await passed.prepare(request)
                with contextlib.suppress(ConnectionError):
                    async for chunk in answer.content.iter_any():
                        await passed.write(chunk)
                return passed

        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            here = client.Configuration()
            here.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield here
        finally:
            await runner.cleanup()


_NEVER = aiohttp.ClientTimeout(total=None)


async def _pass_socket(session: aiohttp.ClientSession, host: str, request: web.Request) -> web.StreamResponse:
    protocol = request.headers["sec-websocket-protocol"]
    url = f"{host}{request.path_qs}".replace("http", "ws", 1)
    try:
        there = await session.ws_connect(url, headers={"sec-websocket-protocol": protocol})
    except aiohttp.WSServerHandshakeError as error:
        return web.json_response({"message": error.message}, status=error.status)
    here = web.WebSocketResponse(protocols=(protocol,))
    await here.prepare(request)

    async def copy(source: Any, to: Any) -> None:
        with contextlib.suppress(ConnectionError):
            async for message in source:
                await to.send_bytes(message.data)
            await to.close()

    await asyncio.gather(copy(here, there), copy(there, here))
    return here
