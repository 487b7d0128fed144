"""Who may do what: users, their sessions and API keys, and the principal that a request acts as.

A user has a role.  The role bounds the scopes of the user's credentials: a session has all of them, an API key
those that it was made with.  Each user owns one project, and whatever a credential makes belongs to it.

Secrets appear here as SHA-256 digests, and never in a ``repr``.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from runtape.domain.errors import ScopeMissing, ValidationFailed
from runtape.domain.ids import ApiKeyId, ProjectId, SessionId, UserId

SESSION_PREFIX = "rs_"
"""How every session token begins: a cookie of the same name that does not is another program's."""

KEY_PREFIX = "rt_"
"""How every API key begins; its form is ``rt_<prefix>_<secret>``."""


class Role(StrEnum):
    """What a user is to the installation."""

    USER = "user"
    ADMIN = "admin"


class Scope(StrEnum):
    """One right of a credential: to start and cancel runs, to see them, to administer the installation."""

    EXECUTE = "execute"
    READ = "read"
    ADMIN = "admin"


_GRANTABLE = {
    Role.USER: frozenset({Scope.EXECUTE, Scope.READ}),
    Role.ADMIN: frozenset(Scope),
}


class CredentialKind(StrEnum):
    """By what a principal proved itself."""

    SESSION = "session"
    API_KEY = "api_key"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person who may log in; ``project_id`` is the personal project."""

    id: UserId
    username: str
    password_hash: str = field(repr=False)
    role: Role
    project_id: ProjectId
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A login.  ``csrf_secret`` keys the token that its changing requests carry."""

    id: SessionId
    user_id: UserId
    token_sha256: str = field(repr=False)
    csrf_secret: str = field(repr=False)
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A named credential for programs.  ``prefix`` is its public part; it never expires when `expires_at` is None."""

    id: ApiKeyId
    user_id: UserId
    name: str
    prefix: str
    key_sha256: str = field(repr=False)
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whom a request acts as, and by which credential.  ``csrf_secret`` is set for sessions alone.

    ``credential_sha256`` is the digest by which the credential is found again.
    """

    user_id: UserId
    username: str
    role: Role
    project_id: ProjectId
    scopes: frozenset[Scope]
    credential: CredentialKind
    credential_id: str
    credential_sha256: str = field(default="", repr=False)
    csrf_secret: str | None = field(default=None, repr=False)

    @property
    def csrf_token(self) -> str | None:
        """The token that a changing request of this session has to carry; None for other credentials.

        HMAC-SHA256 of the session's id under a secret of its own, so it is worth nothing in another session.
        """
        if self.csrf_secret is None:
            return None
        return hmac.digest(self.csrf_secret.encode(), self.credential_id.encode(), hashlib.sha256).hex()


def scopes_of(role: Role) -> frozenset[Scope]:
    """Return every scope that a credential of a user in `role` may have."""
    return _GRANTABLE[role]


def expired(expires_at: datetime | None, now: datetime) -> bool:
    """Whether a credential has run out; at ``expires_at`` itself it has."""
    return expires_at is not None and expires_at <= now


def grantable(maker: Principal, scopes: Iterable[Scope]) -> frozenset[Scope]:
    """Return `scopes` for a new key, if `maker` has each of them.  Raises: ValidationFailed, ScopeMissing."""
    wanted = frozenset(scopes)
    if not wanted:
        raise ValidationFailed(f"a key needs a scope (one of {_names(maker.scopes)})", field="scopes")
    beyond = wanted - maker.scopes
    if beyond:
        raise ScopeMissing(f"you cannot grant {_names(beyond)}: you have {_names(maker.scopes)}", field="scopes")
    return wanted


def may_manage_keys(principal: Principal) -> bool:
    """Whether the principal may make and revoke keys: a session, or a key with the scope `ADMIN`.

    Else a leaked key could outlive its revocation and its expiry in a key that it made.
    """
    return principal.credential is CredentialKind.SESSION or Scope.ADMIN in principal.scopes


def session_principal(session: Session, user: User) -> Principal:
    """Return the principal of a session: all that the user may do."""
    return Principal(
        user_id=user.id,
        username=user.username,
        role=user.role,
        project_id=user.project_id,
        scopes=scopes_of(user.role),
        credential=CredentialKind.SESSION,
        credential_id=session.id,
        credential_sha256=session.token_sha256,
        csrf_secret=session.csrf_secret,
    )


def key_principal(key: ApiKey, user: User) -> Principal:
    """Return the principal of a key: its scopes, as far as the user's role still has them."""
    return Principal(
        user_id=user.id,
        username=user.username,
        role=user.role,
        project_id=user.project_id,
        scopes=key.scopes & scopes_of(user.role),
        credential=CredentialKind.API_KEY,
        credential_id=key.id,
        credential_sha256=key.key_sha256,
    )


def _names(scopes: Iterable[Scope]) -> str:
    return ", ".join(sorted(scopes))
