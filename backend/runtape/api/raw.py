"""The hot routes, answered without a framework: ``POST /execute``, the event streams and health.

FastAPI's dependency solving and models cost more than everything else a run costs here together
(docs/measurements/control-plane.md), so these paths are taken before it; and a server that is asked for nothing else
need not import it (`runtape.api.app`).  Their OpenAPI operations are in `runtape.api.openapi`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

import msgspec
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtape.api.access import REQUEST_ID_KEY, principal_of, requested_by, require
from runtape.api.health import LIVE, READY, HealthRoutes
from runtape.api.problems import InternalError, MethodNotAllowed, Unavailable, log_unhandled, send_problem
from runtape.api.requests import decode_execute
from runtape.api.sse import MEDIA_TYPE, SSEService
from runtape.application.identity import Identity
from runtape.application.queries import Queries
from runtape.application.streaming import Cursor
from runtape.application.submission import Submissions
from runtape.domain.errors import DomainError, ValidationFailed
from runtape.domain.identity import Scope as Right
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import Status
from runtape.ports.errors import Transient

log = structlog.get_logger(__name__)

EXECUTE = "/api/v1/execute"
EVENTS = "/api/v1/events/"
EXECUTION_EVENTS = "/api/v1/events/executions/"

_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")
EXECUTION_ID = b"x-execution-id"

_Route = Callable[[Scope, Receive, Send], Awaitable[None]]


class RawRoutes:
    """ASGI: takes the hot paths and hands everything else to `app`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        identity: Identity,
        submissions: Submissions,
        queries: Queries,
        streams: SSEService,
        health: HealthRoutes,
    ) -> None:
        self._app = app
        self._identity = identity
        self._submissions = submissions
        self._queries = queries
        self._streams = streams
        self._health: Mapping[str, _Route] = {LIVE: health.live, READY: health.ready}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path == EXECUTE:
                return await self._guarded(self._execute, "POST", scope, receive, send)
            if path.startswith(EVENTS):
                execution_id = path.removeprefix(EXECUTION_EVENTS).removeprefix(EVENTS)
                if execution_id and "/" not in execution_id:
                    return await self._guarded(self._events, "GET", scope, receive, send)
            health = self._health.get(path)
            if health is not None:
                return await self._guarded(health, "GET", scope, receive, send)
        await self._app(scope, receive, send)

    async def _guarded(self, route: _Route, method: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != method:
            refusal = MethodNotAllowed(scope["method"], scope["path"], method)
            return await send_problem(send, refusal, [(b"allow", method.encode())], scope.get(REQUEST_ID_KEY, ""))
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        request_id: str = scope.get(REQUEST_ID_KEY, "")
        error: DomainError
        try:
            return await route(scope, receive, watched)
        except DomainError as refusal:
            error = refusal
        except Transient as failure:
            log.warning("request.unavailable", request_id=request_id, path=scope["path"], error=str(failure))
            error = Unavailable(failure.retry_after_s)
        except Exception as failure:
            log_unhandled(scope, request_id, failure)
            error = InternalError(request_id)
        if not started:
            await send_problem(send, error, request_id=request_id)

    async def _execute(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_of(scope)
        require(principal, Right.EXECUTE)
        accept = key = None
        for name, value in scope["headers"]:
            if name == b"accept":
                accept = value
            elif name == b"idempotency-key":
                key = value.decode("latin-1")
        streamed = accept is not None and MEDIA_TYPE in accept
        if streamed:
            require(principal, Right.READ)
        body = await _body(receive)
        if body is None:
            return
        execution_id = await self._submissions.execute(principal, decode_execute(body, key), requested_by(scope))
        await asyncio.sleep(0)  # the program starts before its answer is written, not behind it
        named = (EXECUTION_ID, execution_id.encode())
        if streamed:
            confirm = partial(self._identity.confirm, principal)
            return await self._streams.serve(execution_id, Cursor(), receive, send, confirm, (named,))
        # The first answer is the only one: a duplicate gets the same bytes whatever has happened since.
        data = _encode({"execution_id": execution_id, "status": Status.QUEUED})
        headers = [_JSON, (b"content-length", b"%d" % len(data)), named]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_of(scope)
        require(principal, Right.READ)
        path: str = scope["path"]
        execution_id = ExecutionId(path.removeprefix(EXECUTION_EVENTS).removeprefix(EVENTS))
        await self._queries.execution(principal, execution_id)
        cursor = _cursor(scope["headers"], scope["query_string"])
        await self._streams.serve(execution_id, cursor, receive, send, partial(self._identity.confirm, principal))


async def _body(receive: Receive) -> bytes | None:
    """Return the request's whole body, None when the client left; the gate bounds its size."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body if message["type"] == "http.request" else None


def _cursor(headers: Iterable[tuple[bytes, bytes]], query: bytes) -> Cursor:
    """Return where the client wants to go on; the header wins over the query.  Raises: ValidationFailed."""
    text: bytes | None = None
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"last_event_id":
            text = value
    for name, value in headers:
        if name == b"last-event-id":
            text = value
    if not text:
        return Cursor()
    try:
        return Cursor.parse(text.decode("ascii"))
    except UnicodeDecodeError:
        raise ValidationFailed("a cursor is three numbers with dots between", field="Last-Event-ID") from None
