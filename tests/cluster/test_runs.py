"""The main job over real parts: any API process, any worker, every byte once."""

import asyncio

import pytest

from tests.cluster.flood import check, flood
from tests.e2e.server import Client

pytestmark = pytest.mark.needs("kafka", "mongo", "redis", "registry")


async def test_a_run_is_submitted_to_one_and_watched_at_the_other(clients: list[Client]) -> None:
    one, other = clients
    execution_id = await one.execute("print hello\nprint world")
    result = await other.ended(execution_id)
    assert (result["stdout"], result["status"]) == ("hello\nworld\n", "completed")
    assert await one.result(execution_id) == await other.result(execution_id)


@pytest.mark.timeout(180)
async def test_two_hundred_runs_end_once_each(clients: list[Client]) -> None:
    found = await flood(clients, "burst", 200, over_s=0)
    await check(clients[0], "burst", found)


async def test_a_run_that_waits_is_cancelled_from_the_other_process(clients: list[Client]) -> None:
    one, other = clients
    execution_id = await one.execute("print begun\nwait for-ever")
    async with one.stream(execution_id) as stream:
        await stream.until("output")
        answer = await other.post(f"/executions/{execution_id}/cancel", json={"reason": "enough"})
        assert answer.status_code in (200, 202), answer.text
        frames = await stream.rest()
    assert frames[-1].event == "end"
    assert (await other.result(execution_id))["status"] == "cancelled"


async def test_the_same_key_is_the_same_run_at_both(clients: list[Client]) -> None:
    ids = await asyncio.gather(*(clients[n % 2].execute("print 1", key="once") for n in range(10)))
    assert len(set(ids)) == 1
