"""Sagas over HTTP: what was done and given back, whose they are, and cancelling by them."""

import asyncio
from typing import Any

import pytest

from tests.e2e.server import Client, Server
from tests.e2e.test_refusals import assert_problem

ALL = ["queue", "allocate", "create", "monitor", "store"]


async def saga(client: Client, execution_id: str) -> dict[str, Any]:
    """Return the saga as it stands, told alike by both of its addresses."""
    answer = await client.get(f"/sagas/{execution_id}")
    assert answer.status_code == 200, answer.text
    assert (await client.get(f"/sagas/execution/{execution_id}")).json() == answer.json()
    return answer.json()


async def ended(client: Client, execution_id: str) -> dict[str, Any]:
    """Return the saga once it has done its last step, which it does a moment after the result is there."""
    async with asyncio.timeout(10):
        while True:
            if (await client.get(f"/sagas/{execution_id}")).json()["current_step"] is None:
                return await saga(client, execution_id)
            await asyncio.sleep(0.01)


async def listed(client: Client, **query: Any) -> list[str]:
    found: list[str] = []
    while True:
        answer = await client.get("/sagas", params=query)
        assert answer.status_code == 200, answer.text
        found += [each["saga_id"] for each in answer.json()["sagas"]]
        query["cursor"] = answer.json()["next_cursor"]
        if query["cursor"] is None:
            return found


async def test_a_saga_tells_each_step_and_its_end(client: Client) -> None:
    result = await client.run("print 1")
    told = await ended(client, result["execution_id"])
    assert (told["saga_id"], told["execution_id"]) == (result["execution_id"],) * 2
    assert (told["state"], told["current_step"], told["reason"], told["due_at"]) == ("completed", None, None, None)
    assert [step["step"] for step in told["steps"]] == told["completed_steps"] == ALL
    assert told["compensated_steps"] == []
    times = [step["began_at"] for step in told["steps"]]
    assert times == sorted(times)
    assert all(step["began_at"] <= step["done_at"] for step in told["steps"])


@pytest.mark.parametrize(
    ("script", "state"), [("end memory_limit", "failed"), ("end wall_limit", "timed_out"), ("exit 3", "completed")]
)
async def test_the_state_follows_the_end_of_the_program(client: Client, script: str, state: str) -> None:
    result = await client.run(script)
    assert (await ended(client, result["execution_id"]))["state"] == state


@pytest.mark.embedded  # what is told at once there is told a moment later by a cluster
async def test_cancelling_a_saga_compensates_what_was_done_and_nothing_else(small: Server) -> None:
    async with small.client() as client:
        running, waiting = await client.execute("wait go"), await client.execute("print 2")
        async with client.stream(running) as stream:
            await stream.until("execution_started")
        told = await saga(client, running)
        assert (told["state"], told["current_step"]) == ("running", "monitor")
        assert told["due_at"] is not None
        assert (await saga(client, waiting))["state"] == "queued"

        answer = await client.post(f"/sagas/{waiting}/cancel", json={"reason": "not needed"})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["state"], answer.json()["reason"]) == ("cancelled", "cancelled")
        assert answer.json()["compensated_steps"] == ["queue"]
        assert answer.json()["completed_steps"] == ["store"]

        answer = await client.post(f"/sagas/{running}/cancel")
        assert answer.status_code == 200, answer.text
        assert (await client.ended(running))["status"] == "cancelled"
        told = await saga(client, running)
        assert (told["state"], told["compensated_steps"]) == ("cancelled", ["allocate", "create", "monitor"])
        assert told["completed_steps"] == ["queue", "allocate", "create", "store"]
        assert_problem(await client.post(f"/sagas/{running}/cancel"), 409, "already_terminal")
        assert (await client.run("print 3"))["status"] == "completed", "the place is free"


@pytest.mark.embedded  # a server that has had no other runs
async def test_sagas_are_listed_by_state_and_execution_in_pages(small: Server) -> None:
    async with small.client() as client:
        done = [(await client.run("print 1"))["execution_id"] for _ in range(3)]
        failed = (await client.run("end memory_limit"))["execution_id"]
        running = await client.execute("wait go")
        async with client.stream(running) as stream:
            await stream.until("execution_started")
        waiting = [await client.execute("print 2") for _ in range(3)]
        newest = [*waiting[::-1], running, failed, *done[::-1]]
        assert await listed(client) == newest
        for limit in (1, 3, 8):
            assert await listed(client, limit=limit) == newest
        assert await listed(client, state="queued", limit=2) == waiting[::-1]
        assert await listed(client, state="running") == [running]
        assert await listed(client, state="failed") == [failed]
        assert await listed(client, state="completed", limit=1) == done[::-1]
        assert await listed(client, state="compensating") == await listed(client, state="created") == []
        assert await listed(client, execution_id=running) == [running]
        assert await listed(client, execution_id=running, state="queued") == []
        assert await listed(client, execution_id="nobody") == []
        small.let("go")
        for each in (running, *waiting):
            await client.ended(each)
        assert await listed(client, state="queued") == []
        assert len(await listed(client, state="completed")) == 7


async def test_a_saga_is_its_owners_and_the_administrators(client: Client, stranger: Client) -> None:
    foreign, own = await client.execute("print 1"), await stranger.execute("print 1")
    for each in (client, stranger):
        await each.ended(own if each is stranger else foreign)
    assert_problem(await stranger.get(f"/sagas/{foreign}"), 404, "not_found")
    assert_problem(await stranger.get(f"/sagas/execution/{foreign}"), 404, "not_found")
    assert_problem(await stranger.post(f"/sagas/{foreign}/cancel"), 404, "not_found")
    assert await listed(stranger, execution_id=foreign) == []
    assert foreign not in await listed(stranger)
    assert await listed(stranger, execution_id=own) == [own]
    assert {foreign, own} <= set(await listed(client))
    assert (await saga(client, own))["state"] == "completed"


async def test_a_saga_that_is_none_is_not_found(client: Client) -> None:
    for path in ("/sagas/none", "/sagas/execution/none"):
        assert_problem(await client.get(path), 404, "not_found")
    assert_problem(await client.get("/sagas?state=odd"), 422, "validation_failed", "state")
    assert_problem(await client.get("/sagas?cursor=odd"), 422, "validation_failed", "cursor")
