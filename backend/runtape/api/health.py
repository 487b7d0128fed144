"""Liveness and readiness, answered without a framework: they are what a server is asked first."""

from collections.abc import Container, Mapping
from urllib.parse import parse_qs

import msgspec
from starlette.types import Receive, Scope, Send

from runtape.application.health import Health
from runtape.domain.errors import ValidationFailed
from runtape.ports.clock import Clock

LIVE = "/api/v1/health/live"
READY = "/api/v1/health/ready"
CHALLENGE_CHARACTERS = 16, 128
"""How long a challenge is, at least and at most."""

_encode = msgspec.json.Encoder().encode


class HealthRoutes:
    """Answers whether the process lives, and whether it could carry out a run."""

    def __init__(self, health: Health, clock: Clock) -> None:
        self._health = health
        self._clock = clock

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer while the process can answer at all, and prove which process it is to whoever may know.

        Raises: ValidationFailed.
        """
        challenge = _challenge(scope["query_string"])
        proof = None if challenge is None else self._health.prove(challenge)
        await tell_alive(send, self._clock.monotonic_s() - self._health.started_s, proof)

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200 when store, log and sandbox answer, 503 with what is wrong otherwise.

        Where runs are accepted without a part that is gone, that is told with 200.
        """
        await tell_parts(send, await self._health.parts(), self._health.outlasted)


async def tell_alive(send: Send, uptime_s: float, proof: str | None = None) -> None:
    """Answer the question whether the process lives."""
    await _answer(send, 200, {"status": "ok", "uptime_s": round(uptime_s, 3), "instance_proof": proof})


async def tell_parts(send: Send, parts: Mapping[str, str], outlasted: Container[str] = ()) -> None:
    """Answer the question for readiness with the state of each part, where runs are accepted without `outlasted`."""
    gone = [part for part, state in parts.items() if state != "ok"]
    good = all(part in outlasted for part in gone)
    status = "not_ready" if not good else "degraded" if gone else "ready"
    await _answer(send, 200 if good else 503, {"status": status, "parts": parts})


def _challenge(query: bytes) -> str | None:
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("challenge")
    if given is None:
        return None
    shortest, longest = CHALLENGE_CHARACTERS
    if not shortest <= len(given[-1]) <= longest:
        raise ValidationFailed(f"a challenge has {shortest} to {longest} characters", field="challenge")
    return given[-1]


async def _answer(send: Send, status: int, body: object) -> None:
    data = _encode(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
