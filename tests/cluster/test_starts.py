"""Processes that start while a part is away: the API accepts without the log, and whoever has to wait says for what."""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cluster.processes import API, ROOT, Cluster, Process
from tests.e2e.server import Client
from tests.rig.part import Part, free_port

BEGIN_S = 30.0
SOON_S = 5.0
WORKER = (sys.executable, "-m", "workers.pod_monitor")


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are taken and nothing is answered."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@asynccontextmanager
async def without(part: Part) -> AsyncIterator[None]:
    """Have no `part` until it is started."""
    await asyncio.to_thread(part.kill)
    try:
        yield
    finally:
        if not part.answers():
            await asyncio.to_thread(part.start)


@asynccontextmanager
async def one_more(cluster: Cluster) -> AsyncIterator[tuple[Process, Client]]:
    """A process of the API that has just begun, and the admin there."""
    process = cluster.api(f"http://127.0.0.1:{free_port()}")
    try:
        async with cluster.client_of(process) as client:
            yield process, client
    finally:
        await asyncio.to_thread(process.stop)


async def begun(process: Process) -> None:
    """Wait until the process says that it is ready."""
    async with asyncio.timeout(BEGIN_S):
        await asyncio.to_thread(process.until_ready)


async def readiness(client: Client) -> tuple[int, dict[str, Any]]:
    """Return what the process says of itself once it listens."""
    async with asyncio.timeout(BEGIN_S):
        while True:
            with contextlib.suppress(httpx2.TransportError):
                answer = await client.get("/health/ready")
                return answer.status_code, answer.json()
            await asyncio.sleep(0.05)


async def until(client: Client, status: str) -> dict[str, str]:
    """Wait until the process says so of itself; return what it says of its parts."""
    async with asyncio.timeout(BEGIN_S):
        while (found := (await readiness(client))[1])["status"] != status:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.1)
    return found["parts"]


async def until_told(client: Client, status: int, part: str, beginning: str) -> None:
    """Wait until the process says so of a part, and see that it answers with `status` until then."""
    async with asyncio.timeout(BEGIN_S):
        while True:
            found, body = await readiness(client)
            assert found == status, body
            if body["parts"][part].startswith(beginning):
                return
            assert body["parts"][part] != "ok"
            await asyncio.sleep(0.1)


@pytest.mark.needs("kafka", "mongo", "redis", "registry", "alone", "own")
@pytest.mark.timeout(120)
class TestTheApi:
    @pytest.mark.parametrize(
        ("name", "told"), [("kafka", "Kafka does not answer"), ("registry", "the registry does not answer")]
    )
    async def test_it_accepts_without_the_log_and_the_run_goes_once_there_is_one(
        self, cluster: Cluster, name: str, told: str
    ) -> None:
        part: Part = getattr(cluster, name)
        async with without(part), cluster.client_of(cluster.apis[0]) as older, one_more(cluster) as (process, client):
            # One that has begun before knows its schemas, and misses Kafka alone.
            assert (await readiness(older))[1]["status"] == ("degraded" if name == "kafka" else "ready")
            await begun(process)
            await until_told(client, 200, "log", told)
            execution_id = await client.execute(f"print without {name}")
            assert (await client.get(f"/executions/{execution_id}")).json()["status"] == "queued"
            await asyncio.to_thread(part.start)
            result = await client.ended(execution_id)
            assert (result["status"], result["stdout"]) == ("completed", f"without {name}\n")
            assert set((await until(client, "ready")).values()) == {"ok"}

    async def test_it_accepts_without_redis_and_the_run_goes_once_there_is_one(self, cluster: Cluster) -> None:
        async with without(cluster.redis), one_more(cluster) as (process, client):
            await begun(process)
            await until_told(client, 200, "limits", "Redis does not answer")
            assert (await readiness(client))[1]["status"] == "degraded"
            execution_id = await client.execute("print without redis")
            await asyncio.to_thread(cluster.redis.start)
            result = await client.ended(execution_id)
            assert (result["status"], result["stdout"]) == ("completed", "without redis\n")
            assert set((await until(client, "ready")).values()) == {"ok"}

    async def test_it_waits_for_mongodb_says_so_and_begins_by_itself(self, cluster: Cluster) -> None:
        async with without(cluster.mongo), one_more(cluster) as (process, client):
            assert (await readiness(client))[0] == 503
            assert (await client.get("/health/live")).status_code == 200
            refused = await client.post("/execute", json={"script": "print 1", "lang": "python"})
            assert (refused.status_code, refused.json()["code"]) == (503, "starting")
            await until_told(client, 503, "service", "MongoDB does not answer")
            await asyncio.to_thread(cluster.mongo.start)
            await begun(process)
            result = await client.ended(await client.execute("print again"))
            assert (result["status"], result["stdout"]) == ("completed", "again\n")


@pytest.mark.parametrize("where", ["nobody listens", "nobody answers"])
@pytest.mark.parametrize("command", [API, WORKER], ids=["api", "worker"])
async def test_one_that_waits_for_mongodb_ends_soon(
    tmp_path: Path, silent: int, command: Sequence[str], where: str
) -> None:
    port, nowhere = free_port(), free_port()
    mongo = silent if where == "nobody answers" else nowhere
    env = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'backend'}",
        "RUNTAPE_PROFILE": "cluster",
        "RUNTAPE_WORKER__PORT": str(port),
        "RUNTAPE_KAFKA__BOOTSTRAP": f"127.0.0.1:{nowhere}",
        "RUNTAPE_REGISTRY__URL": f"http://127.0.0.1:{nowhere}",
        "RUNTAPE_MONGO__URL": f"mongodb://127.0.0.1:{mongo}/?directConnection=true",
        "RUNTAPE_REDIS__URL": f"redis://127.0.0.1:{nowhere}/0",
    }
    process = Process("waits", tmp_path, command, env, f"http://127.0.0.1:{port}").begin()
    try:
        async with Client(process.url, None) as client:
            assert (await readiness(client))[0] == 503
        began_s = time.monotonic()
        assert await asyncio.to_thread(process.stop) == 0
        assert time.monotonic() - began_s < SOON_S
    finally:
        process.close()
