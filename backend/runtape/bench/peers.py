"""What else can run a program confined on this machine, measured beside our sandbox: bubblewrap and go-judge.

Each is used as its own manual has it, as tight as it goes.  Neither is part of the product: they are taken where they
are found.
"""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from runtape.adapters.sandbox.runtimes import InstalledRuntime
from runtape.bench.errors import BenchError, WrongAnswer
from runtape.domain.limits import Limits

GET_BUBBLEWRAP: Final = "bubblewrap: apt install bubblewrap, and `bwrap` is on PATH"
GET_GO_JUDGE: Final = (
    "go-judge: go mod init scratch && go get github.com/criyle/go-judge@v1.8.5 && "
    "go build -o go-judge github.com/criyle/go-judge/cmd/go-judge; then --go-judge PATH"
)
_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin")
_START_TIMEOUT_S: Final = 10.0
_ANSWER_TIMEOUT_S: Final = 20.0
_LOOK_AGAIN_S: Final = 0.05
_OUTPUT_BYTES: Final = 1 << 20


def bubblewrap(python: InstalledRuntime) -> list[str] | None:
    """Return the command that runs another in bubblewrap, or nothing when that is not installed.

    All namespaces, no capability, no further user namespace, read-only system folders.  It has no limits, no
    accounting and, here, no seccomp filter: who uses it has to bring those.
    """
    program = shutil.which("bwrap")
    if program is None:
        return None
    binds = [word for path in _shown(python) for word in ("--ro-bind", path, path)]
    return [program, *binds, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",  # noqa: S108 - inside
            "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000",
            "--cap-drop", "ALL", "--new-session", "--die-with-parent", "--hostname", "box", "--clearenv"]  # fmt: skip


class GoJudge:
    """A go-judge server on a loopback port, with as many containers made ahead as programs are run at once."""

    def __init__(self, program: str, python: InstalledRuntime, folder: Path, parallelism: int) -> None:
        self._program = program
        self._python = python
        self._folder = folder
        self._parallelism = parallelism
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._free: list[http.client.HTTPConnection] = []

    def start(self) -> None:
        """Start the server and wait until it answers.  Raises: BenchError."""
        self._folder.mkdir()
        mounts = self._folder / "mount.yaml"
        mounts.write_text(json.dumps(self._mounts()))  # JSON is YAML
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        count = str(self._parallelism)
        options = ["-http-addr", f"127.0.0.1:{self._port}", "-parallelism", count, "-pre-fork", count]
        options += ["-mount-conf", str(mounts), "-dir", str(self._folder / "files"), "-silent"]
        (self._folder / "files").mkdir()
        with open(self._folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [self._program, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder
            )
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.stop()
                words = (self._folder / "log").read_text(errors="replace").strip()[-300:]
                raise BenchError(f"go-judge does not start: {words}")
            time.sleep(_LOOK_AGAIN_S)

    def stop(self) -> None:
        """End the server, by its pid, and wait for it."""
        for connection in self._free:
            connection.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    async def run(self, command: list[str]) -> bytes:
        """Run a command to its end and return what it printed.  Raises: WrongAnswer."""
        return await asyncio.to_thread(self._run, command)

    def _run(self, command: list[str]) -> bytes:
        limits = Limits()
        request = {
            "args": command,
            "env": [],
            "files": [{"content": ""}, *({"name": name, "max": _OUTPUT_BYTES} for name in ("stdout", "stderr"))],
            "cpuLimit": int(limits.cpu_s * 1e9),
            "clockLimit": int(limits.wall_s * 1e9),
            "memoryLimit": limits.memory_mb << 20,
            "procLimit": limits.processes,
        }
        with self._connection() as connection:
            connection.request("POST", "/run", json.dumps({"cmd": [request]}), {"Content-Type": "application/json"})
            answer: Any = json.loads(connection.getresponse().read())
        try:
            (result,) = answer
            if result["status"] != "Accepted":
                raise WrongAnswer(f"go-judge answers {result['status']}: {result.get('error', '')}")
            return str(result["files"]["stdout"]).encode()
        except (KeyError, TypeError, ValueError) as error:
            raise WrongAnswer(f"go-judge answers {str(answer)[:200]}") from error

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        """Lend an open connection; one that fails is not lent again."""
        if self._free:
            connection = self._free.pop()
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_TIMEOUT_S)
        yield connection
        self._free.append(connection)

    def _mounts(self) -> dict[str, object]:
        binds = [
            {"type": "bind", "source": path, "target": path, "readonly": not path.startswith("/dev")}
            for path in (*_shown(self._python), "/dev/null", "/dev/urandom")
        ]
        work = [{"type": "tmpfs", "target": path, "data": "size=64m,nr_inodes=4k"} for path in ("/w", "/tmp")]  # noqa: S108
        user = {"uid": 1536, "gid": 1536}
        return {"mount": [*binds, *work], "proc": True, "workDir": "/w", "hostName": "box", "domainName": "box", **user}


def _shown(python: InstalledRuntime) -> list[str]:
    """Return the folders that a Python needs to see."""
    return [path for path in dict.fromkeys((*_SYSTEM, python.prefix)) if path and os.path.exists(path)]
