"""Dead letters through HTTP: a rotten row in the log of a stopped server, and what an administrator does about it."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest

from runtape.domain.events import EXECUTION_EVENTS
from tests.contract.embedded.basic import plant
from tests.e2e.server import ADMIN_PASSWORD, Client, Server
from tests.e2e.test_refusals import assert_problem

DLQ = "/admin/dlq"
ROTTEN = b'{"version": \xff}'
GROUPS = {"saga-orchestrator", "k8s-worker", "result-processor"}


async def messages(client: Client, **query: Any) -> list[dict[str, Any]]:
    """Return what all pages list, oldest first."""
    found: list[dict[str, Any]] = []
    while True:
        answer = await client.get(f"{DLQ}/messages", params=query)
        assert answer.status_code == 200, answer.text
        found += answer.json()["messages"]
        if answer.json()["next_cursor"] is None:
            return found[::-1]
        query["cursor"] = answer.json()["next_cursor"]


async def buried(client: Client, count: int, **query: Any) -> list[dict[str, Any]]:
    """Wait until as many as `count` are listed, as each group reads on its own; return all, oldest first."""
    async with asyncio.timeout(20):
        while True:
            if len(found := await messages(client, **query)) >= count:
                return found
            await asyncio.sleep(0.01)


def plant_rotten(server: Server, key: str) -> int:
    return plant(server.data / "runtape.db", EXECUTION_EVENTS, key, "execution.completed", ROTTEN)


@pytest.mark.embedded  # a row is planted in the server's file
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "stepwise"])
async def test_a_rotten_row_stops_nobody_else_and_its_key_goes_on_once_it_is_discarded(
    serve: Callable[..., Server], fused: bool
) -> None:
    server = serve(flow__fused=fused)
    async with server.client() as client:
        held = await client.execute("print before\nwait go\nprint after")
        async with client.stream(held) as stream:
            await stream.until("output")
    server.stop()
    offset = plant_rotten(server, held)
    server = serve(data=server.data, flow__fused=fused)
    async with server.client() as client:
        for number in range(3):
            assert (await client.run(f"print {number}"))["stdout"] == f"{number}\n"

        rotten = await buried(client, 3, failure="poison")
        assert {each["group"] for each in rotten} == GROUPS
        for each in rotten:
            assert (each["topic"], each["partition"], each["offset"]) == (EXECUTION_EVENTS, 0, offset)
            assert (each["key"], each["type"], each["message_id"]) == (held, "execution.completed", None)
            assert (each["status"], each["attempts"], each["size_bytes"]) == ("scheduled", 0, len(ROTTEN))
        stats = (await client.get(f"{DLQ}/stats")).json()
        assert (stats["parked_keys"], stats["level"]) == (3, "ok")
        # What the recovery published waits behind the rotten row.  Stepwise the run waits for it; fused it was handled
        # where it was published, and is out of date when its turn comes.
        behind = await buried(client, 1, failure="parked", key=held)
        assert behind[0]["type"] == "execution.restarted"
        assert {each["status"] for each in behind} == {"pending"}
        server.let("go")
        if fused:
            await client.ended(held)

        whole = (await client.get(f"{DLQ}/messages/{rotten[0]['id']}")).json()
        assert (whole["body"], base64.b64decode(whole["body_b64"])) == (None, ROTTEN)
        again = (await client.post(f"{DLQ}/messages/{rotten[0]['id']}/retry")).json()
        assert (again["status"], again["retries"], again["failure"]) == ("scheduled", 1, "poison")
        assert_problem(await client.post(f"{DLQ}/messages/{behind[0]['id']}/retry"), 409, "dead_letter_blocked")
        text = (await client.get(f"{DLQ}/messages/{behind[0]['id']}")).json()
        assert text["body_b64"] is None
        assert held in text["body"]
        assert text["headers"]["correlation_id"]
        assert text["headers"]["traceparent"].startswith("00-")

        body = {"filter": {"key": held, "failure": "poison"}, "reason": "a planted row"}
        done = (await client.post(f"{DLQ}/discard", json=body)).json()
        assert (done["counts"], done["more"]) == ({"discarded": 3}, False)
        result = await client.ended(held)
        assert (result["status"], result["stdout"], result["attempt"]) == ("completed", "before\nafter\n", 2)
        events = (await client.get(f"/executions/{held}/events")).json()["events"]
        assert [each["event_type"] for each in events].count("execution_completed") == 1
        for each in await messages(client):
            expected = ("discarded", "admin", "a planted row") if each["failure"] == "poison" else None
            assert expected is None or (each["status"], each["resolved_by"], each["reason"]) == expected
        async with asyncio.timeout(20):  # the line goes on by itself; who asks waits for it
            while (await client.get(f"{DLQ}/stats")).json()["open"]:
                await client.post(f"{DLQ}/retry", json={"filter": {"key": held}})
        assert {each["status"] for each in await messages(client, failure="parked")} == {"retried"}


@pytest.mark.embedded  # a row is planted in the server's file
async def test_dead_letters_are_there_after_a_crash_and_each_request_is_answered_for(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    server.stop()
    keys = [f"key-{number}" for number in range(4)]
    for key in keys:
        plant_rotten(server, key)
    server = serve(data=server.data)
    async with server.client() as client:
        await client.run("print 1")
        before = await buried(client, 12)
        assert len(before) == 12
    server.kill()
    server = serve(data=server.data)
    async with server.client() as client:
        await client.run("print 2")
        assert await messages(client) == before
        for limit in (1, 5, 12):
            assert await messages(client, limit=limit) == before
        for query, count in (
            ({"key": "key-1"}, 3),
            ({"group": "k8s-worker", "key": "key-1"}, 1),
            ({"topic": EXECUTION_EVENTS, "type": "execution.completed"}, 12),
            ({"topic": "other"}, 0),
            ({"status": "retried"}, 0),
            ({"stack_digest": "x"}, 0),
            ({"start_time": before[0]["first_at"]}, 12),
            ({"end_time": before[0]["first_at"]}, 0),
        ):
            assert len(await messages(client, **query)) == count, query
        topics = (await client.get(f"{DLQ}/topics")).json()["topics"]
        assert [(each["topic"], each["open"], each["policy"]["max_retries"]) for each in topics] == [
            (EXECUTION_EVENTS, 12, 5)
        ]

        ids = [each["id"] for each in before[:2]]
        tried = (await client.post(f"{DLQ}/retry", json={"ids": [*ids, "999", "x"]})).json()
        assert tried["counts"] == {"scheduled": 2, "not_found": 2}
        assert [each["id"] for each in tried["outcomes"]] == [*ids, "999", "x"]
        tried = (await client.post(f"{DLQ}/retry", json={"filter": {}, "limit": 3})).json()
        assert (len(tried["outcomes"]), tried["more"]) == (3, True)
        one = await client.post(f"{DLQ}/messages/{ids[0]}/discard", json={"reason": "  rotten "})
        assert (one.status_code, one.json()["status"], one.json()["reason"]) == (200, "discarded", "rotten")
        for action, body in (("discard", {"reason": "again"}), ("retry", None)):
            answer = await client.post(f"{DLQ}/messages/{ids[0]}/{action}", json=body)
            assert_problem(answer, 409, "dead_letter_resolved")
            assert_problem(await client.post(f"{DLQ}/messages/999/{action}", json=body), 404, "not_found")
        assert_problem(await client.get(f"{DLQ}/messages/x"), 404, "not_found")


@pytest.mark.embedded  # the server is killed
async def test_a_policy_is_shown_set_and_kept(serve: Callable[..., Server]) -> None:
    server = serve()
    path = f"{DLQ}/retry-policy/{EXECUTION_EVENTS}"
    wanted = {
        "strategy": "fixed",
        "max_retries": 7,
        "base_delay_s": 5.0,
        "max_delay_s": 60.0,
        "multiplier": 1.0,
        "jitter": 0.0,
    }
    async with server.client() as client:
        default = (await client.get(path)).json()
        assert (default["strategy"], default["max_retries"], default["base_delay_s"]) == ("exponential", 5, 30.0)
        assert (await client.get(f"{DLQ}/retry-policy/other")).json()["max_retries"] == 4
        answer = await client.http.put(path, json=wanted)
        assert (answer.status_code, answer.json()) == (200, {"topic": EXECUTION_EVENTS, **wanted})
        for spoiled, field in (
            ({"strategy": "often"}, "strategy"),
            ({"max_retries": -1}, "max_retries"),
            ({"multiplier": 11}, "multiplier"),
            ({"jitter": 2}, "jitter"),
            ({"colour": "red"}, "colour"),
            ({"strategy": "exponential", "base_delay_s": 61}, None),
        ):
            refused = await client.http.put(path, json={**wanted, **spoiled})
            assert_problem(refused, 422, "validation_failed", field)
    server.kill()
    server = serve(data=server.data)
    async with server.client() as client:
        assert (await client.get(path)).json() == {"topic": EXECUTION_EVENTS, **wanted}


CALLS = (
    ("GET", f"{DLQ}/stats", None),
    ("GET", f"{DLQ}/topics", None),
    ("GET", f"{DLQ}/messages", None),
    ("GET", f"{DLQ}/messages/1", None),
    ("GET", f"{DLQ}/retry-policy/x", None),
    ("PUT", f"{DLQ}/retry-policy/x", {"strategy": "manual", "max_retries": 0}),
    ("POST", f"{DLQ}/messages/1/retry", None),
    ("POST", f"{DLQ}/messages/1/discard", {"reason": "x"}),
    ("POST", f"{DLQ}/retry", {"ids": ["1"]}),
    ("POST", f"{DLQ}/discard", {"ids": ["1"], "reason": "x"}),
)


async def test_dead_letters_are_for_administrators_alone(simulated: Server, stranger: Client) -> None:
    async with simulated.client(None) as nobody:
        for method, path, body in CALLS:
            assert_problem(await nobody.http.request(method, path, json=body), 401, "unauthenticated")
            assert_problem(await stranger.http.request(method, path, json=body), 403, "scope_missing")
        login = await nobody.post("/auth/login", data={"username": "admin", "password": ADMIN_PASSWORD})
        assert login.status_code == 200
        for method, path, body in CALLS:
            if method != "GET":
                assert_problem(await nobody.http.request(method, path, json=body), 403, "csrf_failed")


async def test_what_is_asked_for_has_to_be_said(client: Client) -> None:
    for path, body, field in (
        ("retry", {}, None),
        ("retry", {"ids": ["1"], "filter": {}}, None),
        ("retry", {"ids": []}, "ids"),
        ("retry", {"ids": ["1"] * 1001}, "ids"),
        ("retry", {"filter": {}, "limit": 0}, "limit"),
        ("retry", {"filter": {"colour": "red"}}, "filter.colour"),
        ("retry", {"filter": {"start_time": "2026-01-01T00:00:00"}}, "filter.start_time"),
        ("discard", {"ids": ["1"]}, "reason"),
        ("discard", {"ids": ["1"], "reason": " "}, "reason"),
        ("messages/1/discard", {"reason": ""}, "reason"),
    ):
        assert_problem(await client.post(f"{DLQ}/{path}", json=body), 422, "validation_failed", field)
    for query, field in (
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "0"}, "cursor"),
        ({"status": "lost"}, "status"),
        ({"limit": 201}, "limit"),
        ({"start_time": "2026-01-01T00:00:00"}, "start_time"),
    ):
        assert_problem(await client.get(f"{DLQ}/messages", params=query), 422, "validation_failed", field)
    empty = await client.post(f"{DLQ}/discard", json={"filter": {"key": "nobody's"}, "reason": "x"})
    assert empty.json() == {"outcomes": [], "counts": {}, "more": False}
