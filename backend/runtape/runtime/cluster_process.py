"""The life of a process of the cluster profile: an API server, or a worker with its health over HTTP.

A process listens from its first moment.  One that cannot reach a part waits for it: it lives, is not ready, and says
for what.  SIGTERM lets a worker finish what it runs, within `worker.drain_s`; a second signal ends the process at once.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine

import structlog
from dishka import Provider
from starlette.types import Receive, Scope, Send

from runtape.api.app import make_app
from runtape.api.gate import MAX_BODY_BYTES
from runtape.api.health import LIVE, READY, HealthRoutes
from runtape.api.starting import UntilStarted
from runtape.application.health import Health
from runtape.ports.clock import Clock
from runtape.ports.errors import InfrastructureError, Transient
from runtape.runtime.cluster import WAIT_S, ClusterService, NoPodsProvider
from runtape.runtime.logging import configure_logging
from runtape.runtime.roles import Role
from runtape.runtime.serving import http_server, listen, loop_factory, on_signals, settle_memory, url_of
from runtape.runtime.settings import InvalidSettings, Settings

log = structlog.get_logger(__name__)

GIVE_UP_S = 2.0
"""How long a start that is broken off may take to end."""


def run(role: Role, pods: Provider | None = None) -> int:
    """Work as `role` until a signal, and return the exit code; ``python -m workers.<role>`` comes here."""
    try:
        settings = Settings.read(profile="cluster")
    except InvalidSettings as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    configure_logging(settings.log_level)
    service = ClusterService(settings, role, pods or _pods(settings, role))
    host, port = settings.worker.host, settings.worker.port
    return _run(host, port, lambda: _work(settings, service, host, port))


def _pods(settings: Settings, role: Role) -> Provider:
    """Return what runs programs, or looks after them; what that needs is imported by no other role."""
    if role not in (Role.K8S_WORKER, Role.POD_MONITOR):
        return NoPodsProvider()
    if settings.worker.pods == "kubernetes":
        from runtape.runtime.providers.kubernetes import KubernetesMonitorProvider, KubernetesProvider

        return KubernetesProvider(looks_at_network=True) if role is Role.K8S_WORKER else KubernetesMonitorProvider()
    if role is Role.POD_MONITOR:
        return NoPodsProvider()
    from runtape.runtime.providers.sandbox import LocalSandboxProvider

    return LocalSandboxProvider()


def _rooms(settings: Settings) -> Provider:
    """Return what tells an API how much room there is for programs."""
    if settings.worker.pods == "kubernetes":
        from runtape.runtime.providers.kubernetes import KubernetesRoomProvider

        return KubernetesRoomProvider()
    return NoPodsProvider()


def serve(settings: Settings, host: str, port: int) -> int:
    """Serve the API on `host` and `port` until a signal, and return the exit code."""
    configure_logging(settings.log_level)
    service = ClusterService(settings, None, _rooms(settings))
    return _run(host, port, lambda: _serve(settings, service, host, port))


def _run(host: str, port: int, work: Callable[[], Coroutine[object, object, None]]) -> int:
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(work())
    except InfrastructureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot serve on {host}:{port}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings, service: ClusterService, host: str, port: int) -> None:
    stopping = asyncio.Event()
    on_signals(stopping)
    listener = listen(host, port, settings.streams.send_timeout_s)
    front = UntilStarted()
    server = http_server(front, settings.proxies)
    serving = asyncio.create_task(server.serve(sockets=[listener]))

    async def start() -> None:
        await _ensure_admin(service, settings)
        await service.start()

    try:
        if await _started(start, stopping, front.waits_for):
            front.app = await make_app(service.container, settings.allowances, MAX_BODY_BYTES)
            await _announce(service, url_of(listener))
            await asyncio.wait({serving, asyncio.create_task(stopping.wait())}, return_when=asyncio.FIRST_COMPLETED)
            await service.end_streams()
    finally:
        server.should_exit = True
        await serving
        listener.close()
        await service.stop()


async def _ensure_admin(service: ClusterService, settings: Settings) -> None:
    given = settings.admin_password.get_secret_value() if settings.admin_password else None
    password = await (await service.identity()).ensure_admin(given, generate=True)
    if password is not None:
        print(f"first start: user admin, password {password} (shown once)", flush=True)


async def _work(settings: Settings, service: ClusterService, host: str, port: int) -> None:
    stopping = asyncio.Event()
    on_signals(stopping)
    listener = listen(host, port, settings.streams.send_timeout_s)
    front = UntilStarted()
    server = http_server(front)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        if await _started(service.start, stopping, front.waits_for):
            health = await service.container.get(Health)
            front.app = _HealthAlone(HealthRoutes(health, await service.container.get(Clock)))
            await _announce(service, url_of(listener))
            await stopping.wait()
            await service.drain(settings.worker.drain_s)
    finally:
        server.should_exit = True
        await serving
        listener.close()
        await service.stop()


async def _started(
    start: Callable[[], Awaitable[None]], stopping: asyncio.Event, waits: Callable[[str], object]
) -> bool:
    """Return True once `start` has succeeded, False when the process is to end before that.

    `waits` is told what it waits for.  Raises: Permanent.
    """
    starting = asyncio.ensure_future(_persist(start, waits))
    ending = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if starting.done():
        starting.result()
        return True
    starting.cancel()
    await asyncio.wait({starting}, timeout=GIVE_UP_S)
    return False


async def _persist(start: Callable[[], Awaitable[None]], waits: Callable[[str], object]) -> None:
    while True:
        try:
            await start()
        except Transient as error:
            log.warning("start.waiting", error=str(error))
            waits(str(error))
            await asyncio.sleep(error.retry_after_s or WAIT_S)
        else:
            return


async def _announce(service: ClusterService, url: str) -> None:
    health = await service.container.get(Health)
    health.accepting = True
    settle_memory()
    print(f"ready {url}", flush=True)


class _HealthAlone:
    """ASGI: the health of a worker, and nothing else."""

    def __init__(self, routes: HealthRoutes) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if path == LIVE:
            await self._routes.live(scope, receive, send)
        elif path == READY:
            await self._routes.ready(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
