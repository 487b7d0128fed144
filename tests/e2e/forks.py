"""Server processes over simulated pods, forked from one that has imported all they need.

Importing takes a server longer than most tests take with it.  A pytest process starts one `Forker` when its first test
wants a server; `tests.e2e.forker` is what that process does.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

_ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{_ROOT}:{_ROOT}/backend"


class Forked:
    """A forked server; as much of `subprocess.Popen` as `Server` uses."""

    def __init__(self, told: socket.socket, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._told = told
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self.pid = int(told.recv(64))

    def poll(self) -> int | None:
        """Return the exit code of a server that is dead."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the server is dead.  Raises: subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                self.returncode = int(self._told.recv(64))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a forked server", timeout or 0) from None
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the server is dead."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL unless the server is dead."""
        self.send_signal(signal.SIGKILL)


class Forker:
    """The process that forks; `shared` is the one of this process."""

    _shared: Self | None = None

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "tests.e2e.forker", str(theirs.fileno())]
        env = {**os.environ, "PYTHONPATH": PYTHONPATH}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, cwd="/")
        theirs.close()

    @classmethod
    def shared(cls) -> Self:
        """Return the forker of this process, which lives as long as it."""
        if cls._shared is None:
            cls._shared = cls()
        return cls._shared

    def start(self, data: Path, log: IO[bytes], env: Mapping[str, str]) -> Forked:
        """Start a server over the folder `data` which writes its standard error to `log`."""
        stdin, ours_in = os.pipe()
        ours_out, stdout = os.pipe()
        ours, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"data": str(data), "env": dict(env)}).encode()
        try:
            socket.send_fds(self._requests, [request], [stdin, stdout, log.fileno(), told.fileno()])
        finally:
            os.close(stdin)
            os.close(stdout)
            told.close()
        return Forked(ours, os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb"))
