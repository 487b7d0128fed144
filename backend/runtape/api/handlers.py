"""What becomes of the exceptions of FastAPI's routes: problems, as everywhere."""

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from runtape.api.access import REQUEST_ID_KEY
from runtape.api.problems import (
    MAX_ERRORS,
    FieldError,
    InternalError,
    MethodNotAllowed,
    Unavailable,
    log_unhandled,
    problem,
    refusal,
)
from runtape.api.responses import problem_response
from runtape.domain.errors import DomainError
from runtape.ports.errors import Transient

log = structlog.get_logger(__name__)

_CODE_OF_STATUS = {
    400: "malformed_json",
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    422: "validation_failed",
    429: "rate_limited",
    500: "internal",
    503: "unavailable",
}
"""The codes of refusals that routes and frameworks raise as a bare status; any other is named as in RFC 9110."""

_STATUSES = frozenset(HTTPStatus)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def install(app: FastAPI) -> None:
    """Let every exception of `app` that reaches HTTP become a problem."""
    handlers: Mapping[type[Exception], Any] = {
        DomainError: _on_refusal,
        Transient: _on_transient,
        RequestValidationError: _on_validation,
        HTTPException: _on_http,
        Exception: _on_unhandled,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _request_id(scope: Scope) -> str | None:
    return scope.get(REQUEST_ID_KEY)


async def _on_refusal(request: Request, error: DomainError) -> Response:
    return problem_response(refusal(error, _request_id(request.scope)))


async def _on_transient(request: Request, error: Transient) -> Response:
    request_id = _request_id(request.scope)
    log.warning("request.unavailable", request_id=request_id, path=request.url.path, error=str(error))
    return problem_response(refusal(Unavailable(error.retry_after_s), request_id))


async def _on_http(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    code = _CODE_OF_STATUS.get(status) or (HTTPStatus(status).name.lower() if status in _STATUSES else "refused")
    detail = error.detail
    headers = dict(error.headers or {})
    request_id = _request_id(request.scope)
    path = request.url.path[:200]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        # The router names the methods of the first route with this path; there may be others beside it.
        allowed = _allowed_methods(request) or headers.get("Allow", "")
        headers = {"allow": allowed}
        detail = MethodNotAllowed(request.method, path, allowed).detail
    elif status == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"there is nothing at {path}"
    return problem_response(problem(code, detail, status=status, request_id=request_id), headers)


async def _on_validation(request: Request, error: RequestValidationError) -> Response:
    request_id = _request_id(request.scope)
    found = error.errors()
    first = found[0] if found else {"type": "", "loc": (), "msg": "the request is not valid"}
    if first["type"] == "json_invalid":
        reason = str(first.get("ctx", {}).get("error", "it cannot be parsed"))
        detail = f"the body is not JSON: {reason[:1].lower()}{reason[1:]} (character {first['loc'][-1]})"
        return problem_response(problem("malformed_json", detail, request_id=request_id))
    errors = [_field_error(each) for each in found[:MAX_ERRORS]]
    body = problem(
        "validation_failed",
        errors[0].detail if errors else first["msg"],
        field=errors[0].field if errors else None,
        errors=errors if len(errors) > 1 else (),
        request_id=request_id,
    )
    return problem_response(body)


async def _on_unhandled(request: Request, error: Exception) -> Response:
    request_id = _request_id(request.scope) or secrets.token_hex(8)
    log_unhandled(request.scope, request_id, error)
    return problem_response(refusal(InternalError(request_id), request_id))


def _field_error(error: Mapping[str, Any]) -> FieldError:
    """Return one of Pydantic's errors as a sentence; never what was sent, which may be a secret."""
    where, *parts = error["loc"] or ("body",)
    name = ".".join(str(part) for part in parts)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return FieldError(f"{name} is missing", name) if name else FieldError(f"the {where} is missing")
    message = message[:1].lower() + message[1:]
    return FieldError(f"{name}: {message}", name) if name else FieldError(f"the {where} is not valid: {message}")


def _allowed_methods(request: Request) -> str:
    routes = request.app.router.routes
    scope = request.scope
    path = {"type": "http", "path": scope["path"], "root_path": scope.get("root_path", ""), "headers": []}
    allowed = [
        method
        for method in _METHODS
        if any(route.matches({**path, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ", ".join(allowed)
