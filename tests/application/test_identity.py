"""The identity service over a store in memory: logins, lockout, keys, and what it remembers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest

from runtape.application import identity as identity_module
from runtape.application.identity import LOCAL_KEY_ID, MAX_KEYS, Identity
from runtape.domain.errors import NotFound, RateLimited, ScopeMissing, Unauthenticated, ValidationFailed
from runtape.domain.identity import ApiKey, CredentialKind, Principal, Role, Scope, Session, User, key_principal
from runtape.domain.ids import ApiKeyId, ProjectId, SessionId, UserId
from runtape.ports.errors import Transient
from tests.clocks import START, CountingIds, ManualClock

T = TypeVar("T")
PASSWORD = "correct horse"
PEER = "192.0.2.1"


class MemoryStore:
    """`IdentityStore` in dictionaries; `reads` counts look-ups of credentials, `before_answer` runs inside one."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.sessions: dict[str, Session] = {}
        self.keys: dict[str, ApiKey] = {}
        self.reads = 0
        self.loses_answers = 0
        self.before_answer: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def has_users(self) -> bool:
        return bool(self.users)

    async def user_by_name(self, username: str) -> User | None:
        return next((user for user in self.users.values() if user.username == username), None)

    async def add_user(self, user: User) -> bool:
        if await self.user_by_name(user.username) is not None:
            return False
        self.users[user.id] = user
        self._lose_answer()
        return True

    async def replace_password_hash(self, user_id: UserId, old: str, new: str) -> None:
        if self.users[user_id].password_hash == old:
            self.users[user_id] = replace(self.users[user_id], password_hash=new)
        self._lose_answer()

    def _lose_answer(self) -> None:
        if self.loses_answers:
            self.loses_answers -= 1
            raise Transient("the answer was lost")

    async def add_session(self, session: Session) -> None:
        self.sessions[session.id] = session

    async def session_by_digest(self, token_sha256: str) -> tuple[Session, User] | None:
        found = next((each for each in self.sessions.values() if each.token_sha256 == token_sha256), None)
        return await self._answer(found)

    async def remove_session(self, session_id: SessionId) -> None:
        self.sessions.pop(session_id, None)

    async def forget_sessions(self, expired_before: datetime) -> None:
        self.sessions = {at: each for at, each in self.sessions.items() if each.expires_at >= expired_before}

    async def put_key(self, key: ApiKey) -> None:
        self.keys[key.id] = key

    async def key_by_digest(self, key_sha256: str) -> tuple[ApiKey, User] | None:
        found = next((each for each in self.keys.values() if each.key_sha256 == key_sha256), None)
        return await self._answer(found)

    async def keys_of(self, user_id: UserId) -> Sequence[ApiKey]:
        return [key for key in self.keys.values() if key.user_id == user_id]

    async def remove_key(self, user_id: UserId, key_id: ApiKeyId) -> bool:
        if key_id not in self.keys or self.keys[key_id].user_id != user_id:
            return False
        del self.keys[key_id]
        return True

    async def _answer(self, found: T | None) -> tuple[T, User] | None:
        self.reads += 1
        if self.before_answer is not None:
            await self.before_answer()
        return None if found is None else (found, self.users[found.user_id])  # pyright: ignore[reportAttributeAccessIssue]


class PlainHasher:
    """`PasswordHasher` that hashes nothing; `verified` tells against what it compared."""

    def __init__(self) -> None:
        self.version = 1
        self.verified: list[str | None] = []

    async def hash(self, password: str) -> str:
        return f"v{self.version}:{password}"

    async def verify(self, password: str, password_hash: str | None) -> bool:
        self.verified.append(password_hash)
        await asyncio.sleep(0)
        return password_hash is not None and password_hash.partition(":")[2] == password

    def outdated(self, password_hash: str) -> bool:
        return not password_hash.startswith(f"v{self.version}:")


class World:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.hasher = PlainHasher()
        self.clock = ManualClock()
        self.identity = Identity(self.store, self.hasher, self.clock, CountingIds(), session_ttl=timedelta(hours=1))

    async def admin(self) -> Principal:
        return (await self.identity.login("admin", PASSWORD, PEER)).principal

    async def guess(self, *, name: str = "admin", peer: str = PEER, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(Unauthenticated):
                await self.identity.login(name, "wrong", peer)

    async def user(self, name: str) -> Principal:
        user = User(
            id=UserId(f"user-{name}"),
            username=name,
            password_hash=await self.hasher.hash(PASSWORD),
            role=Role.USER,
            project_id=ProjectId(f"project-{name}"),
            created_at=START,
        )
        await self.store.add_user(user)
        return (await self.identity.login(name, PASSWORD, PEER)).principal

    async def key(self, *scopes: Scope, maker: Principal | None = None, lifetime_s: float | None = None) -> str:
        expires_at = None if lifetime_s is None else self.clock.now() + timedelta(seconds=lifetime_s)
        return (await self.identity.create_key(maker or await self.admin(), "a key", scopes, expires_at))[1]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.identity.ensure_admin(PASSWORD)
    yield world


def finished_at_once(call: Coroutine[Any, Any, T]) -> T:
    """Return what `call` returns without ever suspending."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    call.close()
    pytest.fail("the call waited for something")


class TestFirstStart:
    async def test_generated_password_is_told_once_and_opens_the_admin(self) -> None:
        world = World()
        password = await world.identity.ensure_admin(None)
        assert password is not None
        assert len(password) >= 20
        principal = (await world.identity.login("admin", password, PEER)).principal
        assert principal.role is Role.ADMIN
        assert principal.scopes == {Scope.EXECUTE, Scope.READ, Scope.ADMIN}
        assert principal.project_id
        assert await world.identity.ensure_admin(None) is None

    async def test_admin_made_where_nobody_can_be_shown_a_password_gets_one_later(self) -> None:
        world = World()
        assert await world.identity.ensure_admin(None, generate=False) is None
        assert await world.identity.ensure_admin(None, generate=False) is None
        with pytest.raises(Unauthenticated):
            await world.identity.login("admin", "", PEER)
        password = await world.identity.ensure_admin(None)
        assert password is not None
        assert (await world.identity.login("admin", password, PEER)).principal.role is Role.ADMIN
        assert len(world.store.users) == 1

    @pytest.mark.parametrize("there", [False, True])
    async def test_generated_password_is_told_although_the_first_answer_was_lost(self, there: bool) -> None:
        world = World()
        if there:
            await world.identity.ensure_admin(None, generate=False)
        world.store.loses_answers = 1
        with pytest.raises(Transient):
            await world.identity.ensure_admin(None)
        password = await world.identity.ensure_admin(None)
        assert password is not None
        assert (await world.identity.login("admin", password, PEER)).principal.role is Role.ADMIN
        assert await world.identity.ensure_admin(None) is None

    async def test_given_password_is_not_told_and_a_later_one_changes_nothing(self, world: World) -> None:
        assert await world.identity.ensure_admin("another") is None
        assert len(world.store.users) == 1
        assert (await world.admin()).username == "admin"


class TestLogin:
    async def test_unknown_name_costs_the_work_and_gets_the_answer_of_a_wrong_password(self, world: World) -> None:
        with pytest.raises(Unauthenticated) as unknown:
            await world.identity.login("nobody", PASSWORD, PEER)
        with pytest.raises(Unauthenticated) as wrong:
            await world.identity.login("admin", "wrong", PEER)
        assert str(unknown.value) == str(wrong.value)
        assert len(world.hasher.verified) == 2
        assert world.hasher.verified[0] is None

    async def test_five_failures_lock_the_name_for_every_address_and_the_right_password(self, world: World) -> None:
        for number in range(5):
            await world.guess(peer=f"192.0.2.{number + 10}")
        with pytest.raises(RateLimited) as refused:
            await world.identity.login("admin", PASSWORD, "198.51.100.7")
        assert 899 <= refused.value.retry_after_s <= 901

    async def test_four_failures_lock_nothing(self, world: World) -> None:
        await world.guess(times=4)
        assert await world.admin()

    async def test_lock_opens_when_the_oldest_failure_is_fifteen_minutes_old(self, world: World) -> None:
        await world.guess()
        world.clock.advance(60)
        await world.guess(times=4)
        world.clock.advance(15 * 60 - 61)
        with pytest.raises(RateLimited):
            await world.admin()
        world.clock.advance(1)
        assert await world.admin()

    async def test_five_failures_lock_the_address_for_every_name(self, world: World) -> None:
        await world.user("ada")
        for number in range(5):
            await world.guess(name=f"guess-{number}")
        with pytest.raises(RateLimited):
            await world.identity.login("ada", PASSWORD, PEER)
        assert await world.identity.login("ada", PASSWORD, "198.51.100.7")

    async def test_success_forgives_the_name_but_not_the_address(self, world: World) -> None:
        await world.guess(times=4)
        assert await world.admin()
        await world.guess(peer="198.51.100.7", times=4)
        assert await world.identity.login("admin", PASSWORD, "198.51.100.8")
        await world.guess(name="ada")
        with pytest.raises(RateLimited):
            await world.identity.login("admin", PASSWORD, PEER)

    async def test_guesses_sent_side_by_side_get_no_more_than_five_answers(self, world: World) -> None:
        guesses = [world.identity.login("admin", f"wrong-{n}", f"192.0.2.{n}") for n in range(19)]
        answers = await asyncio.gather(
            *guesses, world.identity.login("admin", PASSWORD, "192.0.2.99"), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [Unauthenticated] * 5 + [RateLimited] * 15

    async def test_failures_remembered_are_bounded(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(identity_module, "LOCKOUT_ENTRIES", 4)
        await world.guess(times=3)
        for number in range(2):
            await world.guess(name=f"other-{number}", peer=f"198.51.100.{number}")
        await world.guess(times=4)  # the first three are forgotten: these are the first again
        with pytest.raises(Unauthenticated):
            await world.identity.login("admin", "wrong", PEER)

    async def test_hash_of_old_parameters_is_renewed(self, world: World) -> None:
        world.hasher.version = 2
        await world.admin()
        (user,) = world.store.users.values()
        assert user.password_hash == f"v2:{PASSWORD}"
        assert await world.admin()

    async def test_sessions_that_ran_out_are_forgotten(self, world: World) -> None:
        await world.admin()
        world.clock.advance(3601)
        await world.admin()
        assert len(world.store.sessions) == 1


class TestSessions:
    async def test_session_ends_when_it_expires_though_it_was_used_a_moment_before(self, world: World) -> None:
        login = await world.identity.login("admin", PASSWORD, PEER)
        world.clock.advance(3599)
        assert (await world.identity.authenticate_session(login.token)).user_id == login.principal.user_id
        world.clock.advance(1)
        with pytest.raises(Unauthenticated, match="expired"):
            await world.identity.authenticate_session(login.token)

    async def test_logout_ends_that_session_at_once_and_no_other(self, world: World) -> None:
        first, second = [await world.identity.login("admin", PASSWORD, PEER) for _ in range(2)]
        for login in (first, second):
            await world.identity.authenticate_session(login.token)
        await world.identity.logout(first.principal)
        with pytest.raises(Unauthenticated):
            await world.identity.authenticate_session(first.token)
        assert await world.identity.authenticate_session(second.token)

    async def test_csrf_tokens_differ_between_sessions_and_keys_have_none(self, world: World) -> None:
        first, second = await world.admin(), await world.admin()
        assert first.csrf_token
        assert first.csrf_token != second.csrf_token
        assert (await world.identity.authenticate_key(await world.key(Scope.READ))).csrf_token is None

    async def test_key_is_no_session_and_session_no_key(self, world: World) -> None:
        login = await world.identity.login("admin", PASSWORD, PEER)
        with pytest.raises(Unauthenticated):
            await world.identity.authenticate_key(login.token)
        key = await world.key(Scope.READ)
        with pytest.raises(Unauthenticated):
            await world.identity.authenticate_session(key)


class TestKeys:
    async def test_key_has_its_scopes_and_its_makers_project(self, world: World) -> None:
        maker = await world.admin()
        plain = await world.key(Scope.READ, maker=maker)
        assert plain.startswith("rt_")
        principal = await world.identity.authenticate_key(plain)
        assert principal.scopes == {Scope.READ}
        assert principal.project_id == maker.project_id
        assert principal.credential is CredentialKind.API_KEY

    async def test_stored_key_holds_nothing_that_opens_anything(self, world: World) -> None:
        plain = await world.key(Scope.READ)
        (key,) = world.store.keys.values()
        assert plain.startswith(key.prefix)
        secret = plain.split("_", 2)[2]
        assert secret not in str([getattr(key, name) for name in key.__slots__])

    @pytest.mark.parametrize("scopes", [[Scope.ADMIN], [Scope.READ, Scope.ADMIN]])
    async def test_user_cannot_grant_what_it_has_not(self, world: World, scopes: Iterable[Scope]) -> None:
        ada = await world.user("ada")
        with pytest.raises(ScopeMissing, match="admin"):
            await world.identity.create_key(ada, "mine", scopes, None)
        assert not world.store.keys

    async def test_admin_key_grants_only_its_own_scopes(self, world: World) -> None:
        maker = await world.identity.authenticate_key(await world.key(Scope.ADMIN))
        with pytest.raises(ScopeMissing, match="execute"):
            await world.identity.create_key(maker, "more", [Scope.EXECUTE], None)
        assert (await world.identity.create_key(maker, "same", [Scope.ADMIN], None))[0].scopes == {Scope.ADMIN}

    async def test_key_without_admin_manages_no_keys(self, world: World) -> None:
        plain = await world.key(Scope.READ, Scope.EXECUTE)
        holder = await world.identity.authenticate_key(plain)
        with pytest.raises(ScopeMissing):
            await world.identity.create_key(holder, "heir", [Scope.READ], None)
        with pytest.raises(ScopeMissing):
            await world.identity.revoke_key(holder, ApiKeyId(holder.credential_id))
        assert await world.identity.authenticate_key(plain)

    async def test_key_needs_a_scope_and_a_future(self, world: World) -> None:
        admin = await world.admin()
        with pytest.raises(ValidationFailed) as no_scope:
            await world.identity.create_key(admin, "none", [], None)
        assert no_scope.value.field == "scopes"
        with pytest.raises(ValidationFailed) as past:
            await world.identity.create_key(admin, "late", [Scope.READ], world.clock.now())
        assert past.value.field == "expires_at"

    async def test_keys_of_a_user_are_bounded(self, world: World) -> None:
        admin = await world.admin()
        for _ in range(MAX_KEYS):
            await world.identity.create_key(admin, "one of many", [Scope.READ], None)
        with pytest.raises(ValidationFailed):
            await world.identity.create_key(admin, "one too many", [Scope.READ], None)
        assert len(world.store.keys) == MAX_KEYS

    async def test_key_expires_though_it_is_cached(self, world: World) -> None:
        plain = await world.key(Scope.READ, lifetime_s=10)
        world.clock.advance(9)
        assert await world.identity.authenticate_key(plain)
        world.clock.advance(1)
        with pytest.raises(Unauthenticated, match="expired"):
            await world.identity.authenticate_key(plain)

    async def test_foreign_key_is_not_found_and_lives_on(self, world: World) -> None:
        plain = await world.key(Scope.READ)
        (key,) = world.store.keys.values()
        ada = await world.user("ada")
        with pytest.raises(NotFound):
            await world.identity.revoke_key(ada, key.id)
        assert await world.identity.authenticate_key(plain)
        assert await world.identity.list_keys(ada) == []

    def test_key_loses_the_scopes_that_its_user_lost(self) -> None:
        user = User(
            id=UserId("u"),
            username="ada",
            password_hash="",
            role=Role.USER,
            project_id=ProjectId("p"),
            created_at=START,
        )
        key = ApiKey(
            id=ApiKeyId("k"),
            user_id=user.id,
            name="old",
            prefix="rt_0",
            key_sha256="",
            scopes=frozenset(Scope),
            created_at=START,
        )
        assert key_principal(key, user).scopes == {Scope.EXECUTE, Scope.READ}


class TestConfirmation:
    @pytest.mark.parametrize("kind", CredentialKind)
    async def test_live_credentials_are_confirmed_and_read_again_once_they_are_not_cached(
        self, world: World, kind: CredentialKind
    ) -> None:
        if kind is CredentialKind.SESSION:
            login = await world.identity.login("admin", PASSWORD, PEER)
            principal = await world.identity.authenticate_session(login.token)
        else:
            principal = await world.identity.authenticate_key(await world.key(Scope.READ))
        finished_at_once(world.identity.confirm(principal))
        assert world.store.reads == 1
        world.clock.advance(30)
        await world.identity.confirm(principal)
        assert world.store.reads == 2

    async def test_ended_credentials_are_refused(self, world: World) -> None:
        key = await world.identity.authenticate_key(await world.key(Scope.READ))
        login = await world.identity.login("admin", PASSWORD, PEER)
        session = await world.identity.authenticate_session(login.token)
        await world.identity.revoke_key(await world.admin(), ApiKeyId(key.credential_id))
        with pytest.raises(Unauthenticated, match="unknown or was revoked"):
            await world.identity.confirm(key)
        await world.identity.confirm(session)
        await world.identity.logout(session)
        with pytest.raises(Unauthenticated, match="session has ended"):
            await world.identity.confirm(session)

    async def test_rights_that_have_changed_are_not_confirmed(self, world: World) -> None:
        principal = await world.identity.authenticate_key(await world.key(Scope.READ))
        held = world.store.keys[principal.credential_id]
        world.store.keys[held.id] = replace(held, scopes=frozenset({Scope.EXECUTE}))
        world.clock.advance(30)
        with pytest.raises(Unauthenticated, match="have changed"):
            await world.identity.confirm(principal)


class TestCache:
    async def test_hot_key_is_answered_without_waiting_or_reading(self, world: World) -> None:
        plain = await world.key(Scope.READ)
        first = await world.identity.authenticate_key(plain)
        world.clock.advance(29)
        assert finished_at_once(world.identity.authenticate_key(plain)) is first
        assert world.store.reads == 1
        world.clock.advance(1)
        await world.identity.authenticate_key(plain)
        assert world.store.reads == 2

    async def test_revoked_key_is_refused_at_once(self, world: World) -> None:
        plain = await world.key(Scope.READ)
        principal = await world.identity.authenticate_key(plain)
        await world.identity.revoke_key(await world.admin(), ApiKeyId(principal.credential_id))
        with pytest.raises(Unauthenticated):
            await world.identity.authenticate_key(plain)

    async def test_what_another_process_revoked_is_refused_at_once_and_streams_read_less(self, world: World) -> None:
        plain = await world.key(Scope.READ)
        here = Identity(world.store, world.hasher, world.clock, CountingIds(), shared=True)
        principal = await here.authenticate_key(plain)
        reads = world.store.reads
        await here.confirm(principal)
        assert world.store.reads == reads
        await world.identity.revoke_key(await world.admin(), ApiKeyId(principal.credential_id))
        with pytest.raises(Unauthenticated):
            await here.authenticate_key(plain)
        login = await world.identity.login("admin", PASSWORD, PEER)
        await here.authenticate_session(login.token)
        await world.identity.logout(login.principal)
        with pytest.raises(Unauthenticated):
            await here.authenticate_session(login.token)

    async def test_key_revoked_while_it_is_looked_up_is_not_kept(self, world: World) -> None:
        plain = await world.key(Scope.READ)
        (key,) = world.store.keys.values()
        admin = await world.admin()

        async def revoke_meanwhile() -> None:
            world.store.before_answer = None
            await world.identity.revoke_key(admin, key.id)

        world.store.before_answer = revoke_meanwhile
        await world.identity.authenticate_key(plain)  # it was valid when it was read
        with pytest.raises(Unauthenticated):
            await world.identity.authenticate_key(plain)

    async def test_cache_is_bounded(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(identity_module, "CACHE_ENTRIES", 2)
        plains = [await world.key(Scope.READ) for _ in range(3)]
        for plain in plains:
            await world.identity.authenticate_key(plain)
        reads = world.store.reads
        await world.identity.authenticate_key(plains[2])
        assert world.store.reads == reads
        await world.identity.authenticate_key(plains[0])
        assert world.store.reads == reads + 1

    async def test_unknown_key_of_the_right_form_is_refused(self, world: World) -> None:
        with pytest.raises(Unauthenticated, match="unknown or was revoked"):
            await world.identity.authenticate_key("rt_00000000_" + "x" * 43)

    async def test_what_is_no_key_reaches_no_store(self, world: World) -> None:
        with pytest.raises(Unauthenticated):
            await world.identity.authenticate_key("\ud800 eyJhbGciOi")
        assert world.store.reads == 0


class TestLocalKey:
    async def test_present_key_is_kept(self, world: World) -> None:
        plain = await world.identity.ensure_local_key(None)
        assert await world.identity.ensure_local_key(plain) == plain
        assert (await world.identity.authenticate_key(plain)).scopes == frozenset(Scope)

    @pytest.mark.parametrize("present", [None, "", "rt_00000000_gone", "\ud800"])
    async def test_lost_or_strange_file_gets_a_new_key_and_the_old_one_dies(
        self, world: World, present: str | None
    ) -> None:
        old = await world.identity.ensure_local_key(None)
        await world.identity.authenticate_key(old)
        new = await world.identity.ensure_local_key(present)
        assert new != old
        assert await world.identity.authenticate_key(new)
        with pytest.raises(Unauthenticated):
            await world.identity.authenticate_key(old)
        assert [key.id for key in world.store.keys.values()] == [LOCAL_KEY_ID]

    async def test_ordinary_key_in_the_file_is_not_taken_for_it(self, world: World) -> None:
        ordinary = await world.key(Scope.READ)
        assert await world.identity.ensure_local_key(ordinary) != ordinary


async def test_no_secret_shows_in_a_repr(world: World) -> None:
    login = await world.identity.login("admin", PASSWORD, PEER)
    plain = await world.key(Scope.READ, maker=login.principal)
    shown = repr([login, *world.store.users.values(), *world.store.sessions.values(), *world.store.keys.values()])
    (session,) = world.store.sessions.values()
    (key,) = world.store.keys.values()
    secrets = [PASSWORD, login.token, plain, session.csrf_secret, session.token_sha256, key.key_sha256]
    assert [secret for secret in secrets if secret in shown] == []
    assert "admin" in shown
