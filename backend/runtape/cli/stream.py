"""Following one execution over any number of connections, each byte once.

Theory of operation.  A stream's position is the id of the last frame that was taken, `<version>.<attempt>.<seq>`.
When a connection breaks (also in the middle of a frame, which is then dropped whole) the next one asks for what
lies beyond that position.  `seq` counts without a hole within an attempt, so a record that comes again is known
and skipped, and a record that is missing shows: the position is then not moved, the connection is given up and the
record asked for once more.  Only when the server itself says that bytes are gone does the reader hear of a loss.
"""

import base64
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any

from runtape.cli.client import Api, refusal
from runtape.cli.errors import CliError, Refused, Unreachable
from runtape.cli.sse import Frame, FrameParser


@dataclass(frozen=True, slots=True)
class Output:
    """One record of the tape; `truncated` marks the end of what the output limit let through."""

    attempt: int
    seq: int
    stream: str
    t_ns: int
    data: bytes
    truncated: bool


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What happened to the execution; `type` with underscores, as `execution_started`."""

    type: str
    execution_id: str
    attempt: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loss:
    """Frames that will not come, and why."""

    reason: str


Event = Output | Lifecycle | Loss


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how fast a broken stream is opened again: the delay doubles, is bounded, and half of it jitters."""

    attempts: int = 9
    base_s: float = 0.1
    most_s: float = 5.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int, at_least_s: float) -> None:
        """Sleep before the try that follows `failures` failures in a row."""
        delay_s = min(self.most_s, self.base_s * 2 ** (failures - 1))
        self.sleep(max(min(at_least_s, self.most_s), delay_s * random.uniform(0.5, 1.0)))


@dataclass(slots=True)
class Position:
    """Where a reader stands: what a new connection has to ask for, and what it may send again."""

    execution_id: str | None = None
    cursor: str | None = None
    attempt: int = 0
    seq: int = 0
    taken: set[str] = field(default_factory=set[str])


class _Broken(Exception):
    """This connection is of no more use; another may be."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


Open = Callable[[Position], tuple[Api, HTTPResponse]]
"""Opens the stream at a position.  Raises: Unreachable (try again), or another CliError (give up)."""


def follow(
    open_stream: Open,
    position: Position,
    *,
    backoff: Backoff | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Iterator[Event]:
    """Yield everything that happens to the execution, in order and once, until its stream has ended.

    `position` is kept up to date and may be shared, to learn the execution's id.  `say` hears of each break and
    each recovery.  Raises: Refused; CliError, when the stream stays broken.
    """
    backoff = backoff or Backoff()
    failures, announced, holes = 0, False, set[tuple[int, int]]()
    while True:
        try:
            api, response = open_stream(position)
            for event in _events(api, response, position, holes):
                if announced:
                    say("connected again")
                failures, announced = 0, False
                yield event
            return
        except (Unreachable, _Broken) as error:
            failures += 1
            if failures >= backoff.attempts:
                raise CliError(_given_up(error, position)) from error
            if not announced:
                say(f"{error}; resuming")
                announced = True
            backoff.wait(failures, error.after_s if isinstance(error, _Broken) else 0.0)


def open_existing(api: Api, position: Position) -> tuple[Api, HTTPResponse]:
    """Open the stored stream of a known execution at `position`."""
    headers = {"Accept": "text/event-stream"}
    if position.cursor:
        headers["Last-Event-ID"] = position.cursor
    response = api.request("GET", f"/events/{position.execution_id}", headers=headers)
    return api, stream_or_refusal(api, response, resuming=position.cursor is not None)


def stream_or_refusal(api: Api, response: HTTPResponse, *, resuming: bool) -> HTTPResponse:
    """Return `response` when it is a stream.

    Raises: Unreachable, for what a gateway or a server under way up or down says; else Refused.
    """
    if response.status == 200:
        return response
    error: Refused = refusal(response)
    api.close()
    passing = response.status in (502, 504) or (response.status == 503 and error.code in (None, "unavailable"))
    if passing or (resuming and response.status in (429, 500, 503)):
        raise Unreachable(str(error)) from error
    raise error


def _events(api: Api, response: HTTPResponse, position: Position, holes: set[tuple[int, int]]) -> Iterator[Event]:
    """Yield what is new on one connection and return at its `end` frame.  Raises: _Broken, Unreachable."""
    parser = FrameParser()
    while piece := api.read_some(response):
        for frame in parser.feed(piece):
            if frame.event == "shutdown":
                api.close()
                why = _body(frame).get("detail") or "the server is shutting down"
                raise _Broken(str(why), (parser.retry_ms or 0) / 1000)
            yield from _taken(frame, position, holes)
            if frame.event == "end":
                api.close()
                return
    api.close()
    raise _Broken("the connection was closed early", (parser.retry_ms or 0) / 1000)


def _taken(frame: Frame, position: Position, holes: set[tuple[int, int]]) -> Iterator[Event]:
    """Yield the event of a frame unless it was taken before, and move `position` behind it."""
    body = _body(frame)
    event: Event | None = None
    if frame.event == "output":
        event = _output(body)
        place = (event.attempt, event.seq)
        if place <= (position.attempt, position.seq):
            event = None
        else:
            follows = (event.attempt == position.attempt and event.seq == position.seq + 1) or (
                event.attempt > position.attempt and event.seq == 1
            )
            if not follows and place not in holes:
                holes.add(place)
                raise _Broken(f"a part of the output is missing before record {event.attempt}.{event.seq}")
            if not follows:
                yield Loss(f"output before record {event.attempt}.{event.seq} is missing")
            position.attempt, position.seq = place
    elif frame.event == "gap":
        event = Loss(f"the server no longer has a part of the stream ({body.get('reason', 'unknown')})")
        position.attempt, position.seq = _place(str(body.get("to_id") or frame.id or ""), position)
    elif frame.event == "message":
        event = _lifecycle(body, position)
    if frame.id:
        position.cursor = frame.id
    if event is not None:
        yield event


def _body(frame: Frame) -> dict[str, Any]:
    try:
        body = json.loads(frame.data)
    except ValueError:
        raise _Broken("the stream holds something that is not JSON") from None
    return body if isinstance(body, dict) else {}


def _output(body: dict[str, Any]) -> Output:
    try:
        data = base64.b64decode(body["b64"]) if "b64" in body else str(body.get("text", "")).encode()
        return Output(
            attempt=int(body["attempt"]),
            seq=int(body["seq"]),
            stream=str(body["stream"]),
            t_ns=int(body.get("t_ns", 0)),
            data=data,
            truncated=bool(body.get("truncated")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _Broken(f"an output record cannot be read ({error})") from None


def _lifecycle(body: dict[str, Any], position: Position) -> Lifecycle | None:
    event_id = body.get("event_id")
    if event_id:
        if event_id in position.taken:
            return None
        position.taken.add(str(event_id))
    if body.get("execution_id"):
        position.execution_id = str(body["execution_id"])
    attempt = body.get("attempt")
    return Lifecycle(
        type=str(body.get("event_type", "")),
        execution_id=position.execution_id or "",
        attempt=attempt if isinstance(attempt, int) else 0,
        body=body,
    )


def _place(cursor: str, position: Position) -> tuple[int, int]:
    """Return attempt and seq of a cursor, or where the reader stands when it cannot be read."""
    parts = cursor.split(".")
    if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
        return max((int(parts[1]), int(parts[2])), (position.attempt, position.seq))
    return position.attempt, position.seq


def _given_up(error: Exception, position: Position) -> str:
    if position.execution_id is None:
        return f"{error}; gave up"
    return (
        f"{error}; gave up following {position.execution_id}, which goes on without us: "
        f"see it with `runtape tape {position.execution_id}`"
    )
