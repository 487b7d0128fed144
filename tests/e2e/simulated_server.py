"""The real server process over pods that only pretend: `python -m tests.e2e.simulated_server DATA`.

Each line on standard input lets the programs go on that wait for the name on it (`wait NAME`); ``sandbox broken``
and ``sandbox mended`` decide what the readiness of the sandbox is.
"""

import asyncio
import os
import sys
from pathlib import Path

from dishka import Provider, Scope, provide

from runtape.adapters.simulated import SimulatedPodRuntime
from runtape.ports.errors import SandboxUnavailable
from runtape.ports.pod_runtime import PodRuntime
from runtape.runtime.process import serve


class Pods(SimulatedPodRuntime):
    """Simulated pods that are told what to do by the lines of standard input."""

    def __init__(self) -> None:
        super().__init__()
        self._broken = False
        self._rest = b""
        os.set_blocking(0, False)
        asyncio.get_running_loop().add_reader(0, self._read)

    def _read(self) -> None:
        data = os.read(0, 65536)
        if not data:
            asyncio.get_running_loop().remove_reader(0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"sandbox "):
                self._broken = line == b"sandbox broken"
            else:
                self.let(line.decode())

    async def ready(self) -> None:
        if self._broken:
            raise SandboxUnavailable("no user namespaces; allow them")


class PodsProvider(Provider):
    scope = Scope.APP

    @provide
    async def pods(self) -> PodRuntime:
        return Pods()


if __name__ == "__main__":
    sys.exit(serve(host="127.0.0.1", port=0, data_dir=Path(sys.argv[1]), ephemeral=False, pods=PodsProvider()))
