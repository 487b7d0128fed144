"""What a process answers while its application is not there yet."""

import httpx2
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message

from runtape.api.starting import UntilStarted


def client_of(app: UntilStarted) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test")


async def test_it_lives_and_says_what_it_waits_for() -> None:
    app = UntilStarted()
    async with client_of(app) as client:
        alive = await client.get("/api/v1/health/live")
        assert alive.status_code == 200
        assert alive.json()["status"] == "ok" and alive.json()["uptime_s"] >= 0
        first = await client.get("/api/v1/health/ready")
        app.waits_for("MongoDB does not answer")
        second = await client.get("/api/v1/health/ready")
    assert (first.status_code, first.json()) == (503, {"status": "not_ready", "parts": {"service": "starting"}})
    assert second.json()["parts"] == {"service": "MongoDB does not answer"}


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/api/v1/execute"), ("DELETE", "/api/v1/nothing")])
async def test_anything_else_is_to_be_asked_again(method: str, path: str) -> None:
    async with client_of(UntilStarted()) as client:
        answer = await client.request(method, path)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.headers["retry-after"], answer.headers["cache-control"]) == ("1", "no-store")
    assert (answer.json()["code"], answer.json()["retry_after_s"]) == ("starting", 1)


async def test_the_application_answers_from_the_moment_it_is_there() -> None:
    app = UntilStarted()
    async with client_of(app) as client:
        app.app = PlainTextResponse("here")
        for path in ("/api/v1/health/live", "/api/v1/health/ready", "/"):
            assert (await client.get(path)).text == "here"


async def test_a_web_socket_is_closed_before_it_is_accepted() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await UntilStarted()({"type": "websocket", "path": "/"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1013}]
