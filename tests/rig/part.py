"""A real server as a part of the tests: obtained, started on a port of the loopback, killed when a test wants it."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

READY_S = 30.0
STOP_S = 10.0
LOOK_AGAIN_S = 0.01


_starter = ThreadPoolExecutor(1, "rig")
"""A thread that lives as long as the process, whoever wants a part to be started."""


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Part(ABC):
    """One server with its data in `folder`; it keeps port and data over kills and restarts."""

    scope = ""
    """What names there begin with that are not the tests' alone to give; nothing at a server of their own."""

    ready_s = READY_S
    """How long it may take until the server answers."""

    look_again_s = LOOK_AGAIN_S
    """How long it is left alone until it is asked again whether it does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """What the part is called."""
        return type(self).__name__.lower()

    @property
    def pid(self) -> int:
        """The process, which is to be running."""
        assert self._process is not None
        return self._process.pid

    @abstractmethod
    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        """Return the command that serves in the foreground, and its environment.  Raises: Unobtainable."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server does its work already."""

    def start(self) -> Self:
        """Start the server and return once it answers.  Raises: Unobtainable; AssertionError, with its log."""
        self.begin()
        self.until_ready()
        return self

    def begin(self) -> None:
        """Start the server, which does not answer yet.  Raises: Unobtainable."""
        command, env = self.command()
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # It ends with whoever wants it: setpriv(1) has the kernel see to that, when the thread ends that began it.
            self._process = _starter.submit(
                subprocess.Popen,
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=self.folder,
                start_new_session=True,
            ).result()

    def until_ready(self) -> None:
        """Return once the server that was begun answers.  Raises: AssertionError, with its log."""
        deadline = time.monotonic() + self.ready_s
        while not self.answers():
            if self.has_ended() or time.monotonic() > deadline:
                said = self.said()
                self.kill()
                raise AssertionError(f"{type(self).__name__} did not start: {said}")
            time.sleep(self.look_again_s)

    def has_ended(self) -> bool:
        """Whether there is no process, or none that lives."""
        return self._process is None or self._process.poll() is not None

    def said(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End the server as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a power switch would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let the server stand still: connections stay, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None and self._process.poll() is None
        os.killpg(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._signal(number)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self._process.wait()
        self._process = None
