"""What every `IdentityStore` does."""

from dataclasses import replace
from datetime import timedelta

import pytest

from runtape.domain.identity import ApiKey, Role, Scope, Session, User
from runtape.domain.ids import ApiKeyId, ProjectId, SessionId, UserId
from runtape.ports.identity import IdentityStore
from tests.clocks import START
from tests.contract.suites.stores import Stores, StoresBasic

LONE_SURROGATE = "\ud800"


def a_user(name: str = "alice", **changes: object) -> User:
    user = User(
        id=UserId(f"user-{name}"),
        username=name,
        password_hash=f"hash of {name}",
        role=Role.USER,
        project_id=ProjectId(f"project-{name}"),
        created_at=START,
    )
    return replace(user, **changes)


def a_session(number: int = 1, user: str = "alice", days: float = 1) -> Session:
    return Session(
        id=SessionId(f"session-{number}"),
        user_id=UserId(f"user-{user}"),
        token_sha256=f"token-{number}",
        csrf_secret="csrf",
        created_at=START,
        expires_at=START + timedelta(days=days),
    )


def a_key(number: int = 1, user: str = "alice", minutes: float = 0) -> ApiKey:
    return ApiKey(
        id=ApiKeyId(f"key-{number}"),
        user_id=UserId(f"user-{user}"),
        name="a key",
        prefix=f"prefix-{number}",
        key_sha256=f"sha-{number}",
        scopes=frozenset({Scope.READ, Scope.EXECUTE}),
        created_at=START + timedelta(minutes=minutes),
    )


class IdentityStoreContract(StoresBasic):
    @pytest.fixture
    def store(self, stores: Stores) -> IdentityStore:
        return stores.identity

    async def test_a_user_is_read_as_it_was_written_by_the_next_process_too(self) -> None:
        user = a_user("Zoë \u2028", role=Role.ADMIN)
        async with self.open() as stores:
            assert not await stores.identity.has_users()
            assert await stores.identity.add_user(user)
        async with self.open() as stores:
            assert await stores.identity.has_users()
            assert await stores.identity.user_by_name(user.username) == user

    async def test_a_name_and_an_id_belong_to_one_user(self, store: IdentityStore) -> None:
        assert await store.add_user(a_user())
        assert not await store.add_user(a_user(id=UserId("other"), password_hash="other"))
        assert not await store.add_user(a_user(username="other", password_hash="other"))
        assert await store.user_by_name("alice") == a_user()
        for name in ("other", "Alice", "", LONE_SURROGATE):
            assert await store.user_by_name(name) is None

    async def test_a_password_changes_for_who_knows_the_old_hash(self, store: IdentityStore) -> None:
        await store.add_user(a_user())
        await store.add_session(a_session())
        await store.replace_password_hash(a_user().id, "another hash", "new")
        assert await store.user_by_name("alice") == a_user()
        await store.replace_password_hash(a_user().id, a_user().password_hash, "new")
        changed = a_user(password_hash="new")
        assert await store.user_by_name("alice") == changed
        assert await store.session_by_digest("token-1") == (a_session(), changed)

    async def test_a_session_is_found_by_its_token_until_it_is_removed(self, store: IdentityStore) -> None:
        await store.add_user(a_user())
        for number in (1, 2):
            await store.add_session(a_session(number))
        await store.add_session(a_session(1, days=9))  # known already: nothing changes
        assert await store.session_by_digest("token-1") == (a_session(1), a_user())
        for _ in range(2):
            await store.remove_session(SessionId("session-1"))
            assert await store.session_by_digest("token-1") is None
        assert await store.session_by_digest("token-2") == (a_session(2), a_user())
        assert await store.session_by_digest("token-3") is None

    async def test_sessions_that_ran_out_are_forgotten(self, store: IdentityStore) -> None:
        await store.add_user(a_user())
        for number in (1, 2, 3):
            await store.add_session(a_session(number, days=number))
        await store.forget_sessions(START + timedelta(days=2))
        found = [await store.session_by_digest(f"token-{number}") for number in (1, 2, 3)]
        assert found == [None, (a_session(2, days=2), a_user()), (a_session(3, days=3), a_user())]

    async def test_a_credential_whose_user_is_gone_is_not_found(self, store: IdentityStore) -> None:
        await store.add_session(a_session(user="nobody"))
        await store.put_key(a_key(user="nobody"))
        assert await store.session_by_digest("token-1") is None
        assert await store.key_by_digest("sha-1") is None

    async def test_keys_are_told_oldest_first_and_replaced_by_their_id(self, store: IdentityStore) -> None:
        await store.add_user(a_user())
        await store.add_user(a_user("bob"))
        for key in (a_key(1, minutes=5), a_key(2), a_key(3), a_key(4, "bob")):
            await store.put_key(key)
        assert [key.id for key in await store.keys_of(a_user().id)] == ["key-2", "key-3", "key-1"]
        renewed = replace(a_key(1, minutes=-1), key_sha256="sha-new", expires_at=START)
        await store.put_key(renewed)
        assert (await store.keys_of(a_user().id))[0] == renewed
        assert await store.key_by_digest("sha-1") is None
        assert await store.key_by_digest("sha-new") == (renewed, a_user())

    async def test_a_key_is_removed_by_its_owner_alone(self, store: IdentityStore) -> None:
        await store.add_user(a_user())
        await store.put_key(a_key())
        assert not await store.remove_key(UserId("user-bob"), a_key().id)
        assert not await store.remove_key(a_user().id, ApiKeyId(LONE_SURROGATE))
        assert await store.key_by_digest("sha-1") == (a_key(), a_user())
        assert await store.remove_key(a_user().id, a_key().id)
        assert not await store.remove_key(a_user().id, a_key().id)
        assert await store.key_by_digest("sha-1") is None
        assert await store.keys_of(a_user().id) == []
