"""Notifications over HTTP: of which ends there is one, whose it is, and what its user does with it."""

from itertools import chain
from typing import Any

import pytest

from tests.e2e.server import ADMIN_PASSWORD, Client, Server
from tests.e2e.test_refusals import assert_problem

NOBODY = "01900000-0000-7000-8000-000000000000.4"


async def listed(client: Client, **query: Any) -> dict[str, Any]:
    answer = await client.get("/notifications", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def pages(client: Client, **query: Any) -> list[list[dict[str, Any]]]:
    """Return every page, following the cursors to the end."""
    found: list[list[dict[str, Any]]] = []
    while True:
        page = await listed(client, **query)
        found.append(page["notifications"])
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


async def of(client: Client, execution_id: str) -> list[dict[str, Any]]:
    return (await listed(client, include_tags=f"exec:{execution_id}"))["notifications"]


async def unread(client: Client) -> int:
    answer = await client.get("/notifications/unread-count")
    assert answer.status_code == 200, answer.text
    return answer.json()["unread_count"]


async def changed(client: Client, method: str, path: str) -> None:
    answer = await client.http.request(method, f"/notifications/{path}")
    assert (answer.status_code, answer.content) == (204, b""), answer.text


async def failing(client: Client) -> str:
    """Let a run fail and return the id of its notification."""
    (notification,) = await of(client, (await client.run("end memory_limit"))["execution_id"])
    return notification["notification_id"]


async def test_a_run_that_failed_or_ran_out_of_time_is_told_to_its_owner(client: Client, stranger: Client) -> None:
    for script, fields, status, severity, how in (
        ("end memory_limit", {}, "failed", "high", "failed"),
        ("print x\nfail gone", {"on_interrupt": "fail"}, "failed", "high", "failed"),
        ("end time_limit", {}, "timeout", "medium", "timed out"),
    ):
        result = await stranger.run(script, **fields)
        execution_id = result["execution_id"]
        (notification,) = await of(stranger, execution_id)
        assert result["status"] == status
        assert notification["severity"] == severity
        assert notification["subject"] == f"python 3.11 run {how}"
        assert notification["body"]
        assert notification["tags"] == ["execution", "entity:execution", f"exec:{execution_id}", status]
        assert notification["execution_id"] == execution_id
        assert (notification["status"], notification["read_at"]) == ("unread", None)
        assert notification["created_at"] == result["finished_at"]
        assert await of(client, execution_id) == []


async def test_other_ends_tell_nothing(stranger: Client) -> None:
    before = await listed(stranger)
    assert (await stranger.run("print 1"))["status"] == "completed"
    assert (await stranger.run("exit 3"))["status"] == "completed"
    execution_id = await stranger.execute("wait for-ever")
    async with stranger.stream(execution_id) as stream:
        await stream.until("execution_started")
    assert (await stranger.post(f"/executions/{execution_id}/cancel")).status_code == 200
    assert (await stranger.ended(execution_id))["status"] == "cancelled"
    assert await listed(stranger) == before


async def test_what_is_replayed_tells_nothing_again(client: Client) -> None:
    for keeps in (True, False):
        execution_id = (await client.run("end memory_limit"))["execution_id"]
        before = await of(client, execution_id)
        if not keeps:
            await changed(client, "DELETE", before[0]["notification_id"])
            before = []
        body = {"target": "log", "filters": {"execution_id": execution_id}}
        session = (await client.post("/admin/replay/sessions", json=body)).json()
        path = f"/admin/replay/sessions/{session['session_id']}"
        assert (await client.post(f"{path}/start")).status_code == 200
        assert (await client.get(f"{path}/status")).text.endswith("event: end\ndata: {}\n\n")
        told = (await client.get(path)).json()
        assert (told["status"], told["progress"]["replayed"]) == ("completed", 4)
        await client.run("print 1")  # whoever handles it has read the log so far
        assert await of(client, execution_id) == before


async def test_pages_have_no_gap_and_no_duplicate_while_runs_fail(stranger: Client) -> None:
    made = [await failing(stranger) for _ in range(5)][::-1]
    expected = [each["notification_id"] for each in chain(*await pages(stranger, limit=100))]
    assert expected[:5] == made
    for limit in (1, 2, 5):
        found = await pages(stranger, limit=limit)
        assert [each["notification_id"] for each in chain(*found)] == expected
        assert all(len(page) == limit for page in found[:-1])
    first = await listed(stranger, limit=2)
    added = await failing(stranger)
    rest = chain(*await pages(stranger, limit=2, cursor=first["next_cursor"]))
    assert [each["notification_id"] for each in chain(first["notifications"], rest)] == expected
    assert (await listed(stranger, limit=1))["notifications"][0]["notification_id"] == added


async def test_filters_hold_together(stranger: Client) -> None:
    late = (await stranger.run("end wall_limit"))["execution_id"]
    failed = (await stranger.run("end memory_limit"))["execution_id"]
    (read,) = await of(stranger, late)
    await changed(stranger, "PUT", f"{read['notification_id']}/read")

    async def found(**query: Any) -> list[str]:
        return [each["execution_id"] for each in chain(*await pages(stranger, **query))][:2]

    assert await found() == [failed, late]
    assert (await found(status="read"))[0] == late
    assert (await found(status="unread"))[0] == failed
    assert (await found(include_tags="timeout"))[0] == late
    assert await found(include_tags=["timeout", "failed"]) == [failed, late]
    assert (await found(exclude_tags="failed"))[0] == late
    assert late not in await found(exclude_tags=["x", f"exec:{late}"])
    assert await found(tag_prefix=f"exec:{failed}") == [failed]
    assert await found(tag_prefix=failed) == []
    assert await found(status="read", include_tags=f"exec:{failed}") == []


async def test_what_was_read_is_counted_no_more(stranger: Client) -> None:
    await changed(stranger, "POST", "mark-all-read")
    assert await unread(stranger) == 0
    first, second = await failing(stranger), await failing(stranger)
    assert await unread(stranger) == (await listed(stranger, limit=1))["unread_count"] == 2
    await changed(stranger, "PUT", f"{first}/read")
    (told,) = [each for each in (await listed(stranger))["notifications"] if each["notification_id"] == first]
    assert (told["status"], await unread(stranger)) == ("read", 1)
    await changed(stranger, "PUT", f"{first}/read")
    assert told in (await listed(stranger))["notifications"], "it was read when it was read first"
    await changed(stranger, "POST", "mark-all-read")
    assert await unread(stranger) == 0
    assert (await listed(stranger, status="unread"))["notifications"] == []
    await changed(stranger, "DELETE", second)
    await changed(stranger, "DELETE", first)
    ids = {each["notification_id"] for each in chain(*await pages(stranger))}
    assert ids.isdisjoint({first, second})
    for method, path in (("DELETE", first), ("PUT", f"{first}/read")):
        assert_problem(await stranger.http.request(method, f"/notifications/{path}"), 404, "not_found")


async def test_what_belongs_to_others_does_not_exist(client: Client, stranger: Client) -> None:
    mine = await failing(stranger)
    before = await listed(stranger)
    for method, path in (("PUT", "/notifications/{}/read"), ("DELETE", "/notifications/{}")):
        foreign, absent = [await client.http.request(method, path.format(each)) for each in (mine, NOBODY)]
        for answer in (foreign, absent):
            assert_problem(answer, 404, "not_found")
        assert foreign.json()["title"] == absent.json()["title"]
    await changed(client, "POST", "mark-all-read")
    assert await unread(client) == 0
    assert await listed(stranger) == before


async def test_an_execution_that_is_deleted_takes_its_notification_with_it(client: Client, stranger: Client) -> None:
    execution_id = (await stranger.run("end memory_limit"))["execution_id"]
    kept = await failing(stranger)
    assert (await client.http.delete(f"/executions/{execution_id}")).status_code == 204
    assert await of(stranger, execution_id) == []
    assert (await listed(stranger, limit=1))["notifications"][0]["notification_id"] == kept


CALLS = (
    ("GET", "/notifications", "read"),
    ("GET", "/notifications/unread-count", "read"),
    ("POST", "/notifications/mark-all-read", "execute"),
    ("PUT", "/notifications/{}/read", "execute"),
    ("DELETE", "/notifications/{}", "execute"),
)


async def test_calls_take_credentials_their_scope_and_a_session_its_token(client: Client, simulated: Server) -> None:
    mine = await failing(client)
    keys = {
        scope: (await client.post("/api-keys", json={"name": "narrow", "scopes": [scope]})).json()["key"]
        for scope in ("read", "execute")
    }
    async with simulated.client(None) as nobody:
        for method, path, scope in CALLS:
            assert_problem(await nobody.http.request(method, path.format(mine)), 401, "unauthenticated")
            other = {"read": "execute", "execute": "read"}[scope]
            async with simulated.client(keys[other]) as narrow:
                assert_problem(await narrow.http.request(method, path.format(mine)), 403, "scope_missing")
        login = await nobody.post("/auth/login", data={"username": "admin", "password": ADMIN_PASSWORD})
        for method, path, _ in CALLS:
            if method != "GET":
                assert_problem(await nobody.http.request(method, path.format(mine)), 403, "csrf_failed")
        token = {"x-csrf-token": login.json()["csrf_token"]}
        assert (await nobody.http.put(f"/notifications/{mine}/read", headers=token)).status_code == 204
        assert (await nobody.http.delete(f"/notifications/{mine}", headers=token)).status_code == 204


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"status": "new"}, "status"),
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": "1767605400011900"}, "cursor"),
        ({"cursor": "17676054000119001.x"}, "cursor"),
        ({"cursor": "1.x\n"}, "cursor"),
        ({"cursor": "1.\x00"}, "cursor"),
        ({"cursor": "\U0001d7cf.x"}, "cursor"),
        ({"include_tags": ""}, "include_tags.0"),
        ({"include_tags": ["x"] * 21}, "include_tags"),
        ({"exclude_tags": ["x", "x" * 201]}, "exclude_tags.1"),
        ({"tag_prefix": ""}, "tag_prefix"),
    ],
)
async def test_bad_parameter_is_named(client: Client, query: dict[str, Any], field: str) -> None:
    assert_problem(await client.get("/notifications", params=query), 422, "validation_failed", field)
