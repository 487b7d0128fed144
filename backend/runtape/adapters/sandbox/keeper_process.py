"""The keeper as the service sees it: a child process, a lock, and one socket.

Owns the process from its spawning to its reaping.  Knows nothing of what the messages mean.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from runtape.ports.errors import Transient

from .keeper import wire

_BOOT: Final = Path(__file__).parent / "keeper" / "boot.py"
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
_LOCK_RETRY_S: Final = 0.01
_EXIT_TIMEOUT_S: Final = 5.0


async def lock(path: Path, timeout_s: float) -> int:
    """Open and lock the file at `path`, waiting for an earlier keeper and its boxes to be dead; return the descriptor.

    Raises: Transient, when they still live after `timeout_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if loop.time() > deadline_s:
                os.close(fd)
                raise Transient(
                    f"{path} is locked: another service uses this data folder, or its programs still run"
                ) from None
        await asyncio.sleep(_LOCK_RETRY_S)  # the kernel tells nobody that a lock became free


def command(control_fd: int, lock_fd: int) -> list[str]:
    """Return the command that runs a keeper on two inherited descriptors."""
    return [os.path.realpath(sys.executable), "-I", "-S", str(_BOOT), str(control_fd), str(lock_fd)]


class KeeperProcess:
    """A running keeper.

    Must be made in the thread that runs the event loop and lives as long as the service: the keeper is killed by the
    kernel when the thread that made it ends.
    """

    def __init__(
        self, lock_fd: int, on_message: Callable[[tuple[Any, ...], list[int]], None], on_lost: Callable[[], None]
    ) -> None:
        """Spawn a keeper that takes the lock over; `lock_fd` is closed here.

        `on_message` gets each message with its descriptors; `on_lost` is called once, when the keeper has gone
        without having been closed.
        """
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_lost = on_lost
        self._unsent: deque[bytes] = deque()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                command(theirs.fileno(), lock_fd),
                pass_fds=(theirs.fileno(), lock_fd),
                env=_ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(lock_fd)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._control.setblocking(False)
        self._loop.add_reader(self._control.fileno(), self._read)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, *message: Any) -> None:
        """Send a message, at once or as soon as the keeper takes it; a keeper that has gone takes none."""
        datagram = wire.pack(*message)
        if self._unsent or not self._try_send(datagram):
            if not self._unsent:
                self._loop.add_writer(self._control.fileno(), self._send_waiting)
            self._unsent.append(datagram)

    def _try_send(self, datagram: bytes) -> bool:
        try:
            self._control.send(datagram)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            pass  # `_read` meets the end of file
        return True

    def _send_waiting(self) -> None:
        while self._unsent and self._try_send(self._unsent[0]):
            self._unsent.popleft()
        if not self._unsent:
            self._loop.remove_writer(self._control.fileno())

    def _read(self) -> None:
        try:
            datagram, fds, _, _ = socket.recv_fds(self._control, wire.DATAGRAM_BYTES, wire.BOX_FDS)
        except BlockingIOError:
            return
        except ConnectionResetError:
            datagram, fds = b"", []
        if datagram:
            self._on_message(wire.unpack(datagram), fds)
        else:
            self._hang_up()
            self._on_lost()

    def _hang_up(self) -> None:
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._loop.remove_writer(self._control.fileno())
            self._control.close()

    async def close(self) -> None:
        """Hang up, on which the keeper kills and reaps every box, and wait until it is gone.  Idempotent."""
        self._hang_up()
        if self._pidfd < 0:
            return
        gone = self._loop.create_future()
        self._loop.add_reader(self._pidfd, lambda: gone.done() or gone.set_result(None))
        try:
            await asyncio.wait_for(gone, _EXIT_TIMEOUT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        finally:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._process.wait()
