"""Identity: the first admin, logins, API keys, and turning a credential into a principal.

Tokens and keys carry 256 random bits, so a plain SHA-256 is enough at rest: there is nothing to guess.  Passwords
are what can be guessed; their hashing is slow and their attempts are counted.
"""

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NoReturn

from runtape.domain.errors import NotFound, RateLimited, ScopeMissing, Unauthenticated, ValidationFailed
from runtape.domain.identity import (
    KEY_PREFIX,
    SESSION_PREFIX,
    ApiKey,
    CredentialKind,
    Principal,
    Role,
    Scope,
    Session,
    User,
    expired,
    grantable,
    key_principal,
    may_manage_keys,
    scopes_of,
    session_principal,
)
from runtape.domain.ids import ApiKeyId, ProjectId, SessionId, UserId
from runtape.ports.clock import Clock, Ids
from runtape.ports.identity import IdentityStore, PasswordHasher

NO_PASSWORD = ""
"""Stands in place of a hash for a user who cannot log in; no password verifies against it."""

ADMIN_NAME = "admin"
LOCAL_KEY_ID = ApiKeyId("local")
"""The id of the server's own key: there is one such document, so there is one such key."""

SESSION_TTL = timedelta(hours=12)
MAX_KEYS = 100
"""API keys of one user."""

LOCKOUT_FAILURES = 5
LOCKOUT_WINDOW_S = 15 * 60.0
LOCKOUT_ENTRIES = 8192
"""Names and addresses whose failures are remembered; the longest quiet is forgotten first."""

CACHE_S = 30.0
"""How long a principal is taken from memory: the longest that a stream outlives a revocation by another process."""

CACHE_ENTRIES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A new session: its principal, and the token that is told only now."""

    principal: Principal
    token: str = field(repr=False)
    lifetime_s: int


class Identity:
    """Knows users and their credentials.  One per process: failures and the cache are its own.

    Where the store is `shared` with other processes, each request reads it, so that what another process revoked is
    refused at once; only streams, which ask again and again, take a principal from memory.
    """

    def __init__(
        self,
        store: IdentityStore,
        hasher: PasswordHasher,
        clock: Clock,
        ids: Ids,
        *,
        session_ttl: timedelta = SESSION_TTL,
        shared: bool = False,
    ) -> None:
        self._store = store
        self._hasher = hasher
        self._clock = clock
        self._ids = ids
        self._session_ttl = session_ttl
        self._shared = shared
        self._failures = _Failures(clock)
        self._principals = _Principals(clock)
        self._untold: str | None = None
        """A password that was generated, and perhaps set, by a call that failed."""

    async def ensure_admin(self, password: str | None, *, generate: bool = True) -> str | None:
        """Make the user `ADMIN_NAME` when there is no user at all, and give it a password while it has none.

        Returns the password that was generated because `password` is None, this one time; else None.  Without
        `generate`, for a server that can show nobody a password, the admin cannot log in until a later call.
        """
        again = self._untold
        generated = (again or self._ids.new_secret()[:24]) if password is None and generate else None
        self._untold = generated
        chosen = password or generated
        if not await self._store.has_users():
            admin = User(
                id=UserId(self._ids.new_id()),
                username=ADMIN_NAME,
                password_hash=await self._hasher.hash(chosen) if chosen else NO_PASSWORD,
                role=Role.ADMIN,
                project_id=ProjectId(self._ids.new_id()),
                created_at=self._clock.now(),
            )
            told = generated if await self._store.add_user(admin) else None
        elif (known := await self._store.user_by_name(ADMIN_NAME)) is None:
            told = None
        elif known.password_hash == NO_PASSWORD and chosen is not None:
            await self._store.replace_password_hash(known.id, NO_PASSWORD, await self._hasher.hash(chosen))
            told = generated
        else:
            # The last call may have set it, and not have been told so.
            own = again is not None and await self._hasher.verify(again, known.password_hash or None)
            told = again if own else None
        self._untold = None
        return told

    async def login(self, username: str, password: str, peer: str) -> Login:
        """Begin a session of `username` for somebody at the address `peer`.

        Five failures within 15 minutes, of the name or of the address, refuse every attempt of it, the right
        password too, until the oldest of them is 15 minutes old.  An unknown name costs the same work.
        Raises: Unauthenticated, RateLimited, Transient.
        """
        counted = (f"name {username}", f"peer {peer}")
        self._failures.check(counted)
        user = await self._store.user_by_name(username)
        correct = await self._hasher.verify(password, user.password_hash or None if user else None)
        # Guesses that were sent side by side all passed the first check: those beyond the limit end here.
        self._failures.check(counted)
        if user is None or not correct:
            self._failures.note(counted)
            raise Unauthenticated("wrong username or password")
        self._failures.forget(counted[0])  # the address stays: its failures may be guesses at another name
        if self._hasher.outdated(user.password_hash):
            renewed = await self._hasher.hash(password)
            await self._store.replace_password_hash(user.id, user.password_hash, renewed)
        return await self._begin_session(user)

    async def logout(self, principal: Principal) -> None:
        """End the session of `principal`; nothing when it came with an API key."""
        if principal.credential is CredentialKind.SESSION:
            await self._store.remove_session(SessionId(principal.credential_id))
            self._principals.drop(principal.credential_id)

    async def create_key(
        self, principal: Principal, name: str, scopes: Iterable[Scope], expires_at: datetime | None
    ) -> tuple[ApiKey, str]:
        """Make a key of the principal's user; return it with its plain text, which is not kept.

        Raises: ScopeMissing, ValidationFailed, Transient.
        """
        _check_may_manage(principal)
        granted = grantable(principal, scopes)
        now = self._clock.now()
        if expired(expires_at, now):
            raise ValidationFailed("the key would have expired already", field="expires_at")
        if len(await self._store.keys_of(principal.user_id)) >= MAX_KEYS:
            raise ValidationFailed(f"you have {MAX_KEYS} keys, which is the most; revoke one first")
        key, plain = self._new_key(ApiKeyId(self._ids.new_id()), principal.user_id, name, granted, now, expires_at)
        await self._store.put_key(key)
        return key, plain

    async def list_keys(self, principal: Principal) -> Sequence[ApiKey]:
        """Return the keys of the principal's user, oldest first, the expired ones too."""
        return await self._store.keys_of(principal.user_id)

    async def revoke_key(self, principal: Principal, key_id: ApiKeyId) -> None:
        """Revoke a key of the principal's user, at once and for good.  Raises: NotFound, ScopeMissing, Transient."""
        _check_may_manage(principal)
        if not await self._store.remove_key(principal.user_id, key_id):
            raise NotFound("you have no such API key")
        self._principals.drop(key_id)

    async def ensure_local_key(self, present: str | None) -> str:
        """Return the plain text of the server's own key, with all scopes of the admin, who must exist.

        `present` is what the key's file holds, if there is one: when it is the live key, it is returned and nothing
        changes, else a new key takes the place of the live one.  The caller keeps it in a file of mode 0600.
        """
        if present is not None:
            found = await self._store.key_by_digest(_digest(present))
            if found is not None and found[0].id == LOCAL_KEY_ID:
                return present
        admin = await self._store.user_by_name(ADMIN_NAME)
        if admin is None:
            raise LookupError(f'there is no user "{ADMIN_NAME}"; call ensure_admin first')
        key, plain = self._new_key(LOCAL_KEY_ID, admin.id, "local CLI", scopes_of(admin.role), self._clock.now(), None)
        await self._store.put_key(key)
        self._principals.drop(LOCAL_KEY_ID)
        return plain

    async def authenticate_key(self, key: str) -> Principal:
        """Return whom `key` stands for.  Raises: Unauthenticated, Transient.  Does not wait when it is cached."""
        digest = _digest(key)
        known = self._principals.get(digest)
        if known is not None and not self._shared:
            return known
        if not key.startswith(KEY_PREFIX):
            raise Unauthenticated(f"that is no API key: one begins with {KEY_PREFIX}")
        return await self._key_principal(digest)

    async def authenticate_session(self, token: str) -> Principal:
        """Return whom the session token stands for.  Raises: Unauthenticated, Transient."""
        digest = _digest(token)
        known = self._principals.get(digest)
        return known if known is not None and not self._shared else await self._session_principal(digest)

    async def confirm(self, principal: Principal) -> None:
        """Return when the credential of `principal`, authenticated a while ago, still stands for the same rights.

        Raises: Unauthenticated, Transient.  Does not wait when it is cached.
        """
        digest = principal.credential_sha256
        now = self._principals.get(digest)
        if now is None and principal.credential is CredentialKind.SESSION:
            now = await self._session_principal(digest)
        elif now is None:
            now = await self._key_principal(digest)
        if now != principal:
            _refuse("the rights of these credentials have changed; connect again")

    async def _key_principal(self, digest: str) -> Principal:
        before = self._principals.drops
        found = await self._store.key_by_digest(digest)
        if found is None or not hmac.compare_digest(found[0].key_sha256, digest):
            _refuse("the API key is unknown or was revoked")
        held, user = found
        now = self._clock.now()
        if expired(held.expires_at, now):
            _refuse("the API key has expired")
        principal = key_principal(held, user)
        self._principals.keep(digest, principal, _seconds_left(held.expires_at, now), before)
        return principal

    async def _session_principal(self, digest: str) -> Principal:
        before = self._principals.drops
        found = await self._store.session_by_digest(digest)
        if found is None or not hmac.compare_digest(found[0].token_sha256, digest):
            _refuse("the session has ended; log in again")
        session, user = found
        now = self._clock.now()
        if expired(session.expires_at, now):
            _refuse("the session has expired; log in again")
        principal = session_principal(session, user)
        self._principals.keep(digest, principal, _seconds_left(session.expires_at, now), before)
        return principal

    async def _begin_session(self, user: User) -> Login:
        token = SESSION_PREFIX + self._ids.new_secret()
        now = self._clock.now()
        session = Session(
            id=SessionId(self._ids.new_id()),
            user_id=user.id,
            token_sha256=_digest(token),
            csrf_secret=self._ids.new_secret(),
            created_at=now,
            expires_at=now + self._session_ttl,
        )
        await self._store.forget_sessions(now)
        await self._store.add_session(session)
        lifetime_s = int(self._session_ttl.total_seconds())
        return Login(principal=session_principal(session, user), token=token, lifetime_s=lifetime_s)

    def _new_key(
        self,
        key_id: ApiKeyId,
        user_id: UserId,
        name: str,
        scopes: frozenset[Scope],
        created_at: datetime,
        expires_at: datetime | None,
    ) -> tuple[ApiKey, str]:
        secret = self._ids.new_secret()
        prefix = f"{KEY_PREFIX}{_digest(secret)[:8]}"  # tells keys apart for people; 224 bits stay unknown
        plain = f"{prefix}_{secret}"
        key = ApiKey(
            id=key_id,
            user_id=user_id,
            name=name,
            prefix=prefix,
            key_sha256=_digest(plain),
            scopes=scopes,
            created_at=created_at,
            expires_at=expires_at,
        )
        return key, plain


class _Failures:
    """Failed logins by name and by address, over a sliding window."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._times: OrderedDict[str, tuple[float, ...]] = OrderedDict()

    def check(self, keys: Iterable[str]) -> None:
        """Raise RateLimited when one of `keys` is locked, with the time until none is."""
        now = self._clock.monotonic_s()
        wait_s = max(self._times[key][0] + LOCKOUT_WINDOW_S - now if self._locked(key, now) else 0.0 for key in keys)
        if wait_s > 0:
            retry_after_s = int(wait_s) + 1
            raise RateLimited(f"too many failed logins; try again in {retry_after_s} s", retry_after_s=retry_after_s)

    def note(self, keys: Iterable[str]) -> None:
        """Count a failure of each of `keys`."""
        now = self._clock.monotonic_s()
        for key in keys:
            recent = [at for at in self._times.pop(key, ()) if at + LOCKOUT_WINDOW_S > now]
            self._times[key] = (*recent, now)[-LOCKOUT_FAILURES:]
            if len(self._times) > LOCKOUT_ENTRIES:
                self._times.popitem(last=False)

    def forget(self, key: str) -> None:
        """Forget the failures of `key`."""
        self._times.pop(key, None)

    def _locked(self, key: str, now: float) -> bool:
        times = self._times.get(key, ())
        return len(times) == LOCKOUT_FAILURES and times[0] + LOCKOUT_WINDOW_S > now


class _Principals:
    """Recently authenticated principals by the digest of their secret."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self.drops = 0
        """How often something was dropped: who reads the store compares, lest it keeps what was revoked meanwhile."""

    def get(self, digest: str) -> Principal | None:
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if self._clock.monotonic_s() < entry[1]:
            return entry[0]
        del self._entries[digest]
        return None

    def keep(self, digest: str, principal: Principal, seconds_left: float, drops_before: int) -> None:
        """Keep `principal` for `CACHE_S`, or as long as its credential has left, unless a drop came between."""
        if self.drops != drops_before:
            return
        self._entries[digest] = (principal, self._clock.monotonic_s() + min(CACHE_S, seconds_left))
        if len(self._entries) > CACHE_ENTRIES:
            self._entries.popitem(last=False)

    def drop(self, credential_id: str) -> None:
        """Forget the credential."""
        self.drops += 1
        for digest in [at for at, (principal, _) in self._entries.items() if principal.credential_id == credential_id]:
            del self._entries[digest]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _seconds_left(expires_at: datetime | None, now: datetime) -> float:
    return CACHE_S if expires_at is None else (expires_at - now).total_seconds()


def _check_may_manage(principal: Principal) -> None:
    if not may_manage_keys(principal):
        raise ScopeMissing("managing API keys takes a login, or a key with the scope admin")


def _refuse(detail: str) -> NoReturn:
    raise Unauthenticated(detail)
