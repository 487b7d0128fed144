"""Problem details (RFC 9457): the one table from codes to HTTP.

**Shape** of a problem: ``{type, title, status, detail, code, field?, retry_after_s?, errors?, request_id?}``.
``code`` is stable; ``detail`` is for people; ``field`` is the dotted path of the part at fault, and ``errors``
lists up to `MAX_ERRORS` of them when there are several.  Nothing of an exception that was not made for callers
gets into an answer, and no part of the request but names.
"""

import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from starlette.types import Scope, Send

from runtape.domain.errors import DomainError

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 10
MAX_DETAIL = 500
"""Characters of a detail or a field's name, which may repeat what was sent."""

RETRY_AFTER_S = 1
"""What a caller is told to wait when the part that failed does not say."""

_STATUS: Mapping[str, tuple[int, str]] = {
    "malformed_json": (400, "The body is malformed"),
    "unauthenticated": (401, "Credentials are missing or not valid"),
    "scope_missing": (403, "The credentials do not allow this"),
    "csrf_failed": (403, "The request does not prove that it comes from our own page"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "The path does not take this method"),
    "already_terminal": (409, "The execution has ended"),
    "not_terminal": (409, "The execution has not ended"),
    "not_waiting": (409, "The execution does not wait"),
    "dead_letter_blocked": (409, "The dead letter cannot be retried now"),
    "dead_letter_resolved": (409, "The dead letter was retried or discarded before"),
    "session_state_conflict": (409, "The session is in another state"),
    "idempotency_conflict": (409, "The idempotency key was used for another request"),
    "output_expired": (410, "The output is no longer kept"),
    "body_too_large": (413, "The body is too large"),
    "range_not_satisfiable": (416, "The range lies beyond the end"),
    "runtime_unknown": (422, "The language is not installed"),
    "version_unknown": (422, "The version is not installed"),
    "limit_out_of_range": (422, "A limit is out of range"),
    "script_too_large": (422, "The script is too large"),
    "invalid_path": (422, "A path is not valid"),
    "requirement_invalid": (422, "A requirement is not valid"),
    "packages_disabled": (422, "Packages are switched off"),
    "validation_failed": (422, "A field is not valid"),
    "rate_limited": (429, "Too many requests"),
    "internal": (500, "The service failed"),
    "queue_full": (503, "The queue is full"),
    "draining": (503, "The service accepts nothing new"),
    "starting": (503, "The service is starting"),
    "unavailable": (503, "A part of the service is unavailable"),
}
_LOGGED = "runtape.logged_failure"


class HttpRefusal(DomainError):
    """A refusal that only HTTP knows, raised in front of every handler."""


class MalformedJson(HttpRefusal):
    """The body is no JSON text."""

    code = "malformed_json"


class MethodNotAllowed(HttpRefusal):
    """The path is served, but not by this method; the answer's ``Allow`` names those that are."""

    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"{method[:20]} cannot be had at {path[:200]}; use {allowed}")


class BodyTooLarge(HttpRefusal):
    """The body is longer than this service reads."""

    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is longer than {limit_bytes} bytes")


class Unavailable(HttpRefusal):
    """A part that the service depends on failed and may work later."""

    code = "unavailable"

    def __init__(self, retry_after_s: float | None = None) -> None:
        super().__init__("a part of the service does not answer just now; try again")
        self.retry_after_s = max(math.ceil(retry_after_s or RETRY_AFTER_S), 1)


class InternalError(HttpRefusal):
    """The service failed; what failed is in its log, under the request id."""

    code = "internal"

    def __init__(self, request_id: str) -> None:
        super().__init__(f'the service failed; its log tells more under the request id "{request_id}"')


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part of a request that is at fault."""

    detail: str
    field: str | None = None


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The body of a refusal, in the order in which it is written."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    retry_after_s: int | None = None
    errors: tuple[FieldError, ...] = ()
    request_id: str | None = None


_encoder = msgspec.json.Encoder()


def problem(
    code: str,
    detail: str,
    *,
    status: int | None = None,
    field: str | None = None,
    retry_after_s: int | None = None,
    errors: Sequence[FieldError] = (),
    request_id: str | None = None,
) -> Problem:
    """Return the problem of `code`; `status` is needed for a code outside the table alone."""
    known_status, title = _STATUS.get(code) or (status or 500, code.replace("_", " ").capitalize())
    return Problem(
        type=f"urn:runtape:problem:{code}",
        title=title,
        status=known_status,
        detail=detail[:MAX_DETAIL],
        code=code,
        field=field and field[:MAX_DETAIL],
        retry_after_s=retry_after_s,
        errors=tuple(errors[:MAX_ERRORS]),
        request_id=request_id,
    )


def encode(body: Problem) -> bytes:
    """Return `body` as JSON."""
    return _encoder.encode(body)


def refusal(error: DomainError, request_id: str | None = None) -> Problem:
    """Return the problem of a refusal."""
    return problem(
        error.code,
        error.detail,
        field=error.field,
        retry_after_s=getattr(error, "retry_after_s", None),
        request_id=request_id,
    )


def headers_of(body: Problem) -> dict[str, str]:
    """Return the headers that the problem asks for: the challenge of a 401 (RFC 6750), Retry-After."""
    headers: dict[str, str] = {}
    if body.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="runtape"'
    if body.retry_after_s is not None:
        headers["retry-after"] = str(body.retry_after_s)
    return headers


async def send_problem(
    send: Send, error: DomainError, headers: Iterable[tuple[bytes, bytes]] = (), request_id: str | None = None
) -> None:
    """Answer a raw ASGI request with the problem of `error`, and with `headers` beside its own."""
    body = refusal(error, request_id)
    data = encode(body)
    own = [(name.encode(), value.encode("latin-1")) for name, value in headers_of(body).items()]
    start = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(data)), *own, *headers]
    await send({"type": "http.response.start", "status": body.status, "headers": start})
    await send({"type": "http.response.body", "body": data})


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI ``responses`` of the problems with `codes`, with an example of each."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = _STATUS[code]
        media: dict[str, Any] = {"schema": _SCHEMA, "examples": {}}
        entry = responses.setdefault(status, {"description": title, "content": {MEDIA_TYPE: media}})
        example = msgspec.to_builtins(problem(code, title))
        entry["content"][MEDIA_TYPE]["examples"][code] = {"summary": title, "value": example}
    return responses


_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "field": {"type": "string"},
        "retry_after_s": {"type": "integer"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {"detail": {"type": "string"}, "field": {"type": "string"}},
            },
        },
    },
}


def log_unhandled(scope: Scope, request_id: str, error: Exception) -> None:
    """Log an exception that nobody handled, under its request's id; once, however many edges it passes."""
    if scope.get(_LOGGED) is not error:
        scope[_LOGGED] = error
        # As text and not as exc_info: a renderer that shows local variables would show the credentials among them.
        trace = "".join(traceback.format_exception(error))
        log.error("request.failed", request_id=request_id, method=scope["method"], path=scope["path"], exception=trace)
