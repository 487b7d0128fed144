"""Bad input is refused with a stable code that names the field, and leaves no trace."""

import json
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest

from tests.e2e.refusals import EXECUTE, GOOD, Refusal
from tests.e2e.server import Client, Server

IDS = [refusal.name for refusal in EXECUTE]

PATHS = {
    "/auth/login": {"POST"},
    "/auth/logout": {"POST"},
    "/auth/me": {"GET"},
    "/api-keys": {"GET", "POST"},
    "/api-keys/x": {"DELETE"},
    "/execute": {"POST"},
    "/executions/x": {"GET", "DELETE"},
    "/executions/x/result": {"GET"},
    "/executions/x/output/stdout": {"GET"},
    "/executions/x/artifacts": {"GET"},
    "/executions/x/artifacts/x": {"GET"},
    "/executions/x/events": {"GET"},
    "/executions/x/cancel": {"POST"},
    "/executions/x/retry": {"POST"},
    "/user/executions": {"GET"},
    "/notifications": {"GET"},
    "/notifications/x": {"DELETE"},
    "/notifications/x/read": {"PUT"},
    # A notification could have one of these names as well.
    "/notifications/mark-all-read": {"POST", "DELETE"},
    "/notifications/unread-count": {"GET", "DELETE"},
    "/admin/executions": {"GET"},
    "/admin/executions/queue": {"GET"},
    "/admin/executions/queue/pause": {"POST"},
    "/admin/executions/queue/drain": {"POST"},
    "/admin/executions/queue/resume": {"POST"},
    "/admin/executions/x/priority": {"PUT"},
    "/sagas": {"GET"},
    "/sagas/x": {"GET"},
    "/sagas/x/cancel": {"POST"},
    "/sagas/execution/x": {"GET"},
    "/events/x": {"GET"},
    "/events/executions/x": {"GET"},
    "/example-scripts": {"GET"},
    "/k8s-limits": {"GET"},
    "/admin/dlq/stats": {"GET"},
    "/admin/dlq/topics": {"GET"},
    "/admin/dlq/messages": {"GET"},
    "/admin/dlq/messages/x": {"GET"},
    "/admin/dlq/messages/x/retry": {"POST"},
    "/admin/dlq/messages/x/discard": {"POST"},
    "/admin/dlq/retry": {"POST"},
    "/admin/dlq/discard": {"POST"},
    "/admin/dlq/retry-policy/x": {"GET", "PUT"},
    "/health/live": {"GET"},
    "/health/ready": {"GET"},
    "/admin/events/x": {"GET", "DELETE"},
    # An event could have one of these names as well.
    "/admin/events/browse": {"POST", "GET", "DELETE"},
    "/admin/events/stats": {"GET", "DELETE"},
    "/admin/events/archive": {"GET", "DELETE"},
    "/admin/events/export/csv": {"GET"},
    "/admin/events/replay": {"POST", "GET", "DELETE"},
    "/admin/replay/sessions": {"GET", "POST"},
    "/admin/replay/sessions/x": {"GET", "DELETE"},
    "/admin/replay/sessions/x/start": {"POST"},
    "/admin/replay/sessions/x/pause": {"POST"},
    "/admin/replay/sessions/x/resume": {"POST"},
    "/admin/replay/sessions/x/cancel": {"POST"},
    "/admin/replay/sessions/x/status": {"GET"},
    "/admin/replay/sessions/x/download": {"GET"},
    "/admin/rebuild": {"POST"},
}


async def refused(client: Client, refusal: Refusal, script: str = GOOD["script"]) -> httpx2.Response:
    body = {**GOOD, "script": script, **refusal.changes}
    content = json.dumps(body).encode() if refusal.raw is None else refusal.raw
    return await client.post("/execute", content=content, headers=refusal.headers)


def assert_problem(answer: httpx2.Response, status: int, code: str, field: str | None = None) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    problem = answer.json()
    assert (problem["status"], problem["code"], problem.get("field")) == (status, code, field), problem
    assert problem["type"].endswith(code)
    assert problem["title"]
    assert problem["detail"]


@pytest.mark.parametrize("refusal", EXECUTE, ids=IDS)
async def test_request_to_execute_is_refused(client: Client, refusal: Refusal) -> None:
    answer = await refused(client, refusal)
    assert_problem(answer, refusal.status, refusal.code, refusal.field)
    assert refusal.says in answer.json()["detail"]


async def test_refused_requests_leave_no_trace(client: Client, stranger: Client, simulated: Server) -> None:
    execution_id = await client.execute("wait trace")
    async with client.stream(execution_id) as stream:
        await stream.until("execution_started")
    before = simulated.store.contents()
    assert {name.removesuffix("s") for name in before} >= {"saga", "tape", "blob", "execution"}
    assert all(rows > 0 for name, (rows, _) in before.items() if name.startswith(("execution", "saga")))
    as_large_as_a_blob = "# a comment\n" * 1000
    for refusal in EXECUTE:
        for script in (GOOD["script"], as_large_as_a_blob):
            assert (await refused(client, refusal, script)).status_code == refusal.status
    async with simulated.client(None) as nobody:
        assert (await nobody.post("/execute", json=GOOD)).status_code == 401
    for action in ("cancel", "retry"):
        assert (await stranger.post(f"/executions/{execution_id}/{action}")).status_code == 404
    assert (await client.post(f"/executions/{execution_id}/retry")).status_code == 409
    assert (await client.http.delete(f"/executions/{execution_id}")).status_code == 409
    assert simulated.store.contents() == before
    simulated.let("trace")
    await client.ended(execution_id)


async def test_body_without_a_length_is_cut_off_at_the_limit(client: Client) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * (1 << 20)

    assert_problem(await client.post("/execute", content=pieces()), 413, "body_too_large")


async def test_body_of_just_under_the_limit_is_read(client: Client) -> None:
    room = (10 << 20) - len(json.dumps({**GOOD, "stdin": ""}))
    execution_id = await client.execute(GOOD["script"], stdin="x" * room)
    assert (await client.ended(execution_id))["status"] == "completed"


@pytest.mark.parametrize(("path", "allowed"), PATHS.items(), ids=PATHS)
async def test_wrong_method_is_told_which_are_right(client: Client, path: str, allowed: set[str]) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - allowed:
        answer = await client.http.request(method, path)
        assert_problem(answer, 405, "method_not_allowed")
        assert set(answer.headers["allow"].split(", ")) - {"HEAD"} == allowed, method


async def test_unknown_path_is_a_problem(client: Client) -> None:
    assert_problem(await client.get("/executionz"), 404, "not_found")


@pytest.fixture
async def held(client: Client, simulated: Server) -> AsyncIterator[str]:
    """A run that prints and then waits."""
    execution_id = await client.execute("leave left.txt secret\nprint secret\nwait held")
    async with client.stream(execution_id) as stream:
        await stream.until("output")
    yield execution_id
    await client.post(f"/executions/{execution_id}/cancel")
    await client.ended(execution_id)


ON_EXECUTION: tuple[tuple[str, str], ...] = (
    ("GET", "/executions/{}"),
    ("GET", "/executions/{}/result"),
    ("GET", "/executions/{}/output/stdout"),
    ("GET", "/executions/{}/output/stderr"),
    ("GET", "/executions/{}/artifacts"),
    ("GET", "/executions/{}/artifacts/left.txt"),
    ("GET", "/executions/{}/events"),
    ("GET", "/events/{}"),
    ("GET", "/events/executions/{}"),
    ("POST", "/executions/{}/cancel"),
    ("POST", "/executions/{}/retry"),
)


async def test_what_belongs_to_others_does_not_exist(client: Client, stranger: Client, held: str) -> None:
    for method, path in ON_EXECUTION:
        foreign = await stranger.http.request(method, path.format(held))
        absent = await stranger.http.request(method, path.format("01900000-0000-7000-8000-000000000000"))
        for answer in (foreign, absent):
            assert_problem(answer, 404, "not_found")
        assert foreign.json()["title"] == absent.json()["title"]
        assert "secret" not in foreign.text
    assert (await client.get(f"/executions/{held}")).json()["status"] == "running"
    assert held not in (await stranger.get("/user/executions?limit=200")).text


async def test_administrator_sees_what_others_run(client: Client, stranger: Client) -> None:
    execution_id = await stranger.execute("print 1")
    await stranger.ended(execution_id)
    assert (await client.result(execution_id))["stdout"] == "1\n"
    assert execution_id not in (await client.get("/user/executions?limit=200")).text


async def test_nothing_is_told_without_credentials(client: Client, simulated: Server, held: str) -> None:
    async with simulated.client(None) as nobody:
        for method, path in (*ON_EXECUTION, ("POST", "/execute"), ("GET", "/user/executions"), ("GET", "/api-keys")):
            answer = await nobody.http.request(method, path.format(held))
            assert_problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_key_does_only_what_its_scopes_allow(client: Client, simulated: Server, held: str) -> None:
    async def make(*scopes: str) -> Client:
        answer = await client.post("/api-keys", json={"name": "narrow", "scopes": scopes})
        assert answer.status_code == 201, answer.text
        return simulated.client(answer.json()["key"])

    async with await make("read") as reader, await make("execute") as runner:
        assert (await reader.get(f"/executions/{held}")).status_code == 200
        assert_problem(await reader.post("/execute", json=GOOD), 403, "scope_missing")
        assert_problem(await reader.post(f"/executions/{held}/cancel"), 403, "scope_missing")
        assert_problem(await reader.post(f"/executions/{held}/retry"), 403, "scope_missing")
        assert_problem(await reader.http.delete(f"/executions/{held}"), 403, "scope_missing")
        for path in ("", "/result", "/output/stdout", "/events"):
            assert_problem(await runner.get(f"/executions/{held}{path}"), 403, "scope_missing")
        assert_problem(await runner.get(f"/events/{held}"), 403, "scope_missing")
        assert_problem(await runner.get("/user/executions"), 403, "scope_missing")
        streamed = await runner.post("/execute", json=GOOD, headers={"accept": "text/event-stream"})
        assert_problem(streamed, 403, "scope_missing")
        assert (await runner.post("/execute", json=GOOD)).status_code == 200


async def test_revoked_key_is_refused_at_once(client: Client, simulated: Server) -> None:
    made = (await client.post("/api-keys", json={"name": "short-lived", "scopes": ["read"]})).json()
    async with simulated.client(made["key"]) as reader:
        assert (await reader.get("/user/executions")).status_code == 200
        assert (await client.http.delete(f"/api-keys/{made['id']}")).status_code == 204
        assert_problem(await reader.get("/user/executions"), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/user/executions?limit=0", "limit"),
        ("/user/executions?limit=201", "limit"),
        ("/user/executions?limit=many", "limit"),
        ("/user/executions?status=lost", "status"),
        ("/user/executions?start_time=yesterday", "start_time"),
        ("/user/executions?start_time=2026-01-01T00:00:00", "start_time"),
        ("/user/executions?end_time=2026-01-01T00:00:00", "end_time"),
        ("/user/executions?cursor=", "cursor"),
        ("/user/executions?cursor=page-2", "cursor"),
        ("/user/executions?cursor={}x", "cursor"),
        ("/user/executions?cursor={}%0A", "cursor"),
        ("/user/executions?cursor=%00", "cursor"),
        ("/user/executions?cursor=%F0%9F%8E%9E", "cursor"),
        ("/executions/{}/events?limit=0", "limit"),
        ("/executions/{}/output/stdin", "stream"),
        ("/events/{}?last_event_id=1.2", "Last-Event-ID"),
    ],
)
async def test_bad_parameter_is_named(client: Client, held: str, path: str, field: str) -> None:
    assert_problem(await client.get(path.format(held)), 422, "validation_failed", field)


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "malformed_json", None),
        (b'{"why": 1}', 422, "validation_failed", "why"),
        (b'{"reason": 1}', 422, "validation_failed", "reason"),
        (b'{"reason": "' + b"x" * 501 + b'"}', 422, "validation_failed", "reason"),
    ],
)
async def test_bad_body_of_a_cancellation_is_refused(
    client: Client, held: str, body: bytes, status: int, code: str, field: str | None
) -> None:
    answer = await client.post(f"/executions/{held}/cancel", content=body, headers={"content-type": "application/json"})
    assert_problem(answer, status, code, field)


@pytest.mark.embedded  # nobody else writes into the server's file meanwhile
async def test_full_queue_refuses_and_keeps_what_it_has(serve: Callable[..., Server]) -> None:
    server = serve(admission__running=1, admission__queued=1)
    async with server.client() as client:
        running = await client.execute("wait room")
        waiting = await client.execute("print 2")
        before = server.store.contents()
        answer = await client.post("/execute", json={**GOOD, "script": "# as large as a blob\n" * 1000})
        assert_problem(answer, 503, "queue_full")
        assert server.store.contents() == before
        assert int(answer.headers["retry-after"]) > 0
        listed = (await client.get("/user/executions")).json()["executions"]
        assert [execution["execution_id"] for execution in listed] == [waiting, running]
        server.let("room")
        assert (await client.ended(waiting))["stdout"] == "2\n"
