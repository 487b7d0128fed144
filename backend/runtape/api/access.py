"""What a route asks about its caller.  The gate has authenticated it; these decide whether it may go on."""

import ipaddress
import re
from functools import lru_cache

from starlette.types import Scope as AsgiScope

from runtape.application.submission import Requested
from runtape.domain.errors import ScopeMissing, Unauthenticated
from runtape.domain.identity import Principal, Scope

PRINCIPAL_KEY = "runtape.principal"
REQUEST_ID_KEY = "runtape.request_id"


_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
"""W3C Trace Context, 3.2.2; what does not look like it is not passed on (3.2.1)."""


def requested_by(scope: AsgiScope) -> Requested:
    """Return by what an ASGI request that passed the gate can be found again."""
    traceparent = None
    for name, value in scope["headers"]:
        if name == b"traceparent" and _TRACEPARENT.match(value):
            traceparent = value.decode()
    return Requested(scope.get(REQUEST_ID_KEY), traceparent)


def principal_of(scope: AsgiScope) -> Principal:
    """Return the principal of an ASGI request that passed the gate.  Raises: Unauthenticated."""
    principal: Principal | None = scope.get(PRINCIPAL_KEY)
    if principal is None:
        raise Unauthenticated('log in, or send an API key as "Authorization: Bearer rt_..."')
    return principal


def require(principal: Principal, scope: Scope) -> None:
    """Return when `principal` has `scope`.  Raises: ScopeMissing."""
    if scope not in principal.scopes:
        raise ScopeMissing(f"this needs the scope {scope}; the credentials have {', '.join(sorted(principal.scopes))}")


def session_cookie(tls: bool) -> str:
    """Return the name of the session cookie: over TLS with the prefix that keeps other origins from setting it."""
    return "__Host-session" if tls else "session"


def peer_of(scope: AsgiScope) -> str:
    """Return the address that a request came from: of IPv6 the /64, which is what one host is given.

    It is the socket's, or what a trusted proxy said (`runtape.runtime.serving`); a client's own headers are not asked.
    """
    client = scope.get("client")
    return _peer(client[0]) if client else "local"


@lru_cache(maxsize=4096)
def _peer(host: str) -> str:
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
