"""API keys through the gate and over a real store."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runtape.adapters.embedded.passwords import Argon2Hasher
from runtape.domain.identity import Role, User
from runtape.domain.ids import ProjectId, UserId
from tests.api.small_app import PASSWORD, SmallApp, small_app
from tests.clocks import START

KEYS = "/api/v1/api-keys"
PRIVATE = "/api/v1/private"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[SmallApp]:
    async with small_app(tmp_path) as app:
        app.client.headers["x-csrf-token"] = await app.log_in()
        yield app


@pytest.fixture
async def ada(running: SmallApp) -> AsyncIterator[httpx2.AsyncClient]:
    """A session of an ordinary user."""
    hasher = Argon2Hasher(memory_kib=8, passes=1)
    user = User(
        id=UserId("user-ada"),
        username="ada",
        password_hash=await hasher.hash(PASSWORD),
        role=Role.USER,
        project_id=ProjectId("project-ada"),
        created_at=START,
    )
    hasher.close()
    assert await running.store.add_user(user)
    async with running.from_peer("198.51.100.1") as client:
        answer = await client.post("/api/v1/auth/login", data={"username": "ada", "password": PASSWORD})
        client.headers["x-csrf-token"] = answer.json()["csrf_token"]
        yield client


async def make(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post(KEYS, json={"name": "grader", "scopes": ["read"], **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def by_key(running: SmallApp, key: str) -> httpx2.AsyncClient:
    client = running.from_peer("203.0.113.5")
    client.headers["authorization"] = f"Bearer {key}"
    return client


class TestMaking:
    async def test_key_is_shown_once_and_works(self, running: SmallApp) -> None:
        made = await make(running.client, scopes=["read", "execute"])
        assert set(made) == {"id", "name", "prefix", "scopes", "created_at", "expires_at", "key"}
        assert made["key"].startswith(f"{made['prefix']}_")
        assert made["scopes"] == ["execute", "read"]
        listed = (await running.client.get(KEYS)).json()
        assert listed == {
            "api_keys": [{name: value for name, value in made.items() if name != "key"}],
            "next_cursor": None,
        }
        async with by_key(running, made["key"]) as client:
            assert (await client.get(PRIVATE)).json() == {"username": "admin"}

    async def test_key_stops_at_its_expiry(self, running: SmallApp) -> None:
        made = await make(running.client, expires_at=(START + timedelta(hours=1)).isoformat())
        async with by_key(running, made["key"]) as client:
            assert (await client.get(PRIVATE)).status_code == 200
            running.clock.advance(3600)
            assert (await client.get(PRIVATE)).status_code == 401

    async def test_expiry_of_another_zone_is_the_same_moment(self, running: SmallApp) -> None:
        made = await make(running.client, expires_at="2026-01-05T12:00:00+02:00")
        async with by_key(running, made["key"]) as client:
            running.clock.advance(29 * 60)
            assert (await client.get(PRIVATE)).status_code == 200
            running.clock.advance(60)
            assert (await client.get(PRIVATE)).status_code == 401

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"expires_at": START.isoformat()}, "expires_at"),
            ({"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
            ({"scopes": []}, "scopes"),
            ({"scopes": ["root"]}, "scopes.0"),
            ({"name": "  "}, "name"),
            ({"name": "x" * 101}, "name"),
            ({"name": "\ud800"}, "name"),
            ({"scope": "read"}, "scope"),
        ],
    )
    async def test_wrong_field_is_named_and_no_key_is_made(
        self, running: SmallApp, fields: dict[str, Any], field: str
    ) -> None:
        body = json.dumps({"name": "k", "scopes": ["read"], **fields})
        answer = await running.client.post(KEYS, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert answer.json()["field"] == field
        assert (await running.client.get(KEYS)).json()["api_keys"] == []

    async def test_ordinary_user_cannot_make_an_admin_key(self, ada: httpx2.AsyncClient) -> None:
        answer = await ada.post(KEYS, json={"name": "k", "scopes": ["read", "admin"]})
        assert answer.status_code == 403
        assert answer.json()["code"] == "scope_missing"
        assert (await ada.get(KEYS)).json()["api_keys"] == []

    async def test_key_without_admin_makes_no_key(self, running: SmallApp) -> None:
        made = await make(running.client, scopes=["read", "execute"])
        async with by_key(running, made["key"]) as client:
            answer = await client.post(KEYS, json={"name": "heir", "scopes": ["read"]})
            assert answer.status_code == 403

    async def test_page_of_another_site_makes_no_key(self, running: SmallApp) -> None:
        del running.client.headers["x-csrf-token"]
        answer = await running.client.post(KEYS, json={"name": "k", "scopes": ["read"]})
        assert answer.json()["code"] == "csrf_failed"

    async def test_nobody_makes_no_key(self, running: SmallApp) -> None:
        async with running.from_peer("203.0.113.5") as client:
            assert (await client.post(KEYS, json={"name": "k", "scopes": ["read"]})).status_code == 401


class TestListing:
    async def test_keys_come_oldest_first(self, running: SmallApp) -> None:
        for name in ("first", "second", "third"):
            running.clock.advance(1)
            await make(running.client, name=name)
        names = [key["name"] for key in (await running.client.get(KEYS)).json()["api_keys"]]
        assert names == ["first", "second", "third"]

    async def test_it_takes_the_scope_read(self, running: SmallApp) -> None:
        made = await make(running.client, scopes=["execute"])
        async with by_key(running, made["key"]) as client:
            assert (await client.get(KEYS)).json()["code"] == "scope_missing"


class TestRevoking:
    async def test_revoked_key_is_dead_at_once(self, running: SmallApp) -> None:
        made = await make(running.client)
        async with by_key(running, made["key"]) as client:
            assert (await client.get(PRIVATE)).status_code == 200
            answer = await running.client.delete(f"{KEYS}/{made['id']}")
            assert answer.status_code == 204
            assert answer.content == b""
            assert (await client.get(PRIVATE)).status_code == 401
        assert (await running.client.delete(f"{KEYS}/{made['id']}")).status_code == 404

    async def test_foreign_key_is_not_found_even_by_an_admin_and_lives_on(
        self, running: SmallApp, ada: httpx2.AsyncClient
    ) -> None:
        admins, adas = await make(running.client), await make(ada)
        for client, made in ((ada, admins), (running.client, adas)):
            answer = await client.delete(f"{KEYS}/{made['id']}")
            assert answer.status_code == 404
            assert answer.json()["code"] == "not_found"
            async with by_key(running, made["key"]) as holder:
                assert (await holder.get(PRIVATE)).status_code == 200

    @pytest.mark.parametrize("strange", ["nope", "%00", "%ED%A0%80", "..%2F..", "x" * 3000])
    async def test_strange_id_is_not_found(self, running: SmallApp, strange: str) -> None:
        assert (await running.client.delete(f"{KEYS}/{strange}")).status_code == 404

    async def test_revocation_outlives_the_process(self, tmp_path: Path) -> None:
        async with small_app(tmp_path) as first:
            first.client.headers["x-csrf-token"] = await first.log_in()
            kept, revoked = await make(first.client), await make(first.client)
            await first.client.delete(f"{KEYS}/{revoked['id']}")
        async with small_app(tmp_path) as second:
            for made, status in ((kept, 200), (revoked, 401)):
                async with by_key(second, made["key"]) as client:
                    assert (await client.get(PRIVATE)).status_code == status
