"""A way to the API that a test breaks: for HTTP one that knows requests, for connections one that knows bytes."""

import asyncio
import contextlib
import copy
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from kubernetes_asyncio import client, config

CHUNK_BYTES = 65536
LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Refuse:
    """A request is answered with `status`, and not carried out."""

    status: int
    message: str = "told by the test"
    reason: str | None = None
    """Of the API's own words for it: ``AlreadyExists``, ``Conflict``."""
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Lose:
    """A request is carried out, and the connection is cut instead of an answer."""


@dataclass(frozen=True, slots=True)
class Break:
    """A request is carried out, and of its answer so many bytes come, of a whole one half of it at most.

    Then the connection is cut, unless an end is `told` as if that was all; an attachment ends either way.
    """

    after_bytes: int
    told: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    """A request is carried out, and its answer begins so much later; `on_its_way`, it is also carried out later."""

    by_s: float
    on_its_way: bool = False


Fate = Refuse | Lose | Break | Delay
Faults = Callable[[web.Request], Fate | None]
"""Says what becomes of a request; None: what should."""

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_HOP = frozenset({"host", "connection", "content-length", "transfer-encoding", "content-encoding", "upgrade"})
_NEVER = aiohttp.ClientTimeout(total=None)


def verb(request: web.Request) -> str:
    """Return what a request wants, in Kubernetes' words, but for ``attach``."""
    if request.path.endswith("/attach"):
        return "attach"
    if request.method != "GET":
        return _VERBS[request.method]
    if "watch" in request.query:
        return "watch"
    return "list" if request.path.endswith("s") else "get"


def no_fault(request: web.Request) -> None:
    """Let every request pass."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came, when by the monotonic clock, and what became of it."""

    at_s: float
    verb: str
    fate: Fate | None


@dataclass
class HttpProxy:
    """Passes requests on; `faults` has some fail, and watches can be stopped, cut, or given an event."""

    configuration: client.Configuration
    """How to reach the API through it, as whom it reaches the API."""
    faults: Faults = no_fault
    watches: list["Watch"] = field(default_factory=list)
    """Those that are open."""
    asked: list[Asked] = field(default_factory=list)
    """Every request."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    """The one that it works in."""

    def cut_watches(self) -> None:
        """Cut all watches that are open; for other threads."""
        self.loop.call_soon_threadsafe(lambda: [watch.cut() for watch in self.watches])

    @property
    def lists(self) -> int:
        """How often anything was listed."""
        return sum(each.verb == "list" for each in self.asked)


@dataclass
class Watch:
    """A watch that is passed on."""

    answer: web.StreamResponse
    silent: bool = False
    held: bool = False
    """Whether events are kept back, until it is not."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        """Break the connection off, without a last chunk."""
        self.ended.set()

    async def say(self, line: bytes) -> None:
        """Put in an event of our own."""
        await self.answer.write(line)


@contextlib.asynccontextmanager
async def http_proxy(configuration: client.Configuration, faults: Faults = no_fault) -> AsyncIterator[HttpProxy]:
    """Put a proxy in front of the API that `configuration` reaches; it takes that identity along."""
    unlimited = copy.copy(configuration)
    unlimited.connection_pool_maxsize = 0
    through = client.Configuration()
    proxy = HttpProxy(through, faults)
    async with client.ApiClient(unlimited) as upstream:
        way = _Way(proxy, upstream.rest_client.pool_manager, str(configuration.host))
        application = web.Application(client_max_size=1 << 26)
        application.router.add_route("*", "/{path:.*}", way.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            through.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield proxy
        finally:
            await runner.cleanup()


@contextlib.contextmanager
def http_proxy_beside(kubeconfig: Path, through: Path) -> Iterator[HttpProxy]:
    """Put a proxy in front of the API that `kubeconfig` names, in a thread; `through` will name the proxy."""
    begun: Future[HttpProxy] = Future()
    over = asyncio.Event()

    async def work() -> None:
        configuration = client.Configuration()
        await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        async with http_proxy(configuration) as proxy:
            begun.set_result(proxy)
            await over.wait()

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            if begun.done():
                raise
            begun.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    proxy = begun.result()
    content = {
        "clusters": [{"name": "proxy", "cluster": {"server": proxy.configuration.host}}],
        "users": [{"name": "proxy", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        "current-context": "proxy",
    }
    through.write_text(json.dumps(content))
    try:
        yield proxy
    finally:
        proxy.loop.call_soon_threadsafe(over.set)
        thread.join()


class _Way:
    """What the proxy does with each request."""

    def __init__(self, proxy: HttpProxy, session: aiohttp.ClientSession, host: str) -> None:
        self._proxy = proxy
        self._session = session
        self._host = host

    async def handle(self, request: web.Request) -> web.StreamResponse:
        fate = self._proxy.faults(request)
        self._proxy.asked.append(Asked(time.monotonic(), verb(request), fate))
        if isinstance(fate, Refuse):
            return _refusal(fate)
        if request.headers.get("upgrade"):
            return await self._pass_socket_on(request, fate)
        if isinstance(fate, Delay) and fate.on_its_way:
            await asyncio.sleep(fate.by_s)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url, body = f"{self._host}{request.path_qs}", await request.read()
        async with self._session.request(request.method, url, headers=headers, data=body, timeout=_NEVER) as answer:
            if isinstance(fate, Delay) and not fate.on_its_way:
                await asyncio.sleep(fate.by_s)
            watches = "watch" in request.query and answer.status == 200
            if watches and fate == Break(0, told=True):
                return web.Response()
            if watches and not isinstance(fate, Lose):
                return await self._pass_watch_on(request, answer, fate)
            content = b"" if watches else await answer.read()
            if isinstance(fate, Lose):
                return _cut(request)
            passed = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
            passed.content_length = len(content)
            await passed.prepare(request)
            if isinstance(fate, Break):
                await passed.write(content[: min(fate.after_bytes, len(content) // 2)])
                _cut(request)
            else:
                await passed.write(content)
            return passed

    async def _pass_watch_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, fate: Fate | None
    ) -> web.StreamResponse:
        told = web.StreamResponse(status=answer.status)
        await told.prepare(request)
        watch = Watch(told)
        self._proxy.watches.append(watch)

        async def lines() -> None:
            left = fate.after_bytes if isinstance(fate, Break) else None
            while left is None or left > 0:
                line = await answer.content.readline()
                if not line:
                    break
                while watch.held:  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)
                if not watch.silent:
                    await told.write(line[:left])
                    left = None if left is None else left - len(line)
            if isinstance(fate, Break) and not fate.told:
                watch.cut()

        passing = asyncio.create_task(lines())
        ending = asyncio.create_task(watch.ended.wait())
        try:
            await asyncio.wait({passing, ending}, return_when=asyncio.FIRST_COMPLETED)
            if watch.ended.is_set():
                _cut(request)
        finally:
            self._proxy.watches.remove(watch)
            for task in (passing, ending):
                task.cancel()
            await asyncio.gather(passing, ending, return_exceptions=True)
        return told

    async def _pass_socket_on(self, request: web.Request, fate: Fate | None) -> web.StreamResponse:
        protocol = request.headers["sec-websocket-protocol"]
        url = f"{self._host}{request.path_qs}".replace("http", "ws", 1)
        try:
            there = await self._session.ws_connect(url, headers={"sec-websocket-protocol": protocol})
        except aiohttp.WSServerHandshakeError as error:
            return _refusal(Refuse(error.status, error.message))
        async with there:
            if isinstance(fate, Lose):
                return _cut(request)
            if isinstance(fate, Delay):
                await asyncio.sleep(fate.by_s)
            here = web.WebSocketResponse(protocols=(protocol,))
            await here.prepare(request)
            left = fate.after_bytes if isinstance(fate, Break) else None

            async def copy_messages(source: Any, to: Any, left: int | None = None) -> None:
                with contextlib.suppress(ConnectionError):
                    async for message in source:
                        await to.send_bytes(message.data)
                        if left is not None and (left := left - len(message.data)) <= 0:
                            _cut(request)
                            return
                    await to.close()

            await asyncio.gather(copy_messages(here, there), copy_messages(there, here, left))
            return here


def _refusal(refuse: Refuse) -> web.Response:
    """Return what the API answers when it refuses."""
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": refuse.message,
        "code": refuse.status,
        **({"reason": refuse.reason} if refuse.reason is not None else {}),
    }
    pause = {"retry-after": str(refuse.retry_after_s)} if refuse.retry_after_s is not None else {}
    return web.json_response(body, status=refuse.status, headers=pause)


def _cut(request: web.Request) -> web.Response:
    """Cut the connection; what is returned is heard by nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


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
