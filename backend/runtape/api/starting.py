"""What a process answers from the moment it listens: that it lives, and what it waits for, until its work can begin."""

import time

from starlette.types import ASGIApp, Receive, Scope, Send

from runtape.api.health import LIVE, READY, tell_alive, tell_parts
from runtape.api.problems import RETRY_AFTER_S, HttpRefusal, send_problem

_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_TRY_AGAIN_LATER = 1013
"""Of RFC 6455's registry of close codes."""


class Starting(HttpRefusal):
    """The process lives, and its work has not begun."""

    code = "starting"

    def __init__(self) -> None:
        super().__init__(f"the service is starting; {READY} says what it waits for")
        self.retry_after_s = RETRY_AFTER_S


class UntilStarted:
    """ASGI: `app`, once it is set; before that health, and 503 ``starting`` for everything else."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self._waits_for = "starting"
        self._began_s = time.monotonic()

    def waits_for(self, what: str) -> None:
        """Tell from now on that the process waits for `what`."""
        self._waits_for = what

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
        elif scope["path"] == LIVE:
            await tell_alive(send, time.monotonic() - self._began_s)
        elif scope["path"] == READY:
            await tell_parts(send, {"service": self._waits_for})
        else:
            await send_problem(send, Starting(), _HEADERS)
