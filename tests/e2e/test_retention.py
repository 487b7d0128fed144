"""What a client sees of a run whose output, and later all of it, was kept for long enough."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import pytest

from tests.e2e.server import Client, Server
from tests.e2e.test_refusals import assert_problem

pytestmark = pytest.mark.embedded  # how long things are kept is a setting of the server's

SOON_DAYS = 1e-6
PATIENCE_S = 10.0


async def until(ask: Callable[[], Awaitable[httpx2.Response]], status: int) -> httpx2.Response:
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await ask()).status_code != status:  # noqa: ASYNC110 - a sweep tells nobody
            await asyncio.sleep(0.02)
    return answer


async def test_output_goes_before_the_result_and_says_so(serve: Callable[..., Server], tmp_path: Path) -> None:
    data = tmp_path / "data"
    server = serve(data=data)
    async with server.client() as client:
        result = await client.run("print gone\neprint too")
        silent = await client.run("exit 3")
    server.stop()
    path = f"/executions/{result['execution_id']}"
    server = serve(data=data, retention__tapes_days=SOON_DAYS)
    async with server.client() as client:
        await until(lambda: client.get(f"{path}/output/stdout"), 410)
        assert_problem(await client.get(f"{path}/output/stderr"), 410, "output_expired")
        found = (await client.get(f"{path}/result")).json()
        assert (found["outcome"], found["stdout_sha256"]) == (result["outcome"], result["stdout_sha256"])
        assert (found["stdout"], found["stdout_bytes"], found["truncated_inline"]) == ("", 5, True)
        async with client.stream(result["execution_id"]) as stream:
            frames = await stream.rest()
        assert [frame.event for frame in frames if frame.event] == ["gap", "end"]
        empty = await client.get(f"/executions/{silent['execution_id']}/output/stdout")
        assert (empty.status_code, empty.content) == (200, b"")
    server.stop()
    server = serve(data=data, retention__executions_days=SOON_DAYS)
    async with server.client() as client:
        await until(lambda: client.get(f"{path}/result"), 404)
        assert (await client.get("/user/executions")).json()["executions"] == []


async def test_notifications_go_by_their_own_age_and_with_their_runs(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    data = tmp_path / "data"

    async def told(client: Client) -> list[str]:
        found = (await client.get("/notifications")).json()
        assert found["unread_count"] == len(found["notifications"])
        return [each["execution_id"] for each in found["notifications"]]

    async def until_nothing_is_told(client: Client) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await told(client):  # noqa: ASYNC110 - a sweep tells nobody
                await asyncio.sleep(0.02)

    server = serve(data=data)
    async with server.client() as client:
        first = (await client.run("end memory_limit"))["execution_id"]
        assert await told(client) == [first]
    server.stop()
    server = serve(data=data, retention__notifications_days=SOON_DAYS)
    async with server.client() as client:
        await until_nothing_is_told(client)
        assert (await client.result(first))["status"] == "failed"
    server.stop()
    server = serve(data=data)
    async with server.client() as client:
        second = (await client.run("end time_limit"))["execution_id"]
        assert await told(client) == [second]
    server.stop()
    server = serve(data=data, retention__executions_days=SOON_DAYS)
    async with server.client() as client:
        await until_nothing_is_told(client)
        assert (await client.get("/user/executions")).json()["executions"] == []
