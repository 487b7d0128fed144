"""Answers of FastAPI's routes that it has no class for."""

from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtape.api.problems import MEDIA_TYPE as PROBLEM
from runtape.api.problems import Problem, encode, headers_of
from runtape.api.sse import MEDIA_TYPE, serve_frames
from runtape.application.streaming import Batch
from runtape.ports.live import Subscription


def problem_response(body: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer of `body`, with `headers` beside its own."""
    return Response(encode(body), body.status, {**headers_of(body), **(headers or {})}, PROBLEM)


class FrameResponse(Response):
    """Frames as the answer of a FastAPI route; `subscription` is closed with it."""

    def __init__(self, batches: AsyncIterator[Batch], subscription: Subscription) -> None:
        super().__init__(media_type=MEDIA_TYPE.decode())
        self._batches = batches
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve_frames(self._batches, self._subscription, receive, send)
