"""Calling the command line as a person does: as a process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = [sys.executable, "-P", "-m", "runtape.cli"]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of this process without Runtape's own variables, and with `more`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RUNTAPE_")}
    return {**own, **more}


def runtape(
    *arguments: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command to its end, with `stdin` on a pipe."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=environment(**(env or {})),
        timeout=30,
        check=False,
    )


def start(*arguments: str | Path, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start a command without waiting; its standard input is empty."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**(env or {})),
    )


# Runs a command and ends only when every process that came of it has ended, also those that left its session: as
# their subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) it inherits them.  Passes signals on to the command.
_TO_THE_LAST = """
import ctypes, os, signal, subprocess, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
child = subprocess.Popen(sys.argv[1:])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: child.send_signal(number))
code = child.wait()
try:
    while True:
        os.waitpid(-1, 0)
except ChildProcessError:
    sys.exit(code)
"""


def start_to_the_last(*arguments: str | Path) -> "subprocess.Popen[bytes]":
    """Start a command that ends, with its own exit code, when no process that came of it is left."""
    return subprocess.Popen(
        [sys.executable, "-c", _TO_THE_LAST, *COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
