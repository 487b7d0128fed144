"""TLS in front of a part that speaks none: what comes decrypted is passed on, and kept for tests to look at."""

import asyncio
import base64
import contextlib
import ssl
import threading
from types import TracebackType
from typing import Self

from tests.rig.certificates import Authority, Pair

_REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class Terminator:
    """Listens on a port of the loopback, in a thread of its own, while it is entered.

    `clients` is the authority whose certificates clients have to show.  `basic` is the ``user:password`` that the
    first request of each connection has to bear, where HTTP is spoken; others are answered 401.
    """

    def __init__(
        self, target_port: int, pair: Pair, *, clients: Authority | None = None, basic: str | None = None
    ) -> None:
        self.port = 0
        self._target_port = target_port
        self._received: list[bytes] = []
        self._basic = None if basic is None else base64.b64encode(basic.encode())
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(pair.certificate, pair.key)
        if clients is not None:
            self._context.load_verify_locations(clients.file)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="terminator")

    @property
    def received(self) -> bytes:
        """All that clients have sent."""
        return b"".join(self._received)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)

    async def _end(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = b""
            if self._basic is not None:
                head = await reader.readuntil(b"\r\n\r\n")
                self._received.append(head)
                if b"basic " + self._basic not in head.replace(b"Basic ", b"basic "):
                    writer.write(_REFUSAL)
                    await writer.drain()
                    writer.close()
                    return
            there, away = await asyncio.open_connection("127.0.0.1", self._target_port)
            away.write(head)
            await asyncio.gather(self._carry(reader, away, self._received), self._carry(there, writer, None))

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: list[bytes] | None
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if kept is not None:
                    kept.append(data)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
