"""A small HTTP server over real sockets whose answers a test writes byte by byte, and can break off anywhere."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

EXECUTION = "0198c0de-feed-7000-8000-000000000001"
INSTANCE = "the secret of the process in server.json"


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent; header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def live(request: Request, instance: str = INSTANCE) -> dict[str, str]:
    """Return the body of a health answer, with the proof that `instance` gives for the request's challenge."""
    challenge = request.query.removeprefix("challenge=").encode()
    return {"status": "ok", "instance_proof": hmac.new(instance.encode(), challenge, hashlib.sha256).hexdigest()}


class Reply:
    """The way back to one client."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._streaming = False
        self.gone = False

    async def json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        await self._writer.drain()

    async def content(self, data: bytes) -> None:
        self._writer.write(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
        await self._writer.drain()

    async def stream(self, *pieces: bytes) -> None:
        """Send pieces of an event stream, after its head when they are the first."""
        if not self._streaming:
            self._streaming = True
            self._writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
        for piece in pieces:
            if piece:
                self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await self._writer.drain()

    async def end(self) -> None:
        """End the stream as HTTP ends it."""
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def drop(self) -> None:
        """Break the connection off."""
        self.gone = True
        self._writer.transport.abort()

    async def cut(self) -> None:
        """Send what was written and close, in the middle of whatever it was."""
        self.gone = True
        self._writer.close()
        await self._writer.wait_closed()


Handler = Callable[[Request, Reply], Awaitable[None]]


class FakeServer:
    """Answers from a table of handlers, in a thread of its own; keeps what it was asked, and by which connection."""

    def __init__(self, handlers: dict[str, Handler] | None = None) -> None:
        self.handlers: dict[str, Handler] = handlers or {}
        self.requests: list[Request] = []
        self.connections = 0
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await _read(reader):
                self.requests.append(request)
                reply = Reply(writer)
                handler = self.handlers.get(f"{request.method} {request.path}")
                if handler is None:
                    await reply.json(404, {"detail": f"no {request.path}", "code": "not_found"})
                else:
                    await handler(request, reply)
                if reply.gone:
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode().rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    path, _, query = path.removeprefix("/api/v1").partition("?")
    return Request(method, path, query, headers, body)


def output(
    seq: int, data: bytes, *, stream: str = "stdout", attempt: int = 1, t_ns: int = 0, version: int = 2
) -> bytes:
    """Return an output frame."""
    body: dict[str, Any] = {"attempt": attempt, "seq": seq, "stream": stream, "t_ns": t_ns}
    try:
        body["text"] = data.decode()
    except UnicodeDecodeError:
        body["b64"] = base64.b64encode(data).decode()
    return f"event: output\nid: {version}.{attempt}.{seq}\ndata: {json.dumps(body)}\n\n".encode()


def lifecycle(kind: str, version: int, *, attempt: int = 1, seq: int = 0, **more: Any) -> bytes:
    """Return an unnamed frame."""
    body = {"event_type": kind, "event_id": f"{EXECUTION}.{version}", "execution_id": EXECUTION, "attempt": attempt}
    return f"id: {version}.{attempt}.{seq}\ndata: {json.dumps({**body, **more})}\n\n".encode()


def result(seq: int = 0, *, attempt: int = 1, **outcome: Any) -> bytes:
    """Return the frame that carries the result, and the end of the stream."""
    found = {
        "execution_id": EXECUTION,
        "status": "completed",
        "outcome": {"kind": "exited", "exit_code": 0, "signal": None, "phase": "run", **outcome},
        "attempt": attempt,
        "usage": {
            "wall_ns": 213_000_000,
            "cpu_user_ns": 25_000_000,
            "cpu_system_ns": 5_000_000,
            "peak_memory_bytes": 9_856_614,
            "output_bytes": 5,
        },
    }
    stored = lifecycle("result_stored", 4, attempt=attempt, seq=seq, result=found)
    return stored + b"event: end\ndata: {}\n\n"


BEGIN = lifecycle("execution_requested", 1, attempt=0) + lifecycle("execution_started", 2)
