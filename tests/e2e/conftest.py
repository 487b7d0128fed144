"""Servers that the tests of a session share, and clients of them.

What asks for `simulated`, as `client` does, is run twice: over the embedded profile and over a cluster on real parts.
What asks for `small`, which has one place, is run over both as well.
What asks for `sandboxed`, as `real` does, is run three times: over the embedded profile with its local sandbox, over a
cluster whose workers have local sandboxes, and over one whose programs run in pods.
A test that is about the embedded profile alone says so with ``@pytest.mark.embedded``.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.plugin import OTHER, WATCHED
from tests.e2e.server import Client, Server, seed

CLUSTER = pytest.param("cluster", marks=pytest.mark.needs("kafka", "mongo", "redis", "registry", "patience"))
NARROW = pytest.param("cluster", marks=[*CLUSTER.marks, pytest.mark.timeout(300)])  # it starts after the shared one
SANDBOXES = pytest.param(
    "sandboxes",
    marks=[
        pytest.mark.needs("kafka", "mongo", "redis", "registry", "sandbox", "patience"),
        pytest.mark.timeout(180),
    ],
)
PODS = pytest.param(
    "pods",
    marks=[
        pytest.mark.needs("kubernetes", "own", "kafka", "mongo", "redis", "registry"),
        pytest.mark.timeout(180),
    ],
)
CLUSTERS = {"sandboxes": "boxed", "pods": "podded"}
"""Fixtures of clusters that run real programs, by the profile that a test is run over."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    alone = metafunc.definition.get_closest_marker("embedded") is not None
    for fixture, others in (("simulated", [CLUSTER]), ("small", [NARROW]), ("sandboxed", [SANDBOXES, PODS])):
        if fixture in metafunc.fixturenames:
            profiles = ["embedded"] if alone else ["embedded", *others]
            scope = "function" if fixture == "small" else "session"
            metafunc.parametrize(fixture, profiles, indirect=True, scope=scope)


@pytest.fixture(scope="session")
def simulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service over simulated pods, which the whole session shares."""
    if request.param == "cluster":
        yield request.getfixturevalue("cluster")
        return
    data = tmp_path_factory.mktemp("simulated") / "data"
    keys = seed(data, OTHER, WATCHED)
    server = Server(
        data,
        simulated=True,
        rate_limits__executions_per_minute=100_000,
        rate_limits__calls_per_minute=100_000,
        admission__running=32,
    ).start()
    server.keys.update(keys)
    yield server
    server.close()


@pytest.fixture
def small(request: pytest.FixtureRequest, serve: Callable[..., Server]) -> Server:
    """A service over simulated pods with one place, and room for four who wait; nobody is there at the beginning."""
    if request.param == "cluster":
        return request.getfixturevalue("narrow")
    return serve(admission__running=1, admission__queued=4, rate_limits__calls_per_minute=100_000)


@pytest.fixture(scope="session")
def sandboxed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that runs real programs, which the whole session shares."""
    if request.param in CLUSTERS:
        yield request.getfixturevalue(CLUSTERS[request.param])
        return
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
async def stranger(simulated: Server) -> AsyncIterator[Client]:
    """Another user of the simulated server, with a project of their own."""
    async with simulated.client(simulated.keys[OTHER]) as client:
        yield client


@pytest.fixture
async def watched(simulated: Server) -> AsyncIterator[Client]:
    """A user of the simulated server who is left to the tests of events."""
    async with simulated.client(simulated.keys[WATCHED]) as client:
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
