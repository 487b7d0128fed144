"""The part of Kubernetes' API that pods need, in the words of the ports' errors.

Answers are plain JSON: the client's models take longer to make than the API takes to answer.
"""

import asyncio
import contextlib
import copy
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
from kubernetes_asyncio import client
from kubernetes_asyncio.stream import WsApiClient

from runtape import __version__
from runtape.ports.errors import Permanent, Transient, Unavailable

USER_AGENT: Final = f"runtape/{__version__}"
"""Whom the audit log of the cluster names."""
TIMEOUT_S: Final = 10.0
CLOSE_S: Final = 1.0
WATCH_S: Final = 300
"""How long one watch lasts before the API ends it, and another goes on behind it."""
SILENCE_S: Final = 90.0
"""A watch that says nothing for so long, not even its bookmark of each minute, is dead."""
RETRY_AFTER_S: Final = 30.0
"""The longest pause that the API is granted: what waits is to go on soon after it is back."""
_CONFLICT: Final = 409
_GONE: Final = 410
_NOT_FOUND: Final = 404
_TOO_MANY: Final = 429
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
RAW: Final[dict[str, Any]] = {"_preload_content": False}
"""What a call of the client is given for `asked`: the answer itself."""
_STDIN: Final = b"\0"
_STDOUT: Final = 1
_MESSAGE_BYTES: Final = 256 << 10


class Exists(Transient):
    """There is a pod of that name."""


class Changed(Transient):
    """What was to be changed, or deleted, is no longer as it was seen."""


class Missing(Transient):
    """There is no such pod."""


class QuotaExceeded(Transient):
    """The namespace has no room for another pod."""


class Gone(Transient):
    """What was to be continued from is too old: everything is to be listed anew."""


class Forbidden(Permanent):
    """This account may not do that, or nobody may; also for a moment, of an API that has just begun."""


async def asked(call: Any) -> Any:
    """Return the JSON that the API answers to a call of its client.

    Raises: Exists; Changed; Missing; Gone; QuotaExceeded; Unavailable; Transient; Forbidden; Permanent.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async with await call as answer:
                await _checked(answer)
                return msgspec.json.decode(await answer.read())
    except (*_BROKEN, msgspec.DecodeError) as error:  # the latter: who stands between ended it in the middle
        raise Unavailable(f"Kubernetes does not answer: {error or type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class Listed:
    """Pods, and from where a watch goes on."""

    pods: list[dict[str, Any]]
    version: str


class PodApi:
    """Pods of one namespace; `close` ends its connections."""

    def __init__(self, configuration: client.Configuration, namespace: str) -> None:
        self.namespace = namespace
        self._client = client.ApiClient(configuration)
        self._client.user_agent = USER_AGENT
        # Each attachment lasts as long as its program, and one that had to wait for another would wait for its end.
        unlimited = copy.copy(configuration)
        unlimited.connection_pool_maxsize = 0
        self._streams = WsApiClient(unlimited)
        self._streams.user_agent = USER_AGENT
        self._left: set[Any] = set()
        """Sockets of connections that were left open-ended; TLS takes leave of the other side a little later."""
        # Typed as what they return when answers are made into models, which they are not here.
        self._core: Any = client.CoreV1Api(self._client)
        self._attaching: Any = client.CoreV1Api(self._streams)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
        await self._streams.close()
        deadline_s = time.monotonic() + CLOSE_S
        while any(each.fileno() >= 0 for each in self._left) and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # nobody tells of the end of a transport that is aiohttp's

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Make a pod and return it.  Raises: Exists; QuotaExceeded; Unavailable; Transient; Forbidden; Permanent."""
        return await asked(self._core.create_namespaced_pod(self.namespace, manifest, **RAW))

    async def read(self, name: str) -> dict[str, Any] | None:
        """Return a pod as it is now, None when there is none.  Raises: Transient."""
        try:
            return await asked(self._core.read_namespaced_pod(name, self.namespace, **RAW))
        except Missing:
            return None

    async def patch(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change a pod and return it; ``metadata.resourceVersion`` in `changes` is that which it must have.

        Raises: Changed, when it has another; Missing; Transient, when nobody knows whether it was changed; Permanent.
        """
        return await asked(self._core.patch_namespaced_pod(name, self.namespace, changes, **RAW))

    async def delete(self, name: str, grace_s: int = 0, version: str | None = None, uid: str | None = None) -> None:
        """Have a pod deleted; nothing when there is none.

        Raises: Changed, when it has another ``resourceVersion`` than `version`, or another ``uid``, if that is given;
        Transient; Permanent.
        """
        given = {"resourceVersion": version, "uid": uid}
        preconditions = {name: value for name, value in given.items() if value is not None}
        body = {"gracePeriodSeconds": grace_s, "preconditions": preconditions}
        with contextlib.suppress(Missing):
            await asked(self._core.delete_namespaced_pod(name, self.namespace, body=body, **RAW))

    async def list(self, selector: str) -> Listed:
        """Return the pods that `selector` finds.  Raises: Transient."""
        found = await asked(self._core.list_namespaced_pod(self.namespace, label_selector=selector, **RAW))
        return Listed(found["items"], found["metadata"]["resourceVersion"])

    async def watch(self, selector: str, version: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield what happens to the pods that `selector` finds after `version`: what it is, and the pod.

        Ends after some minutes; the last pod's, or bookmark's, ``resourceVersion`` is where to go on.
        Raises: Gone; Unavailable; Transient; Permanent.
        """
        call = self._core.list_namespaced_pod(
            self.namespace,
            label_selector=selector,
            resource_version=version,
            watch=True,
            allow_watch_bookmarks=True,
            timeout_seconds=WATCH_S,
            _preload_content=False,
            _request_timeout=aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=SILENCE_S),
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):  # a watch is answered at once, whatever it has to say
                asked_for = await call
            async with asked_for as answer:
                await _checked(answer)
                if answer.connection is not None:  # else it has ended already
                    self._leave(answer.connection.transport.get_extra_info("socket"))
                async for line in answer.content:
                    event = msgspec.json.decode(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise (Gone if status.get("code") == _GONE else Transient)(status.get("message") or "watch")
                    yield event["type"], event["object"]
        except (*_BROKEN, msgspec.DecodeError) as error:
            raise Unavailable(f"Kubernetes does not answer: {error or type(error).__name__}") from error

    @contextlib.asynccontextmanager
    async def attached(self, name: str, container: str) -> AsyncGenerator["Attachment", None]:
        """Attach to the standard input and output of a container.  Raises: Transient."""
        call = self._attaching.connect_get_namespaced_pod_attach(
            name,
            self.namespace,
            container=container,
            stdin=True,
            stdout=True,
            stderr=False,
            tty=False,
            _preload_content=False,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                connecting = await call
                socket = await connecting.__aenter__()
        except _BROKEN as error:
            raise Transient(f"the pod {name} cannot be attached to: {error or type(error).__name__}") from error
        self._leave(socket.get_extra_info("socket"))
        try:
            yield Attachment(socket)
        finally:
            with contextlib.suppress(TimeoutError):  # nobody takes leave at the other end of a dead connection
                async with asyncio.timeout(CLOSE_S):
                    await socket.close()

    def _leave(self, socket: Any) -> None:
        """Take note of a connection's socket, None: it is lost already."""
        self._left = {each for each in (*self._left, socket) if each is not None and each.fileno() >= 0}


class Attachment:
    """A connection to a container's standard input and output."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def write(self, data: bytes) -> None:
        """Send bytes to its input.  Raises: Transient."""
        try:
            for at in range(0, len(data), _MESSAGE_BYTES):
                async with asyncio.timeout(TIMEOUT_S):
                    await self._socket.send_bytes(_STDIN + data[at : at + _MESSAGE_BYTES])
        except _BROKEN as error:
            raise Transient(f"the connection to the pod is lost: {error or type(error).__name__}") from error

    async def read(self) -> bytes:
        """Return what comes next of its output; empty when the connection has ended.  Raises: Transient."""
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                if message.data[0] == _STDOUT and len(message.data) > 1:
                    return message.data[1:]
            elif message.type is not aiohttp.WSMsgType.TEXT:
                return b""


_BROKEN: Final = (aiohttp.ClientError, TimeoutError, OSError)


async def _checked(answer: aiohttp.ClientResponse) -> None:
    """Return when the API has done what it was asked.

    Raises: as `asked`.
    """
    if answer.status < 300:
        return
    words = await answer.read()
    try:
        status = msgspec.json.decode(words)
        message, reason = status["message"], status.get("reason")
    except (msgspec.DecodeError, KeyError, TypeError):
        message, reason = words[:200].decode(errors="replace"), None
    said = f"Kubernetes answers {answer.status}: {message}"
    match answer.status:
        case code if code == _CONFLICT:
            raise Exists(said) if reason == "AlreadyExists" else Changed(said)
        case code if code == _GONE:
            raise Gone(said)
        case code if code == _NOT_FOUND and reason == "NotFound":
            raise Missing(said)
        case code if code == _FORBIDDEN:
            raise QuotaExceeded(said) if "exceeded quota" in message else Forbidden(said)
        # None of these is about what was asked for.  A token is renewed; and that there is no such page is not said by
        # an API that is all there.
        case code if code in (_UNAUTHORIZED, _NOT_FOUND, _TOO_MANY) or code >= 500:
            raise Unavailable(said, retry_after_s=_retry_after_s(answer))
    raise Permanent(said)


def _retry_after_s(answer: aiohttp.ClientResponse) -> float | None:
    """Return how long the API is left alone as it wants; up to half as long again, as it says the same to everybody."""
    told = answer.headers.get("retry-after", "")
    return min(float(told), RETRY_AFTER_S) * random.uniform(1.0, 1.5) if told.isdigit() else None  # noqa: S311
