"""What a server imports before it is ready, and the part of its routes that it makes when they are wanted."""

import asyncio
import subprocess
import sys
import threading

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtape.api.app import Deferred


def test_server_is_ready_without_the_framework() -> None:
    code = "import runtape.runtime.process, sys; sys.exit('fastapi' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


async def test_application_is_made_once_while_the_loop_goes_on() -> None:
    may_be_made, made, asked = threading.Event(), 0, []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])

    def make() -> ASGIApp:
        nonlocal made
        assert may_be_made.wait(10)
        made += 1
        return app

    deferred = Deferred(make)
    first, second = (asyncio.create_task(deferred({"path": path}, _receive, _send)) for path in ("/1", "/2"))
    await asyncio.sleep(0)  # the loop has its turn
    may_be_made.set()
    await asyncio.gather(first, second)
    await deferred({"path": "/3"}, _receive, _send)
    assert (made, asked) == (1, ["/1", "/2", "/3"])


async def test_application_that_could_not_be_made_is_tried_again() -> None:
    made: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        made.append(scope["path"])

    def make() -> ASGIApp:
        if not made:
            made.append("failed")
            raise MemoryError
        return app

    deferred = Deferred(make)
    for path in ("/1", "/2"):
        try:
            await deferred({"path": path}, _receive, _send)
        except MemoryError:
            made.append("told")
    assert made == ["failed", "told", "/2"]


async def _receive() -> Message:
    raise AssertionError("nobody asks")


async def _send(message: Message) -> None:
    raise AssertionError("nobody answers")
