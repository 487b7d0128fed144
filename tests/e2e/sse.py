"""An event stream read from a real socket, byte for byte."""

import asyncio
import base64
import json
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

WAIT_S = 15.0
"""How long any one thing may take that a test waits for."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it came: `raw` are its bytes without the empty line; `event` is empty when it is unnamed."""

    raw: bytes
    id: str | None
    event: str
    retry: str | None
    text: str

    @classmethod
    def parse(cls, raw: bytes) -> "Frame":
        fields: dict[bytes, bytes] = {}
        for line in raw.split(b"\n"):
            name, colon, value = line.partition(b": ")
            assert colon, line
            assert name in (b"id", b"event", b"retry", b"data"), line
            assert name not in fields, raw
            fields[name] = value
        identity, retry = fields.get(b"id"), fields.get(b"retry")
        return cls(
            raw,
            identity.decode() if identity is not None else None,
            fields.get(b"event", b"").decode(),
            retry.decode() if retry is not None else None,
            fields[b"data"].decode(),
        )

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.text)

    @property
    def kind(self) -> str:
        """The name of the frame, or the type of its lifecycle event."""
        return self.event or self.data["event_type"]

    @property
    def output(self) -> bytes:
        """The bytes that an ``output`` frame carries."""
        data = self.data
        return data["text"].encode() if "text" in data else base64.b64decode(data["b64"])


def kinds(frames: Iterable[Frame]) -> list[str]:
    return [frame.kind for frame in frames]


def printed(frames: Iterable[Frame], stream: str = "stdout") -> bytes:
    """Return what `frames` carry of one output stream."""
    return b"".join(frame.output for frame in frames if frame.event == "output" and frame.data["stream"] == stream)


class EventStream:
    """One connection with one request on it whose answer is a stream."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut_after_bytes: int | None = None
    ) -> None:
        self._reader = reader
        self._left_bytes = cut_after_bytes
        self._writer = writer
        self._rest = b""
        self._pieces: deque[bytes] = deque()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.heartbeats = 0

    @classmethod
    async def open(
        cls,
        url: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: bytes | None = None,
        receive_buffer_bytes: int | None = None,
        cut_after_bytes: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """Send a GET, or a POST when there is a `body`, and return once the head of the answer is there.

        With `cut_after_bytes` the connection is lost after so many bytes of the body, wherever a frame is then.
        """
        host, port = urlsplit(url).hostname, urlsplit(url).port
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        named = {} if tls is None else {"ssl": tls, "server_hostname": host}
        stream = cls(*await asyncio.open_connection(sock=sock, **named), cut_after_bytes)
        lines = [f"{'GET' if body is None else 'POST'} {target} HTTP/1.1", f"host: {host}:{port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        stream._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
        try:
            async with asyncio.timeout(WAIT_S):
                head = await stream._reader.readuntil(b"\r\n\r\n")
        except BaseException:
            stream.close()
            raise
        status, *fields = head.decode().rstrip().split("\r\n")
        stream.status = int(status.split()[1])
        stream.headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        return stream

    def close(self) -> None:
        """Break the connection off."""
        self._writer.transport.abort()

    async def whole(self) -> bytes:
        """Return the body of an answer that is no stream."""
        async with asyncio.timeout(WAIT_S):
            return await self._reader.readexactly(int(self.headers["content-length"]))

    async def next(self, wait_s: float = WAIT_S) -> Frame | None:
        """Return the next frame, None when the answer is complete.  Raises: IncompleteReadError, when it is not."""
        async with asyncio.timeout(wait_s):
            while (raw := await self._piece()) is not None:
                if not raw.startswith(b":"):
                    return Frame.parse(raw)
                self.heartbeats += 1
        return None

    async def heartbeat(self) -> None:
        """Return when the next heartbeat has come, which must be before the next frame."""
        async with asyncio.timeout(WAIT_S):
            raw = await self._piece()
        assert raw is not None, "the stream ended"
        assert raw.startswith(b":"), raw

    async def _piece(self) -> bytes | None:
        """Return the next frame or comment; None when the answer is complete."""
        while not self._pieces:
            data = await self._chunk()
            if not data:
                assert not self._rest, self._rest
                return None
            *pieces, self._rest = (self._rest + data).split(b"\n\n")
            self._pieces.extend(pieces)
        return self._pieces.popleft()

    async def _chunk(self) -> bytes:
        if self._left_bytes == 0:
            self.close()
            raise asyncio.IncompleteReadError(b"", None)
        line = await self._reader.readuntil(b"\r\n")
        size = int(line, 16)
        data = (await self._reader.readexactly(size + 2))[:-2]
        if self._left_bytes is not None:
            data = data[: self._left_bytes]
            self._left_bytes -= len(data)
        return data

    async def until(self, wanted: str | Callable[[Frame], bool]) -> list[Frame]:
        """Return the frames up to the first of that kind, or that `wanted` accepts."""
        frames: list[Frame] = []
        while (frame := await self.next()) is not None:
            frames.append(frame)
            if frame.kind == wanted if isinstance(wanted, str) else wanted(frame):
                return frames
        raise AssertionError(f"the stream ended without it: {kinds(frames)[-20:]}")

    async def rest(self) -> list[Frame]:
        """Return all frames to the end of the answer."""
        frames: list[Frame] = []
        while (frame := await self.next()) is not None:
            frames.append(frame)
        return frames
