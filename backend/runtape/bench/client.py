"""The client process: `python -m runtape.bench.client`, told what to send on standard input.

Each line is a `Load` in JSON and is answered with one `Loaded` in JSON.  Connections stay open from one load to
the next.  It is a process of its own so that its work is not mixed into anybody else's loop.
"""

import asyncio
import sys
import time
from urllib.parse import urlsplit

import msgspec

from runtape.bench.answers import Connection, request
from runtape.bench.errors import WrongAnswer


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Send `runs` in all from `clients` at once, each sending its next when it has the answer to its last."""

    url: str
    key: str
    clients: int
    runs: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a load; `wrong` says what was wrong with an answer."""

    latencies_s: list[float]
    elapsed_s: float
    wrong: str | None = None


class Clients:
    """The open connections, by server."""

    def __init__(self) -> None:
        self._open: dict[str, list[Connection]] = {}

    @property
    def opened(self) -> list[Connection]:
        """The connections that loads have used."""
        return [each for connections in self._open.values() for each in connections]

    async def carry(self, load: Load) -> Loaded:
        """Carry out one load."""
        connections = self._open[load.url] = [each for each in self._open.get(load.url, ()) if each.is_open]
        address = urlsplit(load.url)
        assert address.hostname is not None and address.port is not None
        loop = asyncio.get_running_loop()
        while len(connections) < load.clients:
            _, connection = await loop.create_connection(
                lambda: Connection(request(load.url, load.key)), address.hostname, address.port
            )
            connections.append(connection)
        latencies_s: list[float] = []
        left = load.runs

        async def go_on(connection: Connection) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                latencies_s.append(await connection.run())

        begun_s = time.perf_counter()
        ended = await asyncio.gather(*map(go_on, connections[: load.clients]), return_exceptions=True)
        elapsed_s = time.perf_counter() - begun_s
        for failure in ended:
            if isinstance(failure, WrongAnswer):
                return Loaded(latencies_s=[], elapsed_s=0.0, wrong=str(failure))
            if failure is not None:
                raise failure
        return Loaded(latencies_s=latencies_s, elapsed_s=elapsed_s)

    def forget(self) -> None:
        """Close the connections to servers that are gone."""
        for connection in self.opened:
            connection.close()
        self._open.clear()


async def _serve() -> None:
    clients = Clients()
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        told = await clients.carry(msgspec.json.decode(line, type=Load))
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
        sys.stdout.buffer.flush()
    clients.forget()


def main() -> None:
    """Carry out loads until standard input ends."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve())
    else:
        uvloop.run(_serve())


if __name__ == "__main__":
    main()
