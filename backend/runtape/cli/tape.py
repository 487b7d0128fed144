"""`runtape tape`: a past or running run's output, as it was printed."""

import base64
import contextlib
import json
import time
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from runtape.cli.client import Api
from runtape.cli.errors import CliError, Unreachable
from runtape.cli.exit_codes import STDOUT_CLOSED
from runtape.cli.server import Locator
from runtape.cli.stream import Lifecycle, Loss, Output, Position, follow, open_existing
from runtape.cli.summary import summary
from runtape.cli.terminal import StdoutClosed, Terminal, print_text


def tape(
    execution_id: Annotated[str, Parameter(name="ID")],
    /,
    *,
    speed: float = 1.0,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), show_default=False)] = False,
    server: str | None = None,
    api_key: str | None = None,
    data: Path | None = None,
) -> int:
    """Print a run's output again, with its original timing.

    A run that has not ended is followed to its end.

    Args:
        execution_id: The execution's id, as the last line of `runtape run` names it.
        speed: How many times faster than it ran; 0 or inf prints at once.
        as_json: Print the records and the result as one JSON object, at once.
        server: The server's address; also RUNTAPE_SERVER.  Without one, a server on this machine is used or started.
        api_key: The key for that server; also RUNTAPE_API_KEY.
        data: The folder of the server on this machine; also RUNTAPE_DATA.
    """
    if not speed >= 0:
        raise CliError(f"--speed is {speed:g}; it is 0 or more")
    terminal = Terminal()
    with contextlib.closing(_Source(Locator(url=server, api_key=api_key, data=data))) as source:
        try:
            result = replay(source, execution_id, terminal, pace=Pace(0.0 if as_json else speed), as_json=as_json)
        except StdoutClosed as closed:
            if not closed.quiet:
                raise CliError(str(closed)) from closed
            return STDOUT_CLOSED
    if not as_json and result:
        terminal.say(summary(result))
    return 0


class Pace:
    """Holds each record back until its time: `t_ns` after its attempt's first was due, divided by `speed`."""

    def __init__(
        self,
        speed: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # A speed of 0 and of infinity both mean that nothing is held back.
        self._factor_s = 1e-9 / speed if speed else 0.0
        self._clock, self._sleep = clock, sleep
        self._attempt = 0
        self._start_s = 0.0

    def hold(self, record: Output) -> None:
        """Return when `record` is due."""
        if record.attempt != self._attempt:
            self._attempt, self._start_s = record.attempt, self._clock()
        rest_s = self._start_s + record.t_ns * self._factor_s - self._clock()
        if rest_s > 0 and self._factor_s:
            self._sleep(rest_s)


def replay(
    source: "_Source", execution_id: str, terminal: Terminal, *, pace: Pace, as_json: bool = False
) -> dict[str, Any]:
    """Print the stored stream of an execution and return its result, empty when the stream had none."""
    records: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    position = Position(execution_id=execution_id)
    for event in follow(source.open, position, say=terminal.say):
        match event:
            case Output() if as_json:
                records.append(_as_json(event))
            case Output():
                pace.hold(event)
                terminal.write(event.stream, event.data)
                if event.truncated:
                    terminal.say("the output was cut off here, at its limit")
            case Loss():
                terminal.say(event.reason)
            case Lifecycle(type="execution_restarted"):
                terminal.say(f"attempt {event.attempt} starts again")
            case Lifecycle(type="result_stored"):
                result = event.body.get("result") or {}
            case Lifecycle():
                pass
    if as_json:
        print_text(json.dumps({"execution_id": execution_id, "records": records, "result": result}))
    return result


class _Source:
    """Opens the stored stream, on a server that is found anew for each connection."""

    def __init__(self, locator: Locator) -> None:
        self._locator = locator
        self._api: Api | None = None
        self._reached = False

    def open(self, position: Position) -> tuple[Api, HTTPResponse]:
        self.close()
        try:
            self._api = self._locator.locate()
        except Unreachable as error:
            if not self._reached:
                raise CliError(str(error)) from error
            raise
        self._reached = True
        return open_existing(self._api, position)

    def close(self) -> None:
        if self._api is not None:
            self._api.close()


def _as_json(record: Output) -> dict[str, Any]:
    try:
        content = {"text": record.data.decode()}
    except UnicodeDecodeError:
        content = {"b64": base64.b64encode(record.data).decode()}
    known = {"attempt": record.attempt, "seq": record.seq, "stream": record.stream, "t_ns": record.t_ns}
    return {**known, **content, **({"truncated": True} if record.truncated else {})}
