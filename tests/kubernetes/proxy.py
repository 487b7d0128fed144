"""A way to the API that a test breaks: for HTTP one that knows requests, for connections one that knows bytes."""

import asyncio
import contextlib
import copy
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from kubernetes_asyncio import client

CHUNK_BYTES = 65536

Fault = Callable[[web.Request], web.StreamResponse | None]


@dataclass
class HttpProxy:
    """Passes requests on; `fault` may answer one itself, and watches can be stopped, cut, or given an event."""

    configuration: client.Configuration
    """How to reach the API through it."""
    fault: Fault = lambda request: None
    watches: list["Watch"] = field(default_factory=list)
    """Those that are open."""
    lists: int = 0
    """How often pods were listed."""


@dataclass
class Watch:
    """A watch that is passed on."""

    answer: web.StreamResponse
    silent: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        """Break the connection off, without a last chunk."""
        self.ended.set()

    async def say(self, line: bytes) -> None:
        """Put in an event of our own."""
        await self.answer.write(line)


def refusal(status: int, message: str = "told by the test", **headers: str) -> web.Response:
    """Return what the API answers when it refuses."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}
    return web.json_response(body, status=status, headers=headers)


@contextlib.asynccontextmanager
async def http_proxy(configuration: client.Configuration) -> AsyncIterator[HttpProxy]:
    """Put a proxy in front of the API that `configuration` reaches."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    assert configuration.cert_file is not None
    context.load_cert_chain(configuration.cert_file, configuration.key_file)
    through = client.Configuration()
    proxy = HttpProxy(through)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            watches = "watch" in request.query
            proxy.lists += request.method == "GET" and request.path.endswith("/pods") and not watches
            refused = proxy.fault(request)
            if refused is not None:
                return refused
            url = f"{configuration.host}{request.raw_path}"
            names = ("content-type", "accept")
            headers = {name: request.headers[name] for name in names if name in request.headers}
            async with session.request(request.method, url, data=await request.read(), headers=headers) as answer:
                if not watches:
                    body = await answer.read()
                    return web.Response(body=body, status=answer.status, content_type=answer.content_type)
                return await _pass_watch_on(proxy, request, answer)

        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        through.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield proxy
        finally:
            await runner.cleanup()


async def _pass_watch_on(proxy: HttpProxy, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    told = web.StreamResponse(status=answer.status)
    await told.prepare(request)
    watch = Watch(told)
    proxy.watches.append(watch)

    async def lines() -> None:
        async for line in answer.content:
            if not watch.silent:
                await told.write(line)

    passing = asyncio.create_task(lines())
    ending = asyncio.create_task(watch.ended.wait())
    try:
        await asyncio.wait({passing, ending}, return_when=asyncio.FIRST_COMPLETED)
        if watch.ended.is_set() and request.transport is not None:
            request.transport.abort()
    finally:
        proxy.watches.remove(watch)
        for task in (passing, ending):
            task.cancel()
        await asyncio.gather(passing, ending, return_exceptions=True)
    return told


@dataclass
class ConnectionProxy:
    """Passes bytes on; a frozen one keeps its connections open and passes nothing, as a network that is gone does."""

    configuration: client.Configuration
    """How to reach the API through it."""
    connections: int = 0
    """How many were made."""
    shut: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, no connection passes any more, nor is one made."""
    _frozen: set[int] = field(default_factory=set)

    def freeze(self) -> None:
        """Let the connections that there are be dead; new ones pass."""
        self._frozen |= set(range(self.connections))

    def is_frozen(self, number: int) -> bool:
        return number in self._frozen


@contextlib.asynccontextmanager
async def connection_proxy(configuration: client.Configuration) -> AsyncIterator[ConnectionProxy]:
    """Put a proxy in front of the API that `configuration` reaches."""
    there = urlsplit(configuration.host)
    through: Any = copy.copy(configuration)
    proxy = ConnectionProxy(through)
    tasks: list[asyncio.Task[Any]] = []

    async def copy_bytes(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                if proxy.is_frozen(number):
                    await asyncio.Event().wait()
                writer.write(chunk)
                await writer.drain()
        if not proxy.is_frozen(number):
            writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        if proxy.shut.is_set():
            writer.close()
            return
        number = proxy.connections
        proxy.connections += 1
        api_reader, api_writer = await asyncio.open_connection("127.0.0.1", there.port)
        try:
            copying = (copy_bytes(number, reader, api_writer), copy_bytes(number, api_reader, writer))
            await asyncio.wait(
                {asyncio.ensure_future(asyncio.gather(*copying)), asyncio.ensure_future(proxy.shut.wait())},
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            api_writer.close()
            writer.close()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    through.host = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
