"""`runtape run`: submit a script, print what it prints while it runs, end as it ended."""

import contextlib
import json
import random
import time
from http.client import HTTPResponse
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from runtape.cli import submission
from runtape.cli.artifacts import left_behind, save
from runtape.cli.cancellation import Cancellation
from runtape.cli.client import Api
from runtape.cli.errors import CliError, Interrupted, Refused, Unreachable
from runtape.cli.exit_codes import CANCELLED, OURS, STDOUT_CLOSED, exit_code
from runtape.cli.server import Locator
from runtape.cli.stream import Backoff, Lifecycle, Loss, Output, Position, follow, open_existing, stream_or_refusal
from runtape.cli.summary import summary
from runtape.cli.terminal import StdoutClosed, Terminal, print_text, read_stdin
from runtape.cli.timeline import chart

CANCEL_TRIES = 5
PASSING = frozenset({429, 500, 502, 503, 504})
"""Statuses that the same request may not meet again."""
Repeated = Annotated[list[str] | None, Parameter(negative=(), consume_multiple=False)]
WithHyphen = Annotated[list[str] | None, Parameter(negative=(), consume_multiple=False, allow_leading_hyphen=True)]


def run(
    script: Annotated[str, Parameter(name="FILE", allow_leading_hyphen=True)],
    /,
    *arguments: str,
    lang: str | None = None,
    lang_version: str | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    file: Repeated = None,
    arg: WithHyphen = None,
    env: Repeated = None,
    with_: Annotated[list[str] | None, Parameter(name="--with", negative=(), consume_multiple=False)] = None,
    stdin: bool | None = None,
    timeline: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), show_default=False)] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), show_default=False)] = False,
    artifacts: Path | None = None,
    server: str | None = None,
    api_key: str | None = None,
    data: Path | None = None,
) -> int:
    """Run a script in a sandbox and print its output while it runs.

    The exit code is the script's own; 128 + n when signal n killed it; 124 time limit; 137 memory limit; 153
    output limit; 130 cancelled; 125 when the run could not be had.  Ctrl-C cancels the run.

    Args:
        script: The script; "-" reads it from standard input.
        arguments: Arguments for the script; put "--" before them when one begins with "-".
        lang: The language; told by the suffix or the #! line when it is not given.
        lang_version: The language's version; the newest when it is not given.
        timeout: Seconds after which the run is ended, of wall-clock and of CPU time.
        memory: MiB that all processes of the run may use together.
        file: A file to lay beside the script, as PATH or PATH=NAME; may be repeated.
        arg: One argument for the script, before the others; may be repeated.
        env: An environment variable as NAME=VALUE; may be repeated.
        with_: A package for a Python script, as "numpy>=2"; may be repeated.  Without it, those count that the script
            names itself in a header (PEP 723).
        stdin: Pass standard input on; by default when it is not a terminal.
        timeline: Show memory and CPU over the time of the run; the points are in the result that --json prints.
        as_json: Print nothing but the result, as one JSON object.
        quiet: Leave out the last lines about the run.
        artifacts: The folder to save the files in that the script leaves in its folder "out".
        server: The server's address; also RUNTAPE_SERVER.  Without one, a server on this machine is used or started.
        api_key: The key for that server; also RUNTAPE_API_KEY.
        data: The folder of the server on this machine; also RUNTAPE_DATA.
    """
    terminal = Terminal()
    locator = Locator(url=server, api_key=api_key, data=data)
    try:
        if script.startswith("-") and script != "-":
            # A leading hyphen is allowed for "-" alone; the parser lets every unknown option in with it.
            raise CliError(f"Unknown option: {script}; see `runtape run --help`")
        text = submission.read_script(script)
        body = submission.request_body(
            script=text,
            lang=lang or submission.language(script, text),
            lang_version=lang_version,
            stdin=_stdin(script, stdin, terminal),
            args=[*(arg or ()), *arguments],
            env=env or (),
            files=file or (),
            requirements=with_ or (),
            timeout_s=timeout,
            memory_mb=memory,
            timeline=timeline,
        )
        result = execute(body, locator, terminal, show=not as_json)
        if artifacts is not None:
            with contextlib.closing(locator.locate()) as api:
                save(api, result, artifacts)
    except Interrupted as stopped:
        terminal.say(str(stopped))
        return CANCELLED
    except StdoutClosed as closed:
        if not closed.quiet:
            terminal.fail(str(closed))
        return STDOUT_CLOSED if closed.quiet else OURS
    except CliError as error:
        terminal.fail(str(error))
        return OURS
    if as_json:
        print_text(json.dumps(result))
    else:
        if timeline:
            terminal.say(chart(result.get("timeline") or ()))
        if not quiet:
            for line in left_behind(result):
                terminal.say(line)
            terminal.say(summary(result))
    return exit_code(result.get("outcome"))


def execute(
    body: dict[str, Any], locator: Locator, terminal: Terminal, *, show: bool, backoff: Backoff | None = None
) -> dict[str, Any]:
    """Submit `body`, follow the run to its end and return its result.

    A lost answer is asked for again under the same idempotency key, so that nothing runs twice.
    Raises: CliError; StdoutClosed, after the run was cancelled.
    """
    submission_ = _Submission(body, locator)
    cancellation = Cancellation(lambda execution_id: _cancel(submission_, execution_id, terminal), terminal.say)
    position = Position()

    def open_stream(at: Position) -> tuple[Api, HTTPResponse]:
        return submission_.open(at, cancellation)

    with cancellation:
        try:
            for event in follow(open_stream, position, backoff=backoff, say=terminal.say):
                if isinstance(event, Output):
                    if show:
                        terminal.write(event.stream, event.data)
                elif isinstance(event, Loss):
                    terminal.say(event.reason)
                elif event.type == "result_stored" and isinstance(event.body.get("result"), dict):
                    return event.body["result"]
                else:
                    _tell(event, terminal)
                if isinstance(event, Lifecycle) and event.execution_id:
                    cancellation.known(event.execution_id)
            if position.execution_id is None:
                raise CliError("the server ended the stream without naming an execution")
            # The stream has ended without its result_stored frame; the stored result tells the same.
            return submission_.server().call("GET", f"/executions/{position.execution_id}/result")
        except StdoutClosed:
            if position.execution_id is not None:
                _cancel(submission_, position.execution_id, terminal)
            raise
        finally:
            submission_.close()


class _Submission:
    """One POST /execute, made as often as it takes to get its answer, and the server it went to."""

    def __init__(self, body: dict[str, Any], locator: Locator) -> None:
        self._body = body
        self._locator = locator
        self._api: Api | None = None
        self._reached = False
        self._key = f"cli-{random.getrandbits(128):032x}"

    def server(self) -> Api:
        """Return the server, found anew after a break: an embedded one may have to be started again."""
        if self._api is None:
            try:
                self._api = self._locator.locate()
            except Unreachable as error:
                if not self._reached:
                    raise CliError(str(error)) from error
                raise
            self._reached = True
        return self._api

    def open(self, position: Position, cancellation: Cancellation) -> tuple[Api, HTTPResponse]:
        """Return the run's stream, at `position` when it is known already.  Raises: Unreachable, CliError."""
        self.close()
        api = self.server()
        cancellation.submitted()
        try:
            if position.execution_id is not None:
                return open_existing(api, position)
            headers = {"Accept": "text/event-stream", "Idempotency-Key": self._key}
            response = api.request("POST", "/execute", body=self._body, headers=headers)
            stream = stream_or_refusal(api, response, resuming=False)
            position.execution_id = stream.getheader("X-Execution-Id") or position.execution_id
            if position.execution_id:
                cancellation.known(position.execution_id)
            if (stream.getheader("Content-Type") or "").startswith("text/event-stream"):
                return api, stream
            position.execution_id = str(json.loads(api.read(stream))["execution_id"])
            cancellation.known(position.execution_id)
            return open_existing(api, position)
        except Unreachable:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the server; the next use finds it again."""
        if self._api is not None:
            self._api.close()
            self._api = None

    def another(self) -> Api:
        """Return a second connection to the same server, for use beside the stream."""
        return self._api.another(timeout_s=10.0) if self._api is not None else self._locator.locate()


def _cancel(submission_: _Submission, execution_id: str, terminal: Terminal) -> None:
    """Ask for the end of a run; a run that has ended by itself is as good."""
    reason = ""
    for attempt in range(CANCEL_TRIES):
        try:
            with contextlib.closing(submission_.another()) as api:
                api.call("POST", f"/executions/{execution_id}/cancel", body={"reason": "interrupted at the terminal"})
            return
        except CliError as error:
            if isinstance(error, Refused) and error.code == "already_terminal":
                return
            reason = str(error)
            if isinstance(error, Refused) and error.status not in PASSING:
                break
            time.sleep(0.1 * 2**attempt)
    terminal.say(f"cannot cancel: {reason}")


def _tell(event: Lifecycle, terminal: Terminal) -> None:
    if event.type == "execution_restarted":
        reason = event.body.get("reason")
        terminal.say(f"attempt {event.attempt} starts again" + (f" ({reason})" if reason else ""))
    elif event.type == "execution_queued" and terminal.interactive:
        place, wait_s = event.body.get("position"), event.body.get("estimated_wait_s")
        terminal.say(f"queued, position {place}" + (f", about {wait_s:.0f} s" if wait_s else ""))


def _stdin(script: str, wanted: bool | None, terminal: Terminal) -> bytes:
    if script == "-" and wanted:
        raise CliError("standard input holds the script; it cannot be passed on as well")
    if script == "-" or wanted is False:
        return b""

    def waiting() -> None:
        terminal.say("reading standard input to its end; --no-stdin leaves it out")

    return read_stdin(submission.BODY_BYTES, waiting, even_from_terminal=wanted is True)
