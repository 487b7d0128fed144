"""The queue over HTTP: places, fair turns, priorities, pause and drain, also over a crash."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.e2e.server import Client, Server, seed
from tests.e2e.test_refusals import assert_problem

BODY = {"script": "print 1", "lang": "python"}
QUEUE = "/admin/executions/queue"


@pytest.fixture
async def admin(small: Server) -> AsyncIterator[Client]:
    async with small.client() as client:
        yield client


async def holding(client: Client, name: str) -> str:
    """Take the one place, until the server lets `name` go."""
    execution_id = await client.execute(f"wait {name}")
    async with client.stream(execution_id) as stream:
        await stream.until("execution_started")
    return execution_id


async def lined_up(client: Client, script: str = "print 1", **fields: Any) -> str:
    """Submit a run, and return its id once it stands in line, which is a moment after it was accepted."""
    execution_id = await client.execute(script, **fields)
    async with asyncio.timeout(20):
        while (await client.get(f"/executions/{execution_id}")).json()["queue"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # its stream tells places with its heartbeats alone
    return execution_id


async def standing(client: Client, active: int, depth: int) -> dict[str, Any]:
    """Return the queue once so many run and wait: who has ended gives its place back a moment later."""
    async with asyncio.timeout(20):
        while (found := await queue(client))["active_count"] != active or found["queue_depth"] != depth:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # nobody is told
    return found


async def queue(client: Client, **query: Any) -> dict[str, Any]:
    answer = await client.get(QUEUE, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def change(client: Client, what: str, **query: Any) -> dict[str, Any]:
    answer = await client.post(f"{QUEUE}/{what}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def rank(client: Client, execution_id: str, priority: str) -> dict[str, Any]:
    answer = await client.http.put(f"/admin/executions/{execution_id}/priority", json={"priority": priority})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def order_of(client: Client, *ids: str) -> list[str]:
    """Return the ids in the order in which they were admitted, once all have ended."""
    started = {each: (await client.ended(each))["started_at"] for each in ids}
    return sorted(ids, key=lambda each: started[each])


async def test_who_waits_is_told_its_place(small: Server, admin: Client) -> None:
    first = await holding(admin, "told-place")
    line = [await lined_up(admin) for _ in range(2)]
    for position, each in enumerate(line, 1):
        execution = (await admin.get(f"/executions/{each}")).json()
        assert (execution["status"], execution["queue"]["position"]) == ("queued", position)
        assert execution["queue"]["estimated_wait_s"] > 0
    small.let("told-place")
    for each in (first, *line):
        await admin.ended(each)
        assert (await admin.get(f"/executions/{each}")).json()["queue"] is None


async def test_the_queue_is_shown_in_pages(small: Server, admin: Client) -> None:
    assert (await standing(admin, 0, 0))["entries"] == []
    first = await holding(admin, "in-pages")
    line = [await lined_up(admin, priority=priority) for priority in ("low", "normal", "critical")]
    whole = await queue(admin)
    assert (whole["gate"], whole["drained"], whole["queue_depth"], whole["active_count"]) == ("open", False, 3, 1)
    assert whole["capacity"]["running"] == 1
    assert whole["by_priority"] == {"critical": 1, "high": 0, "normal": 1, "low": 1, "background": 0}
    assert list(whole["by_project"].values()) == [{"waiting": 3, "running": 1}]
    assert [each["execution_id"] for each in whole["entries"]] == line
    assert [each["position"] for each in whole["entries"]] == [3, 2, 1]
    assert [each["priority"] for each in whole["entries"]] == ["low", "normal", "critical"]
    assert [each["current_priority"] for each in whole["entries"]] == ["low", "normal", "critical"]
    page = await queue(admin, limit=2)
    rest = await queue(admin, limit=2, cursor=page["next_cursor"])
    assert [each["execution_id"] for each in page["entries"] + rest["entries"]] == line
    assert rest["next_cursor"] is None
    small.let("in-pages")
    assert await order_of(admin, first, *line) == [first, *line[::-1]]


async def test_a_line_that_is_full_tells_when_to_come_again(small: Server, admin: Client) -> None:
    first = await holding(admin, "full-line")
    line = [await lined_up(admin) for _ in range(4)]
    answer = await admin.post("/execute", json=BODY)
    assert_problem(answer, 503, "queue_full")
    assert answer.json()["retry_after_s"] == int(answer.headers["retry-after"]) >= 1
    small.let("full-line")
    for each in (first, *line):
        await admin.ended(each)
    assert (await admin.run("print 2"))["status"] == "completed"


async def test_priority_is_changed_while_it_waits_and_not_after(small: Server, admin: Client) -> None:
    first = await holding(admin, "changed-priority")
    one, two, three = [await lined_up(admin) for _ in range(3)]
    ranked = await rank(admin, three, "high")
    shown = next(each for each in (await queue(admin))["entries"] if each["execution_id"] == three)
    wait_s = shown["estimated_wait_s"]
    assert wait_s > 0
    assert ranked == {
        "execution_id": three,
        "priority": "high",
        "queue": {"position": 1, "estimated_wait_s": wait_s},
    }
    await rank(admin, one, "background")
    assert (await admin.get(f"/sagas/{three}")).json()["priority"] == "high"
    path = f"/admin/executions/{first}/priority"
    assert_problem(await admin.http.put(path, json={"priority": "low"}), 409, "not_waiting")
    answer = await admin.http.put("/admin/executions/none/priority", json={"priority": "low"})
    assert_problem(answer, 404, "not_found")
    answer = await admin.http.put(f"/admin/executions/{two}/priority", json={"priority": "odd"})
    assert_problem(answer, 422, "validation_failed", "priority")
    small.let("changed-priority")
    assert await order_of(admin, first, one, two, three) == [first, three, two, one]
    answer = await admin.http.put(f"/admin/executions/{two}/priority", json={"priority": "low"})
    assert_problem(answer, 409, "not_waiting")


async def test_pause_admits_nobody_and_touches_nobody(small: Server, admin: Client) -> None:
    first = await holding(admin, "pause")
    assert (await change(admin, "pause"))["gate"] == "paused"
    second = await lined_up(admin, "print 2")
    small.let("pause")
    assert (await admin.ended(first))["status"] == "completed"
    third = await lined_up(admin, "print 3")
    state = await standing(admin, 0, 2)
    assert [each["execution_id"] for each in state["entries"]] == [second, third]
    assert (await change(admin, "resume"))["gate"] == "open"
    assert await order_of(admin, second, third) == [second, third]


async def test_drain_refuses_what_is_new_and_tells_when_nothing_runs(small: Server, admin: Client) -> None:
    first = await holding(admin, "drain")
    second = await lined_up(admin, "print 2", key="second")
    state = await change(admin, "drain")
    assert (state["gate"], state["drained"], state["active_count"], state["queue_depth"]) == ("draining", False, 1, 1)
    answer = await admin.post("/execute", json=BODY)
    assert_problem(answer, 503, "draining")
    assert answer.json()["retry_after_s"] == int(answer.headers["retry-after"]) == 30
    assert_problem(await admin.post(f"/executions/{first}/retry"), 409, "not_terminal")
    assert await admin.execute("print 2", key="second") == second, "what was accepted stays so"
    drained = asyncio.ensure_future(change(admin, "drain", wait_s=30))
    small.let("drain")
    state = await drained
    assert (state["drained"], state["active_count"], state["queue_depth"]) == (True, 0, 1)
    assert_problem(await admin.post(f"/executions/{first}/retry"), 503, "draining")
    await change(admin, "resume")
    assert (await admin.ended(second))["status"] == "completed"
    assert (await admin.run("print 4"))["status"] == "completed"


@pytest.mark.embedded  # a cluster's processes die one by one: tests/cluster
async def test_pause_and_priorities_survive_a_crash(serve: Callable[..., Server], small: Server) -> None:
    async with small.client() as admin:
        await holding(admin, "go")
        line = [await admin.execute("print 1", priority=priority) for priority in ("high", "normal", "low")]
        await rank(admin, line[2], "critical")
        await rank(admin, line[0], "background")
        await change(admin, "pause")
    small.kill()
    again = serve(data=small.data, admission__running=1, rate_limits__calls_per_minute=100_000)
    async with again.client() as admin:
        state = await queue(admin)
        assert (state["gate"], state["queue_depth"]) == ("paused", 3)
        entries = {each["execution_id"]: (each["priority"], each["position"]) for each in state["entries"]}
        assert entries == {line[0]: ("background", 3), line[1]: ("normal", 2), line[2]: ("critical", 1)}
        await change(admin, "resume")
        again.let("go")
        assert await order_of(admin, *line) == [line[2], line[1], line[0]]
    assert again.stop() == 0


@pytest.mark.embedded  # it has room for a longer line, and a user of its own
async def test_a_heavy_project_does_not_keep_a_light_one_waiting(serve: Callable[..., Server], tmp_path: Any) -> None:
    data = tmp_path / "fair"
    keys = await asyncio.to_thread(seed, data, "light")
    server = serve(data=data, admission__running=1, rate_limits__calls_per_minute=100_000)
    async with server.client() as heavy, server.client(keys["light"]) as light:
        first = await holding(heavy, "go")
        flood = [await heavy.execute("print 1") for _ in range(20)]
        one = await light.execute("print 1")
        assert (await light.get(f"/executions/{one}")).json()["queue"]["position"] <= 2
        server.let("go")
        order = await order_of(heavy, first, *flood, one)
        assert order.index(one) <= 2


async def test_everybodys_executions_are_listed_for_administrators(client: Client, stranger: Client) -> None:
    own = await client.execute("print 1", "bash", priority="low")
    foreign = await stranger.execute("end memory_limit", priority="high")
    await client.ended(own)
    await stranger.ended(foreign)

    async def listed(**query: Any) -> list[dict[str, Any]]:
        answer = await client.get("/admin/executions", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["executions"]

    both = await listed(limit=2)
    assert [each["execution_id"] for each in both] == [foreign, own]
    assert both[0]["user_id"] == "user-other"
    assert both[0]["project_id"] == "project-other"
    assert both[0]["user_id"] != both[1]["user_id"]
    assert (await listed(user="other"))[0]["execution_id"] == foreign
    assert own not in [each["execution_id"] for each in await listed(user="other")]
    assert (await listed(priority="high"))[0]["execution_id"] == foreign
    assert {each["priority"] for each in await listed(priority="low")} == {"low"}
    assert (await listed(status="failed"))[0]["execution_id"] == foreign
    assert (await listed(lang="bash", priority="low", status="completed"))[0]["execution_id"] == own
    assert_problem(await client.get("/admin/executions?user=nobody"), 422, "validation_failed", "user")


ADMIN_ONLY = [
    ("GET", "/admin/executions"),
    ("GET", QUEUE),
    ("POST", f"{QUEUE}/pause"),
    ("POST", f"{QUEUE}/drain"),
    ("POST", f"{QUEUE}/resume"),
    ("PUT", "/admin/executions/x/priority"),
]


@pytest.mark.parametrize(("method", "path"), ADMIN_ONLY)
async def test_only_administrators_come_to_the_queue(method: str, path: str, client: Client, stranger: Client) -> None:
    body = {"priority": "low"} if method == "PUT" else None
    assert_problem(await stranger.http.request(method, path, json=body), 403, "scope_missing")
    assert (await queue(client))["gate"] == "open"
