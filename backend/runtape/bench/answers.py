"""One run over a raw keep-alive connection, and whether its answer is right."""

import asyncio
import time
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from runtape.bench.errors import WrongAnswer

SCRIPT = "print(1)"
PRINTED = "1\n"
_STORED = b'"event_type":"result_stored"'
_LAST_CHUNK = b"0\r\n\r\n"

_decode = msgspec.json.Decoder().decode


def request(url: str, key: str) -> bytes:
    """Return the request that submits `SCRIPT` and asks for the stream as the answer."""
    body = msgspec.json.encode({"script": SCRIPT, "lang": "python"})
    head = (
        f"POST /api/v1/execute HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Accept: text/event-stream\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One client: runs one after another on one connection."""

    def __init__(self, sent: bytes) -> None:
        self._request = sent
        self._transport: asyncio.Transport | None = None
        self._answer = bytearray()
        self._stored_at_s = 0.0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the methods, not the base class

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(WrongAnswer(f"the connection was lost after {bytes(self._answer)[-200:]!r}"))

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        answer += data
        if not self._stored_at_s and (at := answer.find(_STORED)) >= 0 and answer.find(b"\n\n", at) >= 0:
            self._stored_at_s = time.perf_counter()
        ended = answer.endswith(_LAST_CHUNK) or (b"\r\n\r\n" in answer and not answer.startswith(b"HTTP/1.1 200"))
        if ended and self._done is not None and not self._done.done():
            self._done.set_result(None)

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed it: one that was idle for some seconds it closes."""
        return self._transport is not None and not self._transport.is_closing()

    async def run(self) -> float:
        """Submit once; return the seconds from there to the ``result_stored`` frame.  Raises: WrongAnswer."""
        assert self._transport is not None
        self._answer.clear()
        self._stored_at_s = 0.0
        self._done = asyncio.get_running_loop().create_future()
        begun_s = time.perf_counter()
        self._transport.write(self._request)
        await self._done
        check(bytes(self._answer))
        return self._stored_at_s - begun_s

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


def check(answer: bytes) -> None:
    """Check a whole answer: 200, the output before its result, exit code 0, then the end.  Raises: WrongAnswer."""
    head, _, chunks = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise WrongAnswer(f"answered {answer[:400]!r}")
    frames = [_frame(text) for text in _unchunked(chunks).split(b"\n\n") if text and not text.startswith(b":")]
    printed = ""
    exit_code: object = None
    for event, data in frames[:-1]:
        if event == "output":
            printed += data["text"]
        elif data.get("event_type") == "result_stored":
            if printed != PRINTED or data["result"]["stdout"] != PRINTED:
                raise WrongAnswer(f"printed {printed!r}, and the result says {data['result']['stdout']!r}")
            exit_code = data["result"]["exit_code"]
    if exit_code != 0:
        raise WrongAnswer(f"exit code {exit_code!r} in {frames!r}")
    if not frames or frames[-1][0] != "end":
        raise WrongAnswer(f"the stream ended with {frames[-1:]!r}")


def _unchunked(chunks: bytes) -> bytes:
    body = bytearray()
    at = 0
    while True:
        line = chunks.index(b"\r\n", at)
        size = int(chunks[at:line], 16)
        if size == 0:
            return bytes(body)
        body += chunks[line + 2 : line + 2 + size]
        at = line + 2 + size + 2


def _frame(text: bytes) -> tuple[str, dict[str, Any]]:
    event, data = "", b"{}"
    for line in text.split(b"\n"):
        name, _, value = line.partition(b": ")
        if name == b"event":
            event = value.decode()
        elif name == b"data":
            data = value
    return event, _decode(data)
