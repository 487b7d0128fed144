"""Finding the server to talk to, and starting an embedded one when there is none.

Theory of operation.  A data folder has at most one server: it holds the folder's lock, and tells its address in
``server.json``, with a secret of that process, and a key for its owner in ``local.key`` (both 0600).  A command
connects, has the server prove that it knows the secret before it shows the key, and keeps that connection for its
request, because an ephemeral server exits when it has neither run nor client.  When nobody answers, the command
starts a server in a session of its own and waits for it.  Of two that start at once the one that does not get the
lock exits with 0, and both commands find the winner.  The same exit happens when the lock is still held by a server
about to leave; so a start that ended in nothing is repeated until the time is up.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtape.cli.client import IDLE_S, Api
from runtape.cli.errors import CliError, Refused, Unreachable

START_S = 20.0
"""How long an embedded server may take until it can run code."""
LOOK_AGAIN_S = 0.01
START_AGAIN_S = 0.2
END_S = 5.0
LOG_LINES = 15
LOG_BYTES = 1 << 20
# -P: a module in the current folder must not stand in for one of ours.
EPHEMERAL = (sys.executable, "-P", "-m", "runtape.cli", "up", "--ephemeral")


def default_data() -> Path:
    """Return the data folder of this user: RUNTAPE_DATA, else ``runtape`` in the XDG data folder."""
    if named := os.environ.get("RUNTAPE_DATA"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share") / "runtape"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locator:
    """Where a command wants its server: at `url`, or embedded over the folder `data`, started by `command`."""

    url: str | None = None
    api_key: str | None = None
    data: Path | None = None
    start_s: float = START_S
    idle_s: float = IDLE_S
    command: Sequence[str] = EPHEMERAL

    def locate(self) -> Api:
        """Return an open connection to the server, after starting one if need be.

        Raises: Unreachable, for a given address; CliError, when no embedded server comes up.
        """
        url = self.url
        if url is None and self.data is None:
            url = os.environ.get("RUNTAPE_SERVER")
        if url:
            api = Api(url, self.api_key or os.environ.get("RUNTAPE_API_KEY"), timeout_s=self.idle_s)
            api.connect()
            return api
        data = (self.data or default_data()).expanduser().absolute()
        return self._running(data) or self._started(data)

    def _running(self, data: Path) -> Api | None:
        """Return a connection to the folder's server when it has proved to be that, else None."""
        try:
            told = json.loads((data / "server.json").read_bytes())
            key = (data / "local.key").read_text().strip()
            url, instance = str(told["url"]), str(told["instance"])
        except PermissionError as error:
            raise CliError(f"{error.filename} belongs to somebody else; choose another folder with --data") from None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        api = Api(url, self.api_key or key, instance=instance, timeout_s=self.idle_s)
        try:
            api.connect()
        except Unreachable:
            return None
        return api

    def _ready(self, data: Path) -> Api | None:
        """Return a connection to the folder's server when it can run code now, else None."""
        api = self._running(data)
        if api is not None:
            try:
                api.call("GET", "/health/ready")
            except (Unreachable, Refused, ValueError):
                api.close()
                return None
        return api

    def _started(self, data: Path) -> Api:
        """Start a server over `data` and return a connection to whichever server comes up there."""
        log = data / "server.log"
        try:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            if log.exists() and log.stat().st_size > LOG_BYTES:
                log.replace(log.with_suffix(".log.old"))
            start = log.stat().st_size if log.exists() else 0
            process = _spawn(self.command, data, log)
        except OSError as error:
            raise CliError(
                f"cannot start a server in {data}: {error.strerror}; choose another folder with --data"
            ) from error
        deadline = time.monotonic() + self.start_s
        again_at = 0.0
        while time.monotonic() < deadline:
            if api := self._ready(data):
                # It outlives us.  Popen knows no letting go, and warns of a process that it believes to be running.
                process.returncode = 0
                return api
            code = process.poll()
            if code:
                raise CliError(f"the embedded server ended with {code}; {_told(log, start)}")
            if code == 0 and again_at == 0.0:
                again_at = time.monotonic() + START_AGAIN_S
            if again_at and time.monotonic() > again_at:
                process, again_at = _spawn(self.command, data, log), 0.0
            time.sleep(LOOK_AGAIN_S)
        _end(process)
        raise CliError(f"no server was ready in {data} within {self.start_s:g} s; {_told(log, start)}")


def _spawn(command: Sequence[str], data: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Start an ephemeral server in its own session, so that a Ctrl-C here does not reach it."""
    address = ["--host", "127.0.0.1", "--port", "0", "--data", str(data)]
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            [*command, *address],
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(fd)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a server that did not come up, and wait until it is gone."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _told(log: Path, start: int) -> str:
    """Return the last lines of the log since `start`, and where to look further."""
    lines: list[str] = []
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    said = "its last lines:\n  " + "\n  ".join(lines) + "\n" if lines else "it said nothing; "
    return f"{said}`runtape doctor` tells what this host lacks, {log} has the whole log"
