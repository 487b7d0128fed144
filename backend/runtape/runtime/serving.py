"""Serving HTTP in any process: the loop, the socket, the server, the signals."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE_S = 75
"""How long a connection stays without a request; a proxy in front has to close its own before that."""

STREAM_GRACE_S = 1
GC_THRESHOLDS = (20_000, 50, 100)
"""Fewer collections of the young generation: the loop's garbage is almost free of cycles."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the faster loop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with an event for its start."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @property
    def connections(self) -> int:
        return len(self.server_state.connections)


def http_server(app: ASGIApp, trusted_proxies: Sequence[str] = ()) -> Server:
    """Return a server for `app` that leaves logs and signals to the process.

    A request's client and scheme are those of its socket.  Where that comes from one of `trusted_proxies`, addresses
    and networks, they are what ``X-Forwarded-For`` (its last address that is not trusted itself) and
    ``X-Forwarded-Proto`` say.
    """
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=[*trusted_proxies],
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STREAM_GRACE_S,
        backlog=8192,
    )
    return Server(config)


def on_signals(stopping: asyncio.Event) -> None:
    """Set `stopping` at SIGTERM and SIGINT; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def listen(host: str, port: int, send_timeout_s: float) -> socket.socket:
    """Return a socket that is bound; a client that takes nothing for `send_timeout_s` is cut off.  Raises: OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # tcp(7): connections inherit it.  A client that takes nothing for so long is cut off by the kernel; closing its
    # connection would wait for as long as the client likes, since the server's own buffer has to be sent first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(send_timeout_s * 1000))
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Return where `listener` is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def settle_memory() -> None:
    """Say that the process is made: what there is now stays, and what comes is collected less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
