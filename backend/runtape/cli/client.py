"""One HTTP connection to a server.

`http.client` and not httpx2: importing httpx2 costs 180 ms here against 37 ms, and a command needs one
connection, held from the probe to the request, which is what `http.client` is.
"""

import contextlib
import hmac
import http.client
import json
import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from runtape.cli.errors import CliError, Refused, Unreachable

IDLE_S = 45.0
"""Silence after which a connection counts as broken; a stream sends a heartbeat every 15 s."""
CONNECT_S = 10.0
PROVE_S = 3.0
"""How long a server may take to prove itself: it reads nothing for that."""
PROOF_BYTES = 4096
PREFIX = "/api/v1"


class Api:
    """A server's API over one kept-alive connection, opened on first use.  The caller closes it.

    With `instance`, the secret that a server shares with its owner's commands, every connection begins with a
    challenge: another program may have got the port of a server that is gone, and is not to get the key.

    Not for two threads at once: whoever needs a second connection calls `another`.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, instance: str | None = None, timeout_s: float = IDLE_S
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            raise CliError(f'"{url}" has no valid port') from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CliError(f'"{url}" is not a server address; it looks like http://127.0.0.1:8400')
        self._key = api_key
        self._instance = instance
        self._path = parts.path.rstrip("/").removesuffix(PREFIX)
        self.url = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._timeout_s = timeout_s
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=min(CONNECT_S, timeout_s))

    def another(self, *, timeout_s: float) -> "Api":
        """Return the same server with its own connection."""
        return Api(self.url, self._key, instance=self._instance, timeout_s=timeout_s)

    def connect(self) -> None:
        """Open the connection now.  Raises: Unreachable, also when it is another program that answers."""
        try:
            if self._connection.sock is None:
                self._connection.connect()
                if self._instance is not None:
                    self._set_timeout(PROVE_S)
                    self._check_proof(self._instance)
                self._set_timeout(self._timeout_s)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(f"cannot reach {self.url}: {_reason(error)}") from error

    def _check_proof(self, instance: str) -> None:
        challenge = os.urandom(16).hex()
        path = f"{self._path}{PREFIX}/health/live?challenge={challenge}"
        self._connection.request("GET", path, headers={"Accept": "application/json"})
        answer = None
        with contextlib.suppress(ValueError):
            answer = json.loads(self._connection.getresponse().read(PROOF_BYTES))
        proof = answer.get("instance_proof") if isinstance(answer, dict) else None
        expected = hmac.digest(instance.encode(), challenge.encode(), "sha256").hex()
        if not isinstance(proof, str) or not hmac.compare_digest(proof.encode(), expected.encode()):
            self.close()
            raise Unreachable(f"it is not our server that answers at {self.url}")
        if self._connection.sock is None:  # the next request would open it again by itself, to whoever is there
            raise Unreachable(f"the server at {self.url} closes its connections")

    def _set_timeout(self, timeout_s: float) -> None:
        """Set how long an open connection may be silent; `http.client` knows one time for this and connecting."""
        sock: socket.socket | None = self._connection.sock
        if sock is not None:
            sock.settimeout(timeout_s)

    def request(
        self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """Send one request and return the answer, whatever its status, with its body unread.

        `path` is relative to the API's root; `body` is sent as JSON.  Raises: Unreachable.
        """
        sent = {"Accept": "application/json", **(headers or {})}
        if self._key:
            sent["Authorization"] = f"Bearer {self._key}"
        payload = None
        if body is not None:
            payload = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
            sent["Content-Type"] = "application/json"
        self.connect()
        try:
            self._connection.request(method, self._path + PREFIX + path, payload, sent)
            return self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(f"lost the connection to {self.url}: {_reason(error)}") from error

    def call(self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """Return the JSON that the server answers with.  Raises: Refused; Unreachable."""
        response = self.request(method, path, body=body, headers=headers)
        if not 200 <= response.status < 300:
            raise refusal(response)
        return json.loads(self.read(response) or b"null")

    def read(self, response: http.client.HTTPResponse) -> bytes:
        """Return the rest of an answer's body.  Raises: Unreachable."""
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(f"lost the connection to {self.url}: {_reason(error)}") from error

    def read_some(self, response: http.client.HTTPResponse) -> bytes:
        """Return what has arrived of a stream, at least one byte; empty at its regular end.  Raises: Unreachable."""
        try:
            return response.read1(65_536)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(f"lost the connection to {self.url}: {_reason(error)}") from error

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        self._connection.close()


def refusal(response: http.client.HTTPResponse) -> Refused:
    """Return what an answer with an error status says, from its problem details or its status line."""
    problem: dict[str, Any] = {}
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        parsed = json.loads(response.read(1 << 20))
        if isinstance(parsed, dict):
            problem = parsed
    detail = problem.get("detail") or problem.get("title")
    location = response.getheader("Location")
    if not detail and 300 <= response.status < 400 and location:
        detail = f"the server moved to {location}; use that address"
    retry_after = response.getheader("Retry-After")
    return Refused(
        response.status,
        str(detail or f"the server answered {response.status} {response.reason}"),
        code=problem.get("code"),
        field=problem.get("field"),
        retry_after_s=float(retry_after) if retry_after and retry_after.isdigit() else None,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "it was broken off"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
