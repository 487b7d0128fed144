"""Servers that the tests of a session share, and clients of them."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Client, Server, seed

OTHER, WATCHED = "other", "watched"


@pytest.fixture(scope="session")
def keys() -> dict[str, str]:
    """Keys of other users, by server and name; filled when a shared server is made."""
    return {}


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]) -> Iterator[Server]:
    """A server over simulated pods, which the whole session shares."""
    data = tmp_path_factory.mktemp("simulated") / "data"
    keys.update(seed(data, OTHER, WATCHED))
    server = Server(
        data,
        simulated=True,
        rate_limits__executions_per_minute=100_000,
        rate_limits__calls_per_minute=100_000,
        admission__running=32,
    ).start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def sandboxed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the real sandbox, which the whole session shares."""
    server = Server(
        tmp_path_factory.mktemp("sandboxed") / "data",
        rate_limits__executions_per_minute=100_000,
        rate_limits__calls_per_minute=100_000,
    ).start()
    yield server
    server.close()


@pytest.fixture
async def client(simulated: Server) -> AsyncIterator[Client]:
    """The admin of the simulated server."""
    async with simulated.client() as client:
        yield client


@pytest.fixture
async def stranger(simulated: Server, keys: dict[str, str]) -> AsyncIterator[Client]:
    """Another user of the simulated server, with a project of their own."""
    async with simulated.client(keys[OTHER]) as client:
        yield client


@pytest.fixture
async def watched(simulated: Server, keys: dict[str, str]) -> AsyncIterator[Client]:
    """A user of the simulated server who is left to the tests of events."""
    async with simulated.client(keys[WATCHED]) as client:
        yield client


@pytest.fixture
async def real(sandboxed: Server) -> AsyncIterator[Client]:
    """The admin of the server with the real sandbox."""
    async with sandboxed.client() as client:
        yield client


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers of a test's own, over simulated pods unless it says otherwise; they are stopped at its end."""
    servers: list[Server] = []

    def start(*, simulated: bool = True, data: Path | None = None, **settings: Any) -> Server:
        server = Server(data or tmp_path / f"data-{len(servers)}", simulated=simulated, **settings)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.close()
