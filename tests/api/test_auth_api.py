"""Login, logout and me, through the gate and over a real store."""

from collections.abc import AsyncIterator
from http.cookies import Morsel, SimpleCookie
from pathlib import Path

import httpx2
import pytest
from structlog.testing import capture_logs

from tests.api.small_app import PASSWORD, SmallApp, small_app

LOGIN = "/api/v1/auth/login"
LOGOUT = "/api/v1/auth/logout"
ME = "/api/v1/auth/me"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[SmallApp]:
    async with small_app(tmp_path) as app:
        yield app


def cookies_set_by(answer: httpx2.Response) -> dict[str, Morsel[str]]:
    cookies: SimpleCookie = SimpleCookie()
    for header in answer.headers.get_list("set-cookie"):
        cookies.load(header)
    return dict(cookies)


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def form(username: str = "admin", password: str = PASSWORD, **more: str) -> dict[str, str]:
    return {"username": username, "password": password, **more}


class TestLogin:
    async def test_answer_names_the_user_and_the_cookie_opens_the_session(self, running: SmallApp) -> None:
        answer = await running.client.post(LOGIN, data=form())
        assert answer.status_code == 200
        body = answer.json()
        assert {**body, "csrf_token": ""} == {
            "message": "logged in",
            "username": "admin",
            "role": "admin",
            "csrf_token": "",
        }
        me = (await running.client.get(ME)).json()
        assert me["csrf_token"] == body["csrf_token"] != ""
        assert me["credential"] == "session"
        assert me["scopes"] == ["admin", "execute", "read"]

    async def test_session_cookie_is_out_of_reach_of_scripts_and_the_csrf_cookie_is_not(
        self, running: SmallApp
    ) -> None:
        answer = await running.client.post(LOGIN, data=form())
        cookies = cookies_set_by(answer)
        session, csrf = cookies["session"], cookies["csrf_token"]
        assert session["httponly"]
        assert not csrf["httponly"]
        for cookie in (session, csrf):
            assert cookie["samesite"].lower() == "strict"
            assert cookie["path"] == "/"
            assert cookie["max-age"] == "43200"
            assert not cookie["secure"]
        assert csrf.value == answer.json()["csrf_token"]

    async def test_over_tls_the_cookies_are_bound_to_host_and_tls(self, running: SmallApp) -> None:
        async with running.from_peer("192.0.2.7", scheme="https") as client:
            cookies = cookies_set_by(await client.post(LOGIN, data=form()))
        session = cookies["__Host-session"]
        assert session["secure"]
        assert session["path"] == "/"
        assert not session["domain"]
        assert cookies["csrf_token"]["secure"]

    async def test_form_of_an_oauth2_client_is_taken(self, running: SmallApp) -> None:
        answer = await running.client.post(LOGIN, data=form(grant_type="password"))
        assert answer.status_code == 200

    async def test_wrong_password_and_unknown_name_read_the_same(self, running: SmallApp) -> None:
        answers = [
            await running.client.post(LOGIN, data=each) for each in (form(password="wrong"), form(username="nobody"))
        ]
        bodies = [{**answer.json(), "request_id": ""} for answer in answers]
        assert [answer.status_code for answer in answers] == [401, 401]
        assert bodies[0] == bodies[1]
        assert "set-cookie" not in answers[0].headers

    async def test_sixth_attempt_is_locked_out_for_a_quarter_of_an_hour(self, running: SmallApp) -> None:
        for _ in range(5):
            assert (await running.client.post(LOGIN, data=form(password="wrong"))).status_code == 401
        answer = await running.client.post(LOGIN, data=form())
        assert answer.status_code == 429
        assert answer.json()["code"] == "rate_limited"
        assert int(answer.headers["retry-after"]) > 800
        running.clock.advance(15 * 60)
        assert (await running.client.post(LOGIN, data=form())).status_code == 200

    @pytest.mark.parametrize("missing", ["username", "password"])
    async def test_missing_field_is_named(self, running: SmallApp, missing: str) -> None:
        data = form()
        del data[missing]
        answer = await running.client.post(LOGIN, data=data)
        assert answer.status_code == 422
        assert answer.json()["field"] == missing

    async def test_password_appears_in_no_answer_and_no_log(self, running: SmallApp) -> None:
        secret = "a-password-that-was-mistyped"
        with capture_logs() as logs:
            answers = [
                await running.client.post(LOGIN, data=form(password=secret)),
                await running.client.post(LOGIN, data=form(username="", password=secret)),
                await running.client.post(LOGIN, json=form(password=secret)),
                await running.client.post(LOGIN, data=form(password=secret * 20)),
            ]
        assert [answer.status_code for answer in answers] == [401, 422, 422, 401]
        assert secret not in "".join(answer.text for answer in answers)
        assert secret not in repr(logs)


class TestLogout:
    async def test_session_is_dead_also_for_who_kept_the_cookie(self, running: SmallApp) -> None:
        csrf = await running.log_in()
        kept = {"cookie": f"session={running.client.cookies['session']}"}
        answer = await running.client.post(LOGOUT, headers={"x-csrf-token": csrf})
        assert answer.status_code == 200
        assert {name: cookie["max-age"] for name, cookie in cookies_set_by(answer).items()} == {
            "session": "0",
            "csrf_token": "0",
        }
        assert (await running.client.get(ME, headers=kept)).status_code == 401

    async def test_foreign_page_cannot_log_somebody_out(self, running: SmallApp) -> None:
        await running.log_in()
        assert (await running.client.post(LOGOUT)).status_code == 403
        assert (await running.client.get(ME)).status_code == 200

    async def test_without_a_session_it_does_nothing(self, running: SmallApp) -> None:
        assert (await running.client.post(LOGOUT)).status_code == 200

    async def test_key_survives_a_logout_that_it_authenticates(self, running: SmallApp) -> None:
        key = {"authorization": f"Bearer {await running.identity.ensure_local_key(None)}"}
        assert (await running.client.post(LOGOUT, headers=key)).status_code == 200
        assert (await running.client.get(ME, headers=key)).json()["credential"] == "api_key"


class TestRestart:
    async def test_session_and_password_outlive_the_process(self, tmp_path: Path) -> None:
        async with small_app(tmp_path) as first:
            await first.log_in()
            token = first.client.cookies["session"]
        async with small_app(tmp_path) as second:
            answer = await second.client.get(ME, headers={"cookie": f"session={token}"})
            assert answer.json()["username"] == "admin"
            assert await second.log_in()

    async def test_store_holds_neither_password_nor_token(self, tmp_path: Path) -> None:
        async with small_app(tmp_path) as running:
            await running.log_in()
            token = running.client.cookies["session"]
            key = await running.identity.ensure_local_key(None)
        stored = all_bytes(tmp_path)
        assert b'"username":"admin"' in stored
        for secret in (PASSWORD, token, key, key.split("_", 2)[2]):
            assert secret.encode() not in stored


async def test_me_needs_credentials(running: SmallApp) -> None:
    assert (await running.client.get(ME)).status_code == 401
