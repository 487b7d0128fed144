"""The gate in front of a small application: credentials, forgery, allowances, sizes and headers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from runtape.api.gate import ALLOWANCES, Gate
from runtape.ports.errors import Transient
from runtape.ports.limits import Allowance
from tests.api.small_app import SECRET, SmallApp, small_app

LOGIN = "/api/v1/auth/login"
LOGOUT = "/api/v1/auth/logout"
EXECUTE = "/api/v1/execute"
KEYS = "/api/v1/api-keys"
FEW = {"execute": Allowance(3, 60.0), "auth": Allowance(4, 60.0), "other": Allowance(5, 60.0)}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[SmallApp]:
    async with small_app(tmp_path) as app:
        yield app


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[SmallApp]:
    async with small_app(tmp_path, FEW) as app:
        yield app


async def make_key(running: SmallApp, scopes: tuple[str, ...] = ("execute", "read")) -> str:
    async with running.from_peer("203.0.113.9") as client:
        csrf = await running.log_in(client)
        body = {"name": "test", "scopes": scopes}
        answer = await client.post(KEYS, json=body, headers={"x-csrf-token": csrf})
        assert answer.status_code == 201, answer.text
        return answer.json()["key"]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def is_problem(answer: httpx2.Response, status: int, code: str) -> bool:
    return (
        answer.status_code == status
        and answer.headers["content-type"] == "application/problem+json"
        and answer.json()["code"] == code
        and answer.json()["status"] == status
    )


class TestCredentials:
    async def test_key_makes_the_principal(self, running: SmallApp) -> None:
        answer = await running.client.get("/api/v1/private", headers=bearer(await make_key(running)))
        assert answer.json() == {"username": "admin"}

    async def test_scheme_of_the_header_is_read_in_any_case(self, running: SmallApp) -> None:
        headers = {"authorization": f"bEARER  {await make_key(running)} "}
        assert (await running.client.get("/api/v1/private", headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        "value", ["Bearer rt_00000000_wrong", "Bearer", "Bearer \xe9", "Basic YWRtaW46YWRtaW4=", ""]
    )
    @pytest.mark.parametrize("path", ["/api/v1/private", "/api/v1/open"])
    async def test_bad_credentials_are_refused_also_where_none_are_needed(
        self, running: SmallApp, path: str, value: str
    ) -> None:
        answer = await running.client.get(path, headers=[(b"authorization", value.encode("latin-1"))])
        assert is_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")

    async def test_absent_credentials_are_the_routes_affair(self, running: SmallApp) -> None:
        assert (await running.client.get("/api/v1/open")).status_code == 200
        answer = await running.client.get("/api/v1/private")
        assert is_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")

    async def test_key_wins_over_the_cookie(self, running: SmallApp) -> None:
        await running.log_in()
        answer = await running.client.get("/api/v1/auth/me", headers=bearer(await make_key(running)))
        assert answer.json()["credential"] == "api_key"

    async def test_ended_session_is_refused_and_its_cookie_cleared(self, running: SmallApp) -> None:
        csrf = await running.log_in()
        token = running.client.cookies["session"]
        await running.client.post(LOGOUT, headers={"x-csrf-token": csrf})
        answer = await running.client.get("/api/v1/open", headers={"cookie": f"session={token}"})
        assert is_problem(answer, 401, "unauthenticated")
        assert answer.headers["set-cookie"].startswith("session=; Max-Age=0; Path=/")

    async def test_dead_cookie_does_not_keep_its_owner_from_logging_in(self, running: SmallApp) -> None:
        running.client.cookies.set("session", "rs_dead")
        assert await running.log_in()

    async def test_cookie_of_another_program_is_ignored(self, running: SmallApp) -> None:
        answer = await running.client.get("/api/v1/open", headers={"cookie": "session=.eJwlzj0OwjAMQ; theme=dark"})
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers

    async def test_session_is_found_beside_other_cookies_and_another_of_its_name(self, running: SmallApp) -> None:
        await running.log_in()
        token = running.client.cookies["session"]
        cookie = f"theme=dark;session=.eJwlzj0OwjAMQ; session={token};x=y"
        answer = await running.client.get("/api/v1/private", headers={"cookie": cookie})
        assert answer.status_code == 200

    async def test_over_tls_only_the_host_bound_cookie_counts(self, running: SmallApp) -> None:
        async with running.from_peer("192.0.2.7", scheme="https") as client:
            await running.log_in(client)
            token = client.cookies["__Host-session"]
            assert (await client.get("/api/v1/private")).status_code == 200
        async with running.from_peer("192.0.2.7", scheme="https") as client:
            answer = await client.get("/api/v1/private", headers={"cookie": f"session={token}"})
            assert answer.status_code == 401

    async def test_store_that_does_not_answer_is_no_refusal_of_the_key(self, running: SmallApp) -> None:
        await running.database.close()
        answer = await running.client.get("/api/v1/open", headers=bearer("rt_00000000_unknown"))
        assert is_problem(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1


class TestForgery:
    async def test_change_by_cookie_needs_the_token_of_its_own_session(self, running: SmallApp) -> None:
        other = await running.log_in()
        csrf = await running.log_in()
        for headers in ({}, {"x-csrf-token": ""}, {"x-csrf-token": other}, {"x-csrf-token": csrf[:-1]}):
            assert is_problem(await running.client.post(EXECUTE, headers=headers), 403, "csrf_failed")
        assert (await running.client.post(EXECUTE, headers={"x-csrf-token": csrf})).status_code == 200

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PURGE"])
    async def test_every_changing_method_needs_it(self, running: SmallApp, method: str) -> None:
        await running.log_in()
        assert is_problem(await running.client.request(method, "/api/v1/open"), 403, "csrf_failed")

    async def test_reading_needs_no_token(self, running: SmallApp) -> None:
        await running.log_in()
        assert (await running.client.get("/api/v1/private")).status_code == 200

    async def test_key_needs_no_token_whatever_the_origin(self, running: SmallApp) -> None:
        headers = {**bearer(await make_key(running)), "origin": "https://elsewhere.test"}
        assert (await running.client.post(EXECUTE, headers=headers)).status_code == 200

    async def test_browsers_word_for_our_own_page_is_enough(self, running: SmallApp) -> None:
        await running.log_in()
        answer = await running.client.post(EXECUTE, headers={"sec-fetch-site": "same-origin"})
        assert answer.status_code == 200

    @pytest.mark.parametrize("site", ["same-site", "cross-site", "none", "same-origin, cross-site"])
    async def test_browsers_word_for_another_page_is_not(self, running: SmallApp, site: str) -> None:
        await running.log_in()
        answer = await running.client.post(EXECUTE, headers={"sec-fetch-site": site})
        assert is_problem(answer, 403, "csrf_failed")

    @pytest.mark.parametrize(
        "origin", ["https://elsewhere.test", "null", "http://runtape.test.evil.test", "http://runtape.test:81", ""]
    )
    async def test_foreign_origin_is_refused_with_everything_else_right(self, running: SmallApp, origin: str) -> None:
        csrf = await running.log_in()
        headers = {"origin": origin, "x-csrf-token": csrf, "sec-fetch-site": "same-origin"}
        assert is_problem(await running.client.post(EXECUTE, headers=headers), 403, "csrf_failed")

    async def test_foreign_page_cannot_log_somebody_in(self, running: SmallApp) -> None:
        form = {"username": "admin", "password": "any"}
        answer = await running.client.post(LOGIN, data=form, headers={"origin": "https://elsewhere.test"})
        assert is_problem(answer, 403, "csrf_failed")

    @pytest.mark.parametrize("origin", ["http://runtape.test", "https://runtape.test"])
    async def test_own_origin_passes_also_when_tls_ends_before_us(self, running: SmallApp, origin: str) -> None:
        csrf = await running.log_in()
        answer = await running.client.post(EXECUTE, headers={"origin": origin, "x-csrf-token": csrf})
        assert answer.status_code == 200

    async def test_plain_page_of_our_own_host_is_foreign_over_tls(self, running: SmallApp) -> None:
        async with running.from_peer("192.0.2.7", scheme="https") as client:
            csrf = await running.log_in(client)
            answer = await client.post(EXECUTE, headers={"origin": "http://runtape.test", "x-csrf-token": csrf})
            assert is_problem(answer, 403, "csrf_failed")


class TestAllowances:
    async def test_every_kind_of_answer_tells_the_allowance(self, running: SmallApp) -> None:
        key = bearer(await make_key(running))
        await running.log_in()
        answers = [
            await running.client.get("/api/v1/open"),
            await running.client.get("/api/v1/nowhere"),
            await running.client.put("/api/v1/open", headers=key),
            await running.client.get("/api/v1/private", headers=bearer("rt_0_wrong")),
            await running.client.post(EXECUTE),
            await running.client.post(EXECUTE, content=b"x" * 1001, headers=key),
            await running.client.get("/api/v1/fails/unhandled"),
            await running.client.get("/api/v1/fails/transient"),
        ]
        assert [answer.status_code for answer in answers] == [200, 404, 405, 401, 403, 413, 500, 503]
        for answer in answers:
            limit = ALLOWANCES["execute" if answer.request.url.path == EXECUTE else "other"].limit
            assert int(answer.headers["x-ratelimit-limit"]) == limit
            assert 0 <= int(answer.headers["x-ratelimit-remaining"]) < limit
            assert int(answer.headers["x-ratelimit-reset"]) >= 1

    async def test_allowance_runs_out_and_comes_back(self, limited: SmallApp) -> None:
        remaining = [(await limited.client.get("/api/v1/open")).headers["x-ratelimit-remaining"] for _ in range(5)]
        assert remaining == ["4", "3", "2", "1", "0"]
        answer = await limited.client.get("/api/v1/open")
        assert is_problem(answer, 429, "rate_limited")
        assert answer.headers["retry-after"] == "12"
        assert answer.headers["x-ratelimit-remaining"] == "0"
        assert answer.headers["x-ratelimit-reset"] == "60"
        limited.clock.advance(12)
        assert (await limited.client.get("/api/v1/open")).status_code == 200

    async def test_executions_and_retries_share_an_allowance_of_their_own(self, limited: SmallApp) -> None:
        key = bearer(await make_key(limited))
        paths = [EXECUTE, "/api/v1/executions/1/retry", EXECUTE, EXECUTE, "/api/v1/executions/1/retry"]
        codes = [(await limited.client.post(path, headers=key)).status_code for path in paths]
        assert codes == [200, 200, 200, 429, 429]
        assert (await limited.client.get("/api/v1/private", headers=key)).status_code == 200

    async def test_allowance_is_the_users_over_all_credentials_and_addresses(self, limited: SmallApp) -> None:
        first, second = bearer(await make_key(limited)), bearer(await make_key(limited))
        for headers in (first, second, first):
            assert (await limited.client.post(EXECUTE, headers=headers)).status_code == 200
        async with limited.from_peer("198.51.100.4") as elsewhere:
            assert (await elsewhere.post(EXECUTE, headers=second)).status_code == 429

    async def test_nobodys_allowance_is_the_addresss_whatever_headers_say(self, limited: SmallApp) -> None:
        for number in range(5):
            headers = {"x-forwarded-for": f"10.0.0.{number}", "forwarded": f"for=10.0.0.{number}"}
            assert (await limited.client.get("/api/v1/open", headers=headers)).status_code == 200
        answer = await limited.client.get("/api/v1/open", headers={"x-forwarded-for": "10.0.0.9"})
        assert answer.status_code == 429
        async with limited.from_peer("198.51.100.4") as elsewhere:
            assert (await elsewhere.get("/api/v1/open")).status_code == 200

    @pytest.mark.parametrize(
        ("address", "neighbour", "same"),
        [
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
            ("::ffff:192.0.2.1", "192.0.2.1", True),
            ("fe80::1%eth0", "fe80::2%eth0", True),
        ],
    )
    async def test_an_ipv6_host_is_its_network(
        self, limited: SmallApp, address: str, neighbour: str, same: bool
    ) -> None:
        async with limited.from_peer(address) as client:
            for _ in range(5):
                await client.get("/api/v1/open")
        async with limited.from_peer(neighbour) as client:
            assert (await client.get("/api/v1/open")).status_code == (429 if same else 200)

    async def test_logins_are_counted_by_address_also_for_the_logged_in(self, limited: SmallApp) -> None:
        codes = []
        for number in range(5):
            form = {"username": f"guess-{number}", "password": "wrong"}
            codes.append((await limited.client.post(LOGIN, data=form)).status_code)
        assert codes == [401, 401, 401, 401, 429]
        async with limited.from_peer("198.51.100.4") as elsewhere:
            await limited.log_in(elsewhere)
            limited.client.cookies.update(elsewhere.cookies)
        form = {"username": "admin", "password": "wrong"}
        assert (await limited.client.post(LOGIN, data=form)).status_code == 429

    async def test_bad_credentials_use_the_addresss_allowance(self, limited: SmallApp) -> None:
        codes = [
            (await limited.client.get("/api/v1/open", headers=bearer(f"rt_0_{number}"))).status_code
            for number in range(6)
        ]
        assert codes == [401] * 5 + [429]

    async def test_health_is_free(self, limited: SmallApp) -> None:
        for _ in range(8):
            answer = await limited.client.get("/api/v1/health/live", headers=bearer("rt_0_wrong"))
            assert answer.status_code == 200

    async def test_health_tells_the_peers_other_calls_and_uses_none(self, limited: SmallApp) -> None:
        async def told(client: httpx2.AsyncClient) -> tuple[str, str, str]:
            answer = await client.get("/api/v1/health/live", headers=bearer("rt_0_wrong"))
            assert answer.status_code == 200
            limit, remaining, reset_s = (answer.headers[f"x-ratelimit-{n}"] for n in ("limit", "remaining", "reset"))
            return limit, remaining, reset_s

        assert [await told(limited.client) for _ in range(3)] == [("5", "5", "0")] * 3
        for left in reversed(range(5)):
            assert (await limited.client.get("/api/v1/open")).headers["x-ratelimit-remaining"] == str(left)
        assert [await told(limited.client) for _ in range(3)] == [("5", "0", "60")] * 3
        async with limited.from_peer("198.51.100.4") as elsewhere:
            assert await told(elsewhere) == ("5", "5", "0")

    async def test_health_answers_while_the_limiter_does_not(self, running: SmallApp) -> None:
        probe = Probe([{"type": "http.request", "body": b"", "more_body": False}])
        gate = Gate(running.app, running.identity, AbsentLimiter())
        await gate(request("GET", "/api/v1/health/live"), probe.receive, probe.send)
        assert probe.status == 200


class TestSize:
    async def test_declared_length_is_refused_before_the_body_is_read(self, running: SmallApp) -> None:
        probe = Probe([{"type": "http.request", "body": b"x" * 2000, "more_body": False}])
        await running.gate(request("POST", EXECUTE, (b"content-length", b"2000")), probe.receive, probe.send)
        assert probe.status == 413
        assert probe.received == 0

    async def test_body_of_the_greatest_size_passes(self, running: SmallApp) -> None:
        answer = await running.client.post(EXECUTE, content=b"x" * 1000)
        assert answer.json() == {"bytes": 1000}

    async def test_chunked_body_of_the_greatest_size_passes(self, running: SmallApp) -> None:
        answer = await running.client.post(EXECUTE, content=chunks(10, 100))
        assert answer.json() == {"bytes": 1000}

    async def test_chunked_body_is_refused_as_soon_as_it_is_too_large(self, running: SmallApp) -> None:
        messages: list[Message] = [{"type": "http.request", "body": b"x" * 400, "more_body": True}] * 10
        probe = Probe(messages)
        await running.gate(request("POST", EXECUTE, (b"transfer-encoding", b"chunked")), probe.receive, probe.send)
        assert probe.status == 413
        assert probe.received == 3

    async def test_chunked_body_answers_with_the_code_and_not_with_the_apps_own_error(self, running: SmallApp) -> None:
        for path in (EXECUTE, "/api/v1/orders"):
            answer = await running.client.post(path, content=chunks(11, 100))
            assert is_problem(answer, 413, "body_too_large")

    @pytest.mark.parametrize("length", [b"-1", b"1_0", b"0x10", b""])
    async def test_length_that_is_no_number_is_counted_instead(self, running: SmallApp, length: bytes) -> None:
        probe = Probe([{"type": "http.request", "body": b"x" * 1001, "more_body": False}])
        await running.gate(request("POST", EXECUTE, (b"content-length", length)), probe.receive, probe.send)
        assert probe.status == 413

    async def test_length_beside_chunks_does_not_vouch_for_them(self, running: SmallApp) -> None:
        probe = Probe([{"type": "http.request", "body": b"x" * 1001, "more_body": False}])
        headers = [(b"content-length", b"10"), (b"transfer-encoding", b"chunked")]
        await running.gate(request("POST", EXECUTE, *headers), probe.receive, probe.send)
        assert probe.status == 413


class TestHeaders:
    async def test_answers_of_the_api_are_hardened_and_not_stored(self, running: SmallApp) -> None:
        answer = await running.client.get("/api/v1/open")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in answer.headers

    async def test_what_a_route_says_about_caching_stands(self, running: SmallApp) -> None:
        answer = await running.client.get("/api/v1/cached")
        assert answer.headers.get_list("cache-control") == ["public, max-age=600"]

    async def test_pages_may_run_their_own_scripts_and_need_no_credentials(self, running: SmallApp) -> None:
        answer = await running.client.get("/", headers=bearer("rt_0_wrong"))
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert "cache-control" not in answer.headers
        assert "x-ratelimit-limit" not in answer.headers

    async def test_path_that_only_begins_like_the_api_is_a_page(self, running: SmallApp) -> None:
        answer = await running.client.get("/api/v1x")
        assert "x-ratelimit-limit" not in answer.headers

    async def test_tls_asks_to_stay_on_tls(self, running: SmallApp) -> None:
        async with running.from_peer("192.0.2.7", scheme="https") as client:
            assert "max-age=" in (await client.get("/api/v1/open")).headers["strict-transport-security"]

    async def test_every_request_has_an_id_of_its_own(self, running: SmallApp) -> None:
        answers = [await running.client.get("/api/v1/open", headers={"x-request-id": "mine"}) for _ in range(3)]
        ids = {answer.headers["x-request-id"] for answer in answers}
        assert len(ids) == 3
        assert "mine" not in ids


class TestEdges:
    async def test_failure_is_told_by_its_id_and_logged_once_without_secrets(self, running: SmallApp) -> None:
        await running.log_in()
        with capture_logs() as logs:
            answer = await running.client.get("/api/v1/fails/unhandled")
        assert is_problem(answer, 500, "internal")
        (entry,) = [entry for entry in logs if entry["log_level"] == "error"]
        assert entry["request_id"] == answer.headers["x-request-id"] == answer.json()["request_id"]
        assert "RuntimeError" in entry["exception"]
        assert running.client.cookies["session"] not in repr(logs)
        assert SECRET not in answer.text
        assert "Traceback" not in answer.text

    async def test_app_that_fails_before_it_answers_is_answered_for(self, running: SmallApp) -> None:
        async def fails(scope: Scope, receive: Receive, send: Send) -> None:
            raise ValueError(SECRET)

        probe = Probe([])
        with capture_logs() as logs:
            await Gate(fails, running.identity, NoLimiter())(request("GET", "/"), probe.receive, probe.send)
        assert probe.status == 500
        assert SECRET not in repr(probe.sent)
        assert [entry["event"] for entry in logs] == ["request.failed"]

    async def test_app_that_fails_in_the_middle_is_left_unfinished(self, running: SmallApp) -> None:
        async def fails(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ValueError

        probe = Probe([])
        with capture_logs() as logs:
            await Gate(fails, running.identity, NoLimiter())(request("GET", "/"), probe.receive, probe.send)
        assert [message["type"] for message in probe.sent] == ["http.response.start", "http.response.body"]
        assert [entry["event"] for entry in logs] == ["request.failed"]

    async def test_frames_of_a_stream_pass_unchanged(self, running: SmallApp) -> None:
        frames: list[Message] = [
            {"type": "http.response.body", "body": b"%d" % n, "more_body": n < 3} for n in range(4)
        ]

        async def streams(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200})
            for frame in frames:
                await send(frame)

        probe = Probe([])
        await Gate(streams, running.identity, NoLimiter())(request("GET", "/"), probe.receive, probe.send)
        assert probe.sent[1:] == frames

    async def test_websocket_is_refused_and_reaches_no_route(self, running: SmallApp) -> None:
        probe = Probe([{"type": "websocket.connect"}])
        scope = {"type": "websocket", "path": "/api/v1/open", "headers": [], "scheme": "ws"}
        await Gate(unreachable, running.identity, NoLimiter())(scope, probe.receive, probe.send)
        assert [message["type"] for message in probe.sent] == ["websocket.close"]

    async def test_lifespan_is_the_apps(self, running: SmallApp) -> None:
        probe = Probe([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
        await running.gate({"type": "lifespan", "state": {}}, probe.receive, probe.send)
        assert [message["type"] for message in probe.sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]


class NoLimiter:
    async def take(self, key: str, allowance: Allowance) -> Any:
        raise AssertionError("nothing is counted here")

    peek = take


class AbsentLimiter:
    async def take(self, key: str, allowance: Allowance) -> Any:
        raise Transient("the limiter is away")

    peek = take


@dataclass(slots=True)
class Probe:
    """The server's side of one raw request."""

    messages: list[Message]
    sent: list[Message] = field(default_factory=list[Message])
    received: int = 0

    async def receive(self) -> Message:
        self.received += 1
        return self.messages[self.received - 1]

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]


def request(method: str, path: str, *headers: tuple[bytes, bytes]) -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "client": ("192.0.2.1", 50_000),
        "server": ("runtape.test", 80),
        "headers": [(b"host", b"runtape.test"), *headers],
    }


async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the gate let it through")


async def chunks(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size
