"""The front end of docker-compose.yml before two API processes: a real nginx with the service's own configuration.

What a client sees through it is what the API said, byte for byte and at once; what it says itself looks the same.
"""

import asyncio
import contextlib
import gc
import json
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runtape.api.gate import MAX_BODY_BYTES
from runtape.api.health import LIVE, READY
from tests.deploy.composition import environment, resolved, services
from tests.e2e.server import ADMIN_PASSWORD, Client, Server, seed
from tests.e2e.sse import EventStream, kinds, printed
from tests.e2e.test_refusals import assert_problem
from tests.rig.nginx import Frontend, Names, programs
from tests.rig.part import free_port

pytestmark = [pytest.mark.needs("nginx"), pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect connections whose TLS was not shut down when their loop was closed, so that no other test meets them."""
    yield
    gc.collect()


FIRST, SECOND, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
FORGED = {
    "x-forwarded-for": "203.0.113.7",
    "x-real-ip": "203.0.113.7",
    "forwarded": "for=203.0.113.7;proto=http",
    "x-forwarded-proto": "http",
}


@pytest.fixture
def names() -> Iterator[Names]:
    """Where the front end looks up the addresses of API processes."""
    with Names() as server:
        yield server


@pytest.fixture
def front(tmp_path: Path, names: Names) -> Iterator[Frontend]:
    """A front end with nobody behind it; a test gives `names` addresses first, and starts it."""
    frontend = Frontend(tmp_path / "frontend", names, free_port())
    yield frontend
    frontend.stop()


@pytest.fixture
def processes(tmp_path: Path, names: Names, front: Frontend) -> Iterator[Callable[..., Server]]:
    """Start an API process at an address; they have the same users, and runs of their own."""
    seeded = tmp_path / "seeded"
    key = seed(seeded, "ann")["ann"]
    servers: list[Server] = []

    def start(address: str, **settings: Any) -> Server:
        data = shutil.copytree(seeded, tmp_path / f"data-{len(servers)}")
        env = {"LISTEN": f"{address}:{front.api_port}"}
        settings = {"trusted_proxies": "127.0.0.1", "rate_limits__calls_per_minute": 100_000, **settings}
        server = Server(data, simulated=True, env=env, **settings)
        servers.append(server)
        server.start()
        server.key = key
        names.addresses.append(address)
        return server

    yield start
    for server in servers:
        server.close()


def opened(front: Frontend, key: str | None) -> Client:
    """Return a client that asks the front end."""
    return Client(front.url, key)


async def in_service(front: Frontend) -> None:
    """Start the front end and return once it passes something on."""
    front.start()
    async with opened(front, None) as client, asyncio.timeout(10):
        while (await client.get("/health/live")).status_code != 200:
            pass


def process_of(answer: httpx2.Response) -> str:
    """Return what the ids of all requests to one API process begin with."""
    return answer.headers["x-request-id"].partition("-")[0]


@contextlib.asynccontextmanager
async def stream(
    front: Frontend, client: Client, target: str, last_event_id: str | None = None, **more: Any
) -> AsyncIterator[EventStream]:
    """Open a stream through TLS, with the certificate checked."""
    headers = {**client.headers, "accept": "text/event-stream"}
    if last_event_id is not None:
        headers["last-event-id"] = last_event_id
    tls = ssl.create_default_context(cafile=front.authority.file)
    opened = await EventStream.open(front.url, target, headers, tls=tls, **more)
    try:
        yield opened
    finally:
        opened.close()


def test_nginx_accepts_the_configuration_without_a_warning(front: Frontend) -> None:
    front.start()
    command = [programs() / "nginx", "-t", "-e", "stderr", "-c", front.folder / "nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "syntax is ok" in done.stderr
    assert "[warn]" not in done.stderr and "[emerg]" not in done.stderr


async def test_a_stream_passes_byte_for_byte_while_the_program_prints(
    front: Frontend, processes: Callable[..., Server]
) -> None:
    server = processes(FIRST)
    await in_service(front)
    async with opened(front, server.key) as client:
        script = "print one\nwait more\nprint two\nwait end\nprint three"
        body = json.dumps({"script": script, "lang": "python"}).encode()
        async with stream(front, client, "/api/v1/execute", body=body) as posted:
            assert posted.headers["content-type"].startswith("text/event-stream")
            execution_id = posted.headers["x-execution-id"]
            async with stream(front, client, f"/api/v1/events/{execution_id}") as got:
                seen = [await each.until("output") for each in (posted, got)]
                assert [printed(frames) for frames in seen] == [b"one\n", b"one\n"]
                server.let("more")
                for each, frames in zip((posted, got), seen, strict=True):
                    frames += await each.until("output")
                    assert printed(frames) == b"one\ntwo\n"
                server.let("end")
                for each, frames in zip((posted, got), seen, strict=True):
                    frames += await each.rest()
                    assert kinds(frames)[-1] == "end"
        async with server.client(server.key) as direct, direct.stream(execution_id) as unchanged:
            raw = [frame.raw for frame in await unchanged.rest()]
        assert [[frame.raw for frame in frames] for frames in seen] == [raw, raw]
        cursor = seen[0][2].id
        async with stream(front, client, f"/api/v1/events/{execution_id}", cursor) as resumed:
            assert [frame.raw for frame in await resumed.rest()] == raw[3:]


async def test_a_silent_stream_stays_open_by_its_heartbeats(front: Frontend, processes: Callable[..., Server]) -> None:
    server = processes(FIRST, streams__heartbeat_s=0.1)
    await in_service(front)
    async with opened(front, server.key) as client:
        execution_id = await client.execute("wait end")
        async with stream(front, client, f"/api/v1/events/{execution_id}") as silent:
            await silent.until("execution_started")
            await silent.heartbeat()
            await silent.heartbeat()
            server.let("end")
            assert kinds(await silent.rest())[-1] == "end"


async def test_a_session_is_that_of_tls(front: Frontend, processes: Callable[..., Server]) -> None:
    processes(FIRST)
    await in_service(front)
    async with opened(front, None) as browser:
        # A page of the front end's: its origin is the one that the browser asks.
        origin = {"origin": front.url}
        answer = await browser.post(
            "/auth/login", data={"username": "admin", "password": ADMIN_PASSWORD}, headers={**origin, **FORGED}
        )
        assert answer.status_code == 200, answer.text
        (session,) = [each for each in answer.headers.get_list("set-cookie") if "session=" in each]
        assert session.startswith("__Host-session=") and "; Secure" in session
        assert answer.headers.get_list("strict-transport-security") == ["max-age=63072000"]
        assert (await browser.get("/auth/me")).json()["credential"] == "session"
        token = {"x-csrf-token": answer.json()["csrf_token"]}
        foreign = await browser.post("/auth/logout", headers={**token, "origin": "https://example.org"})
        assert_problem(foreign, 403, "csrf_failed")
        assert (await browser.post("/auth/logout", headers={**token, **origin})).status_code == 200


async def test_limits_are_counted_by_the_clients_address_whatever_it_says(
    front: Frontend, processes: Callable[..., Server]
) -> None:
    processes(FIRST, rate_limits__calls_per_minute=3)
    await in_service(front)

    async def ask(address: str, headers: dict[str, str]) -> str:
        transport = httpx2.AsyncHTTPTransport(local_address=address, verify=False)
        async with httpx2.AsyncClient(base_url=front.url, transport=transport) as client:
            answer = await client.get("/api/v1/user/executions", headers=headers)
            assert answer.status_code == (429 if "retry-after" in answer.headers else 401)
            return answer.headers["x-ratelimit-remaining"]

    others = {"x-forwarded-for": "203.0.113.8, 127.0.0.1"}
    assert [await ask("127.0.0.9", headers) for headers in ({}, FORGED, others, FORGED)] == ["2", "1", "0", "0"]
    assert await ask("127.0.0.10", {}) == "2"


async def test_a_process_that_dies_is_left_alone_and_one_that_comes_is_found(
    front: Frontend, processes: Callable[..., Server], names: Names
) -> None:
    first, second = processes(FIRST), processes(SECOND)
    await in_service(front)
    async with opened(front, first.key) as client:

        async def asked() -> str:
            answer = await client.get("/auth/me")
            assert answer.status_code == 200, answer.text
            return process_of(answer)

        assert len({await asked() for _ in range(10)}) == 2
        first.kill()
        for number in range(10):
            answer = await client.post("/execute", json={"script": "print 1", "lang": "python"})
            assert answer.status_code == 200, f"{number}: {answer.text}"
        (left,) = {await asked() for _ in range(10)}
        refused = front.log.read_text().count("Connection refused")
        assert refused <= 2  # one for each of nginx's own processes at most: they share what they know
        names.addresses.remove(FIRST)
        processes(THIRD)
        second.kill()
        async with asyncio.timeout(15):
            while (answer := await client.get("/auth/me")).status_code != 200:
                assert_problem(answer, 503, "unavailable")
        assert process_of(answer) != left


async def test_with_nobody_behind_it_the_answer_is_a_problem_with_a_time_to_come_back(
    front: Frontend, processes: Callable[..., Server]
) -> None:
    servers = [processes(FIRST), processes(SECOND)]
    await in_service(front)
    for server in servers:
        server.kill()
    async with opened(front, servers[0].key) as client:
        for answer in (await client.get("/auth/me"), await client.post("/execute", json={}), await client.get("/x")):
            assert_problem(answer, 503, "unavailable")
            problem = answer.json()
            assert answer.headers["retry-after"] == str(problem["retry_after_s"])
            assert answer.headers["x-request-id"] == problem["request_id"]
            assert answer.headers["strict-transport-security"] == "max-age=63072000"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"


async def test_what_the_api_says_is_not_changed(front: Frontend, processes: Callable[..., Server]) -> None:
    server = processes(FIRST)
    await in_service(front)
    async with opened(front, server.key) as through, server.client(server.key) as direct:
        for path in ("/auth/me", "/executions/none", "/openapi.json", "/nothing"):
            here, there = await through.get(path), await direct.get(path)
            assert here.status_code == there.status_code
            told = {"x-request-id", "x-ratelimit-remaining", "x-ratelimit-reset", "date", "content-length"}
            added = {"server", "connection", "strict-transport-security"}
            assert {*here.headers} - added == {*there.headers} - added
            for name in here.headers.keys() - told - added:
                assert here.headers.get_list(name) == there.headers.get_list(name)
        broken = await through.post("/execute", content=b"{")
        assert_problem(broken, 400, "malformed_json")


async def test_a_body_that_is_too_long_is_refused_as_the_api_does(
    front: Frontend, processes: Callable[..., Server]
) -> None:
    server = processes(FIRST)
    await in_service(front)
    async with opened(front, server.key) as through, server.client(server.key) as direct:

        async def unknown() -> AsyncIterator[bytes]:
            for _ in range(MAX_BODY_BYTES // 65536 + 1):
                yield bytes(65536)

        refused = await direct.post("/execute", content=bytes(MAX_BODY_BYTES + 1))
        for answer in (
            await through.post("/execute", content=bytes(MAX_BODY_BYTES + 1)),
            await through.post("/execute", content=unknown()),
        ):
            assert_problem(answer, 413, "body_too_large")
            assert {**answer.json(), "request_id": ""} == {**refused.json(), "request_id": ""}
        # The longest that the API takes is passed on.
        assert_problem(await through.post("/execute", content=bytes(MAX_BODY_BYTES)), 400, "malformed_json")


async def test_readiness_is_nobodys_outside(front: Frontend, processes: Callable[..., Server]) -> None:
    server = processes(FIRST)
    await in_service(front)
    async with opened(front, server.key) as client, server.client(server.key) as direct:
        assert (await direct.http.get(f"{server.url}{READY}")).status_code == 200
        for path in (READY, READY.replace("r", "%72", 1), f"/{READY}", f"{READY}?x"):
            assert_problem(await client.http.get(f"{front.url}{path}"), 404, "not_found")
        assert (await client.http.get(f"{front.url}{LIVE}")).status_code == 200


def test_its_health_is_asked_as_in_the_container(front: Frontend) -> None:
    *command, script = (resolved(word) for word in services()["frontend"]["healthcheck"]["test"][1:])
    here, there = (values["FRONTEND_HEALTH"].replace(":", "/") for values in (front.values, environment("frontend")))
    assert there in script

    def healthy() -> bool:
        done = subprocess.run([*command, script.replace(there, here)], stderr=subprocess.DEVNULL, check=False)
        return done.returncode == 0

    assert not healthy()
    front.start()
    assert healthy()


async def test_plain_http_is_sent_to_tls(front: Frontend) -> None:
    front.start()
    async with httpx2.AsyncClient(trust_env=False) as client:
        for port in (front.plain_port, front.port):
            answer = await client.get(f"http://127.0.0.1:{port}/api/v1/auth/me?x=1")
            assert (answer.status_code, answer.headers["location"]) == (308, f"{front.url}/api/v1/auth/me?x=1")


async def test_clients_may_speak_http_2_and_no_old_tls(front: Frontend) -> None:
    front.start()

    async def spoken(**versions: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=front.authority.file)
        context.set_alpn_protocols(["h2", "http/1.1"])
        for name, version in versions.items():
            setattr(context, name, version)
        _, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
        spoken = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.close()
        return spoken

    assert await spoken() == "h2"
    assert await spoken(maximum_version=ssl.TLSVersion.TLSv1_2) == "h2"


async def test_a_renewed_certificate_is_shown_after_sighup(front: Frontend) -> None:
    front.start()
    context = ssl.create_default_context(cafile=front.authority.file)

    async def shown() -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
        subject = writer.get_extra_info("peercert")["subject"]
        writer.close()
        await writer.wait_closed()
        return subject[0][0][1]

    assert await shown() == "frontend"
    front.certify("renewed")
    assert await shown() == "frontend"
    front.reload()
    async with asyncio.timeout(10):
        while await shown() != "renewed":
            pass


class Upstream:
    """Something that takes requests in the place of an API process, and keeps their heads; it may answer them too."""

    def __init__(self, *, answers: bool) -> None:
        self.heads: list[list[str]] = []
        self._answers = answers
        self._open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self._open)

    async def close(self) -> None:
        """Close all connections."""
        for writer in self._open.values():
            writer.close()
        await asyncio.gather(*(task for task in self._open if task is not None))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[asyncio.current_task()] = writer
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().strip().split("\r\n")
                self.heads.append(head)
                await reader.readexactly(sum(int(line[16:]) for line in head if line.startswith("content-length: ")))
                if not self._answers:
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()


@contextlib.asynccontextmanager
async def upstreams(front: Frontend, names: Names, *answers: bool) -> AsyncIterator[list[Upstream]]:
    """Serve as many in the place of API processes."""
    found = [Upstream(answers=each) for each in answers]
    async with contextlib.AsyncExitStack() as stack:
        for address, each in zip((FIRST, SECOND), found, strict=False):
            await stack.enter_async_context(await asyncio.start_server(each.serve, address, front.api_port))
            stack.push_async_callback(each.close)
            names.addresses.append(address)
        yield found


async def test_the_api_is_told_who_asks_and_connections_are_kept(front: Frontend, names: Names) -> None:
    async with upstreams(front, names, True) as (api,):
        await in_service(front)
        traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        more = {"traceparent": traceparent, "x-request-id": "mine", "last-event-id": "1.2.3", "idempotency-key": "k"}
        async with opened(front, "rt_key") as client:
            for _ in range(8):
                await client.post("/execute?x=%2F", content=b"body", headers={**FORGED, **more})
        first, *rest = api.heads[-1]
        fields = dict(line.split(": ", 1) for line in rest)
        assert first == "post /api/v1/execute?x=%2f http/1.1"
        told = {
            "host": front.url.removeprefix("https://"),
            "x-forwarded-for": "127.0.0.1",
            "x-real-ip": "127.0.0.1",
            "x-forwarded-proto": "https",
            "x-forwarded-host": front.url.removeprefix("https://"),
            "authorization": "bearer rt_key",
            "content-length": "4",
            **more,
        }
        assert told.items() <= fields.items()
        assert not {"forwarded", "connection"} & fields.keys()
        assert len(api.heads) > 8 and api.connections <= 2  # one for each of nginx's own processes


@pytest.mark.parametrize("body", [b"", b"body"])
async def test_a_post_that_was_sent_is_not_sent_again(front: Frontend, names: Names, body: bytes) -> None:
    async with upstreams(front, names, False, False) as both:
        front.start()
        async with opened(front, None) as client, asyncio.timeout(10):
            while not any(api.heads for api in both):
                assert_problem(await client.post("/execute", content=body), 503, "unavailable")
        assert sum(len(api.heads) for api in both) == 1


async def test_a_get_goes_to_the_other_process(front: Frontend, names: Names) -> None:
    async with upstreams(front, names, False, True) as (closing, answering):
        front.start()
        async with opened(front, None) as client, asyncio.timeout(10):
            answer = await client.get("/auth/me")
            while not closing.heads:
                answer = await client.get("/auth/me")
            assert answer.status_code == 200
            for _ in range(4):
                assert (await client.get("/auth/me")).status_code == 200
        assert len(closing.heads) == 1  # then it is left alone
        assert len(answering.heads) >= 4


async def test_it_ends_although_a_stream_is_open(front: Frontend, processes: Callable[..., Server]) -> None:
    server = processes(FIRST)
    await in_service(front)
    async with opened(front, server.key) as client:
        execution_id = await client.execute("wait end")
        async with stream(front, client, f"/api/v1/events/{execution_id}") as open_stream:
            await open_stream.until("execution_started")
            assert await asyncio.to_thread(front.ended_by, signal.SIGQUIT) == 0
            with pytest.raises((asyncio.IncompleteReadError, AssertionError, ConnectionError)):
                await open_stream.rest()
        server.let("end")


async def test_a_request_is_logged_with_the_id_that_its_client_knows(
    front: Frontend, processes: Callable[..., Server]
) -> None:
    server = processes(FIRST)
    await in_service(front)
    async with opened(front, server.key) as client:
        answer = await client.get("/auth/me", headers={"user-agent": 'a "quoted" one'})
    front.stop()
    logged = [json.loads(line) for line in front.log.read_text().splitlines() if line.startswith("{")]
    (line,) = [each for each in logged if each["request_id"] == answer.headers["x-request-id"]]
    assert (line["client"], line["target"], line["status"]) == ("127.0.0.1", "/api/v1/auth/me", 200)
    assert server.key not in front.log.read_text()
