"""The three standard streams: the program's bytes pass through untouched, our own lines are told apart."""

import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable

STDIN, STDOUT, STDERR = 0, 1, 2
STDIN_PATIENCE_S = 2.0


class StdoutClosed(Exception):
    """Standard output takes no more: its reader went away (`quiet`), or its disk is full, for example."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")
        self.quiet = error.errno == errno.EPIPE


class Terminal:
    """Writes bytes to the file descriptors 1 and 2 at once and whole, and lines of our own to 2.

    Nothing is buffered, so it may also be used from a signal handler.  Our own lines begin with ``runtape:``, are
    dim on a terminal (unless NO_COLOR is set) and never share a line with the program's output.
    """

    def __init__(self) -> None:
        self._is_tty = {STDOUT: _is_tty(STDOUT), STDERR: _is_tty(STDERR)}
        # With one terminal for both, a line left open on one stream is open on the other as well.
        self._shared = all(self._is_tty.values())
        self._open_line = {STDOUT: False, STDERR: False}
        self._dim = self._is_tty[STDERR] and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"

    @property
    def interactive(self) -> bool:
        """Whether a person watches standard error."""
        return self._is_tty[STDERR]

    def write(self, stream: str, data: bytes) -> None:
        """Write a program's output.  Raises: StdoutClosed."""
        fd = STDERR if stream == "stderr" else STDOUT
        if data:
            self._put(fd, data)
            self._open_line[fd] = not data.endswith(b"\n")
            if self._shared:
                self._open_line[STDOUT] = self._open_line[STDERR] = self._open_line[fd]

    def say(self, text: str) -> None:
        """Write a line of our own to standard error."""
        line = f"runtape: {text}"
        if self._dim:
            line = f"\x1b[2m{line}\x1b[22m"
        start = "\n" if self._open_line[STDERR] else ""
        self._open_line[STDERR] = False
        if self._shared:
            self._open_line[STDOUT] = False
        self._put(STDERR, f"{start}{line}\n".encode(errors="replace"))

    def fail(self, text: str) -> None:
        """Write why the command cannot go on."""
        start = "\n" if self._open_line[STDERR] else ""
        self._open_line[STDERR] = False
        self._put(STDERR, f"{start}error: {text}\n".encode(errors="replace"))

    def _put(self, fd: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                # A descriptor that another process made non-blocking, as some terminals' owners do.
                select.select([], [fd], [])
            except OSError as error:
                # Standard error may be gone or never have been there; a program does not stop for that.
                if fd == STDOUT:
                    raise StdoutClosed(error) from error
                return


def read_stdin(limit_bytes: int, waiting: Callable[[], None], *, even_from_terminal: bool = False) -> bytes:
    """Return all of standard input when it is not a terminal, at most `limit_bytes` + 1; empty when it is closed.

    `waiting` is called when nothing comes for a while: an inherited pipe that nobody closes looks like a hang.
    """
    pieces: list[bytes] = []
    size = 0
    with contextlib.suppress(OSError):
        if os.isatty(STDIN) and not even_from_terminal:
            return b""
        if not select.select([STDIN], [], [], STDIN_PATIENCE_S)[0]:
            waiting()
        while size <= limit_bytes and (piece := os.read(STDIN, 1 << 20)):
            pieces.append(piece)
            size += len(piece)
    return b"".join(pieces)[: limit_bytes + 1]


def print_text(text: str) -> None:
    """Print to standard output; a reader that has gone away is no error."""
    with contextlib.suppress(StdoutClosed):
        Terminal().write("stdout", text.encode(getattr(sys.stdout, "encoding", None) or "utf-8", "replace") + b"\n")


def _is_tty(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
