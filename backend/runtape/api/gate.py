"""The gate: what every request passes before any route, and every answer on its way out.

Theory of operation
===================
Under /api/v1 a request is given an id, authenticated, counted, and checked for forgery and size, in this order;
the first refusal is the answer.  The routes find the principal, or None, at ``scope["runtape.principal"]`` and
decide what an absent one may do.  Health answers without any of it: a probe is never refused, and is only told how
its peer's allowance stands.

*Credentials*: an API key in ``Authorization: Bearer``, else the session cookie.  A cookie of that name which is
no token of ours belongs to another program on the same host and is ignored.  Credentials that are there and not
valid are refused at once, so that nobody believes to be logged in; a dead session's cookie is cleared.

*Allowances* are counted per user, and per address of the peer where there is no user: the socket's, or the one that a
trusted proxy names.  The login is always counted by peer, and looks at no credentials: a dead cookie must not keep
its owner out.

*Forgery*: browsers send the cookie wherever a request comes from, so a changing request that has it must carry
the session's token or be marked by the browser as coming from our own page, and its Origin must be ours.

*Size*: a declared length is refused before anything is read; a body without one is counted as it passes.

This is one ASGI middleware, and the only one, because each costs: it scans the headers once, adds its own to the
answer's first message, and leaves the rest of the stream alone.
"""

import contextlib
import hmac
import itertools
import math
import secrets
from collections.abc import Awaitable, Iterable, Mapping

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtape.api.access import PRINCIPAL_KEY, REQUEST_ID_KEY, peer_of, session_cookie
from runtape.api.health import LIVE, READY
from runtape.api.problems import BodyTooLarge, InternalError, Unavailable, log_unhandled, send_problem
from runtape.application.identity import Identity
from runtape.domain.errors import CsrfFailed, DomainError, RateLimited, Unauthenticated
from runtape.domain.identity import SESSION_PREFIX, CredentialKind, Principal
from runtape.ports.errors import Transient
from runtape.ports.limits import Allowance, Decision, RateLimiter

log = structlog.get_logger(__name__)

API = "/api/v1"
MAX_BODY_BYTES = 10 << 20
ALLOWANCES: Mapping[str, Allowance] = {
    "execute": Allowance(600, 60.0),
    "auth": Allowance(20, 60.0),
    "other": Allowance(3000, 60.0),
}

_PREFIX = f"{API}/"
_LOGIN = f"{API}/auth/login"
_EXECUTE = f"{API}/execute"
_EXECUTIONS = f"{API}/executions/"
_FREE = frozenset({LIVE, READY})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_WANTED = frozenset(
    {
        b"authorization",
        b"cookie",
        b"content-length",
        b"transfer-encoding",
        b"origin",
        b"host",
        b"sec-fetch-site",
        b"x-csrf-token",
    }
)

_COMMON = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_API_CSP = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_PAGE_CSP = (
    b"content-security-policy",
    b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
)
_NO_STORE = (b"cache-control", b"no-store")
_HSTS = (b"strict-transport-security", b"max-age=63072000")

_COOKIE = {tls: f"{session_cookie(tls)}={SESSION_PREFIX}".encode() for tls in (False, True)}
_CLEARED = {
    False: f"{session_cookie(False)}=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict".encode(),
    True: f"{session_cookie(True)}=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict; Secure".encode(),
}

Headers = list[tuple[bytes, bytes]]


class Gate:
    """Stands before `app`.  `allowances` has the groups of `ALLOWANCES`; bodies have `max_body_bytes` at most."""

    def __init__(
        self,
        app: ASGIApp,
        identity: Identity,
        limiter: RateLimiter,
        allowances: Mapping[str, Allowance] = ALLOWANCES,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._app = app
        self._identity = identity
        self._limiter = limiter
        self._execute = allowances["execute"]
        self._auth = allowances["auth"]
        self._other = allowances["other"]
        self._max_body_bytes = max_body_bytes
        # Unique over processes and restarts, and cheaper per request than random bytes.
        self._request_ids = map(f"{secrets.token_hex(6)}-{{:x}}".format, itertools.count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the client sees a 403

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        tls = scope["scheme"] == "https"
        request_id = scope[REQUEST_ID_KEY] = next(self._request_ids)
        scope[PRINCIPAL_KEY] = None
        answer = _Answer(send, request_id, tls=tls, api=path.startswith(_PREFIX))
        try:
            if path in _FREE:
                # A probe is answered also when the limiter is not.
                with contextlib.suppress(Transient):
                    answer.decision = await self._limiter.peek(f"other {peer_of(scope)}", self._other)
            elif answer.api:
                receive = await self._admit(scope, path, receive, answer)
            await self._app(scope, receive, answer.send)
            if answer.discarded:
                await self._refuse(answer, BodyTooLarge(self._max_body_bytes))
        except DomainError as error:
            await self._refuse(answer, error)
        except Transient as error:
            log.warning("request.unavailable", request_id=request_id, path=path, error=str(error))
            await self._refuse(answer, Unavailable(error.retry_after_s))
        except Exception as error:  # the edge of the request: logged once, and told without what it says
            log_unhandled(scope, request_id, error)
            await self._refuse(answer, InternalError(request_id))

    async def _admit(self, scope: Scope, path: str, receive: Receive, answer: "_Answer") -> Receive:
        """Pass the request to the routes; return what they receive from.  Raises: DomainError, Transient."""
        method: str = scope["method"]
        found: dict[bytes, bytes] = {name: value for name, value in scope["headers"] if name in _WANTED}
        posted = method == "POST"
        if posted and path == _LOGIN:
            principal = None
            await self._count("auth", self._auth, scope, None, answer)
        else:
            try:
                principal = scope[PRINCIPAL_KEY] = await self._authenticate(found, answer)
            except Unauthenticated:
                await self._count("other", self._other, scope, None, answer)
                raise
            if posted and (path == _EXECUTE or (path.startswith(_EXECUTIONS) and path.endswith("/retry"))):
                await self._count("execute", self._execute, scope, principal, answer)
            else:
                await self._count("other", self._other, scope, principal, answer)
        if method in _SAFE:
            return receive if b"transfer-encoding" not in found else self._counted(receive, answer)
        _check_forgery(found, answer.tls, principal, login=path == _LOGIN)
        length = found.get(b"content-length")
        if length is None or not length.isdigit() or b"transfer-encoding" in found:
            return self._counted(receive, answer)
        if int(length) > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)
        return receive

    async def _authenticate(self, found: Mapping[bytes, bytes], answer: "_Answer") -> Principal | None:
        authorization = found.get(b"authorization")
        if authorization is not None:
            kind, _, key = authorization.partition(b" ")
            if kind.lower() != b"bearer":
                raise Unauthenticated('the only credentials in a header are "Authorization: Bearer rt_..."')
            return await self._identity.authenticate_key(key.strip().decode("latin-1"))
        cookies = found.get(b"cookie")
        token = None if cookies is None else _session_token(cookies, answer.tls)
        if token is None:
            return None
        try:
            return await self._identity.authenticate_session(token)
        except Unauthenticated:
            answer.extra = [(b"set-cookie", _CLEARED[answer.tls])]
            raise

    async def _count(
        self, group: str, allowance: Allowance, scope: Scope, principal: Principal | None, answer: "_Answer"
    ) -> None:
        who = peer_of(scope) if principal is None else principal.user_id
        decision = answer.decision = await self._limiter.take(f"{group} {who}", allowance)
        if not decision.allowed:
            wait_s = max(math.ceil(decision.retry_after_s), 1)
            rate = f"{allowance.limit} requests in {allowance.period_s:g} s"
            raise RateLimited(f"no more than {rate}; try again in {wait_s} s", retry_after_s=wait_s)

    def _counted(self, receive: Receive, answer: "_Answer") -> Receive:
        """Return `receive`, which fails once more than the limit came through it and voids the app's own answer."""
        left = self._max_body_bytes

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                answer.discarded = True
                raise BodyTooLarge(self._max_body_bytes)
            return message

        return counted

    async def _refuse(self, answer: "_Answer", error: DomainError) -> None:
        # Once the app has begun its own answer there is no other: the server sees it unfinished and breaks it off.
        if not answer.started:
            answer.discarded = False
            await send_problem(answer.send, error, request_id=answer.request_id)


class _Answer:
    """The way out of one request: adds our headers to the first message of the answer."""

    __slots__ = ("_send", "api", "decision", "discarded", "extra", "request_id", "started", "tls")

    def __init__(self, send: Send, request_id: str, *, tls: bool, api: bool) -> None:
        self._send = send
        self.request_id = request_id
        self.tls = tls
        self.api = api
        self.decision: Decision | None = None
        self.extra: Headers = []
        self.started = False
        self.discarded = False

    def send(self, message: Message) -> Awaitable[None]:
        """Send `message`.  It is no coroutine itself, so a stream's frames pass at the price of a call."""
        if not self.started:
            if self.discarded:
                return _nothing()
            if message["type"] == "http.response.start":
                self.started = True
                message["headers"] = self._headers(message.get("headers", ()))
        return self._send(message)

    def _headers(self, own: Iterable[tuple[bytes, bytes]]) -> Headers:
        headers = [*own, (b"x-request-id", self.request_id.encode()), *self.extra]
        names = {name for name, _ in headers}
        decision = self.decision
        if decision is not None:
            headers += (
                (b"x-ratelimit-limit", b"%d" % decision.limit),
                (b"x-ratelimit-remaining", b"%d" % decision.remaining),
                (b"x-ratelimit-reset", b"%d" % math.ceil(decision.reset_s)),
            )
        headers += _COMMON
        if b"content-security-policy" not in names:
            headers.append(_API_CSP if self.api else _PAGE_CSP)
        if self.api and b"cache-control" not in names:
            headers.append(_NO_STORE)
        if self.tls:
            headers.append(_HSTS)
        return headers


async def _nothing() -> None:
    return


def _session_token(cookies: bytes, tls: bool) -> str | None:
    name = _COOKIE[tls]
    for cookie in cookies.split(b";"):
        cookie = cookie.strip()
        if cookie.startswith(name):
            return cookie[len(name) - len(SESSION_PREFIX) :].decode("latin-1")
    return None


def _check_forgery(found: Mapping[bytes, bytes], tls: bool, principal: Principal | None, *, login: bool) -> None:
    """Raise CsrfFailed when a page that is not ours may have caused the request."""
    by_session = principal is not None and principal.credential is CredentialKind.SESSION
    if not by_session and not login:
        return
    origin = found.get(b"origin")
    if origin is not None:
        host = found.get(b"host", b"")
        # TLS may end in front of this server, and then the page's scheme is https and ours is not; never the reverse.
        if origin != b"https://" + host and (tls or origin != b"http://" + host):
            raise CsrfFailed("the request comes from another site's page (Origin)")
    if principal is None or not by_session or found.get(b"sec-fetch-site") == b"same-origin":
        return
    token = principal.csrf_token or ""
    if not hmac.compare_digest(found.get(b"x-csrf-token", b""), token.encode()):
        raise CsrfFailed("send the csrf_token that the login returned (also at /api/v1/auth/me) as X-CSRF-Token")
