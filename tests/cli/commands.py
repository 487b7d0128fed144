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
