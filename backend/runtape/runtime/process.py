"""The life of the embedded server process: its folder, its socket, its signals.

A data folder belongs to one process, which holds an exclusive ``flock`` on ``lock``.  ``server.json`` (0600)
tells the local CLI where it is and by which secret it can prove to be that, ``local.key`` (0600) lets it in.
SIGTERM ends the streams with ``shutdown``, then the server, then the sandbox; a second signal ends the process at
once.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog
from dishka import Provider

from runtape.api.app import make_app
from runtape.api.gate import MAX_BODY_BYTES
from runtape.application.health import Health
from runtape.ports.errors import InfrastructureError
from runtape.runtime.logging import configure_logging
from runtape.runtime.service import Service
from runtape.runtime.serving import Server, http_server, listen, loop_factory, on_signals, settle_memory, url_of
from runtape.runtime.settings import Settings

log = structlog.get_logger(__name__)

LOCK_FILE = "lock"
SERVER_FILE = "server.json"
KEY_FILE = "local.key"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
IDLE_CHECK_S = 0.5


class FolderInUse(Exception):
    """Another server holds the data folder."""


def serve(settings: Settings, *, host: str, port: int, ephemeral: bool, pods: Provider | None = None) -> int:
    """Serve on `host` and `port` from the folder `settings.data` until a signal, and return the exit code.

    An ephemeral server ends by itself when no run and no client is left, and quietly when the folder is in use.
    """
    data_dir = settings.data
    configure_logging(settings.log_level)
    try:
        with _folder(data_dir), asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(settings, host, port, ephemeral, pods or _local_sandbox()))
    except FolderInUse:
        if ephemeral:
            return 0
        print(f"error: another server uses {data_dir}; stop it, or choose another folder with --data", file=sys.stderr)
        return 1
    except InfrastructureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot serve on {host}:{port} from {data_dir}: {error.strerror or error}", file=sys.stderr)
        return 1


def _local_sandbox() -> Provider:
    from runtape.runtime.providers.sandbox import LocalSandboxProvider  # the tests of all else do without it

    return LocalSandboxProvider()


@contextlib.contextmanager
def _folder(data_dir: Path) -> Iterator[None]:
    """Make the folder, private to its owner, and hold its lock.  Raises: FolderInUse."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse from None
        yield
    finally:
        os.close(descriptor)


async def _serve(settings: Settings, host: str, port: int, ephemeral: bool, pods: Provider) -> int:
    stopping = asyncio.Event()
    on_signals(stopping)
    listener = listen(host, port, settings.streams.send_timeout_s)
    service = Service(settings, pods)
    try:
        await service.start()
        await _credentials(service, settings, ephemeral)
        app = await make_app(service.container, settings.allowances, MAX_BODY_BYTES, whole=not ephemeral)
        server = http_server(app, settings.proxies)
        url = url_of(listener)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve(sockets=[listener]))
            group.create_task(_announce(server, service, settings.data, url, ephemeral))
            watchers = [group.create_task(_until_stopped(stopping, service, server))]
            if ephemeral:
                watchers.append(group.create_task(_until_unused(stopping, service, server)))
            await serving
            for watcher in watchers:
                watcher.cancel()
    finally:
        (settings.data / SERVER_FILE).unlink(missing_ok=True)
        listener.close()
        await service.stop()
    return 0


async def _credentials(service: Service, settings: Settings, ephemeral: bool) -> None:
    """Make the admin on the first start, and the local CLI's key whenever it is missing.

    An ephemeral server writes to a log file, where no password belongs: the first `runtape up` shows one.
    """
    identity = await service.identity()
    given = settings.admin_password.get_secret_value() if settings.admin_password else None
    password = await identity.ensure_admin(given, generate=not ephemeral)
    if password is not None:
        print(f"first start: user admin, password {password} (shown once)", flush=True)
    path = settings.data / KEY_FILE
    present = path.read_text().strip() if path.exists() else None
    key = await identity.ensure_local_key(present)
    if key != present:
        _write_private(path, key + "\n")


async def _announce(server: Server, service: Service, data_dir: Path, url: str, ephemeral: bool) -> None:
    """Say that the server accepts work once it does."""
    await server.ready.wait()
    health = await service.container.get(Health)
    health.accepting = True
    settle_memory()
    told = {"url": url, "pid": os.getpid(), "ephemeral": ephemeral, "instance": health.instance}
    _write_private(data_dir / SERVER_FILE, json.dumps(told))
    print(f"ready {url}", flush=True)


async def _until_stopped(stopping: asyncio.Event, service: Service, server: Server) -> None:
    await stopping.wait()
    await service.end_streams()
    server.should_exit = True


async def _until_unused(stopping: asyncio.Event, service: Service, server: Server) -> None:
    """Stop once there was neither a run nor a connection at two looks in a row."""
    unused = 0
    while unused < 2:
        await asyncio.sleep(IDLE_CHECK_S)
        idle = server.started and server.connections == 0 and await service.idle()
        unused = unused + 1 if idle else 0
    stopping.set()


def _write_private(path: Path, text: str) -> None:
    """Replace the file at `path` in one step, readable by its owner alone from its first moment."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text)
    draft.replace(path)
