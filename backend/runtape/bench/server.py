"""The server processes that are measured, each over a folder of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from runtape.bench.errors import BenchError

START_S = 30.0
STOP_S = 10.0
_UNLIMITED = "1000000000"
_SETTINGS = {
    "RUNTAPE_RATE_LIMITS__EXECUTIONS_PER_MINUTE": _UNLIMITED,
    "RUNTAPE_RATE_LIMITS__CALLS_PER_MINUTE": _UNLIMITED,
}
"""Everything else stands as a newcomer has it."""


class BenchServer:
    """A server over the folder `data`, simulated pods in the sandbox's place when `null`; `env` comes on top."""

    def __init__(self, data: Path, *, null: bool, env: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.url = ""
        self.key = ""
        self._command = (
            [sys.executable, "-P", "-m", "runtape.bench.null_server", str(data)]
            if null
            else [sys.executable, "-P", "-m", "runtape.cli", "up", "--port", "0", "--data", str(data)]
        )
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RUNTAPE_")}
        self._env = {**inherited, **_SETTINGS, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        """Start the process and return once it accepts work.  Raises: BenchError."""
        self.data.parent.mkdir(parents=True, exist_ok=True)
        log = self.data.with_name(self.data.name + ".log")
        with log.open("ab") as errors:
            # In a session of its own: a Ctrl-C is for the benchmark, which stops its servers by itself.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._env,
                cwd="/",
                start_new_session=True,
            )
        try:
            self.url = self._told_url(self._process, log)
            self.key = (self.data / "local.key").read_text().strip()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _told_url(self, process: "subprocess.Popen[bytes]", log: Path) -> str:
        assert process.stdout is not None
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            line = process.stdout.readline().decode()
            if line.startswith("ready "):
                return line.split()[1]
            if not line:
                break
        last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise BenchError(f"the server did not start; `runtape doctor` tells what this host lacks. It said:\n{last}")

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        self._process = None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
