"""Who may say for whom it asks, and through what: a trusted proxy, and nobody else."""

from collections.abc import Callable

import pytest

from tests.e2e.server import ADMIN_PASSWORD, Server

pytestmark = pytest.mark.embedded  # whom it believes is a setting of the server's

LOGIN = {"username": "admin", "password": ADMIN_PASSWORD}


async def remaining(server: Server, forwarded_for: str) -> str:
    """Return what is left for the address that nobody in particular asks from."""
    async with server.client(None) as nobody:
        answer = await nobody.get("/user/executions", headers={"x-forwarded-for": forwarded_for})
        return answer.headers["x-ratelimit-remaining"]


@pytest.mark.parametrize("trusted", ["127.0.0.1", "10.0.0.2, 127.0.0.0/8"])
async def test_a_trusted_proxy_says_from_where_and_how_a_request_came(
    serve: Callable[..., Server], trusted: str
) -> None:
    server = serve(trusted_proxies=trusted, rate_limits__calls_per_minute=9)
    assert [await remaining(server, "203.0.113.7") for _ in range(2)] == ["8", "7"]
    # What the client has sent stands before what the proxy has added.
    assert await remaining(server, "198.51.100.9, 203.0.113.7") == "6"
    assert await remaining(server, "203.0.113.8") == "8"
    # What one host is given of IPv6.
    assert [await remaining(server, f"2001:db8::{last}") for last in "12"] == ["8", "7"]
    async with server.client(None) as browser:
        answer = await browser.post("/auth/login", data=LOGIN, headers={"x-forwarded-proto": "https"})
        (session,) = [each for each in answer.headers.get_list("set-cookie") if "session=" in each]
        assert session.startswith("__Host-session=") and "; Secure" in session
        assert "max-age" in answer.headers["strict-transport-security"]


@pytest.mark.parametrize("trusted", ["", "127.0.0.2"])
async def test_nobody_else_is_believed(serve: Callable[..., Server], trusted: str) -> None:
    server = serve(trusted_proxies=trusted, rate_limits__calls_per_minute=9)
    assert [await remaining(server, f"203.0.113.{last}") for last in range(3)] == ["8", "7", "6"]
    async with server.client(None) as browser:
        answer = await browser.post("/auth/login", data=LOGIN, headers={"x-forwarded-proto": "https"})
        assert "strict-transport-security" not in answer.headers
        assert not [each for each in answer.headers.get_list("set-cookie") if "__Host-" in each]
