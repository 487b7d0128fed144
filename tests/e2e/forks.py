"""Processes of the product for tests, forked from one that has imported all they need.

Importing takes a server longer than most tests take with it.  A pytest process starts one `Forker` of a module when its
first test wants one; `tests.e2e.forker` is what that process does.
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
from typing import IO, ClassVar, Self

_ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{_ROOT}:{_ROOT}/backend"


class Forked:
    """A forked process; as much of `subprocess.Popen` as tests use."""

    def __init__(self, told: socket.socket, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._told = told
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self.pid = int(told.recv(64))

    def poll(self) -> int | None:
        """Return the exit code of a process that is dead."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process is dead.  Raises: subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                self.returncode = int(self._told.recv(64))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a forked process", timeout or 0) from None
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process is dead."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL unless the process is dead."""
        self.send_signal(signal.SIGKILL)


class Forker:
    """The process that forks, to call ``main`` of `module`; those of this process are `shared`."""

    _shared: ClassVar[dict[str, Self]] = {}

    def __init__(self, module: str) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "tests.e2e.forker", str(theirs.fileno()), module]
        env = {**os.environ, "PYTHONPATH": PYTHONPATH}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, cwd="/")
        theirs.close()

    @classmethod
    def shared(cls, module: str) -> Self:
        """Return the forker of `module`, which lives as long as this process."""
        if module not in cls._shared:
            cls._shared[module] = cls(module)
        return cls._shared[module]

    def start(self, argument: str, log: IO[bytes], env: Mapping[str, str]) -> Forked:
        """Start a process that calls ``main`` with `argument` and writes its standard error to `log`."""
        stdin, ours_in = os.pipe()
        ours_out, stdout = os.pipe()
        ours, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"argument": argument, "env": dict(env)}).encode()
        try:
            socket.send_fds(self._requests, [request], [stdin, stdout, log.fileno(), told.fileno()])
        finally:
            os.close(stdin)
            os.close(stdout)
            told.close()
        return Forked(ours, os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb"))
