"""The real server process over pods that only pretend.

Each line on standard input lets the programs go on that wait for the name on it (`wait NAME`).  ``sandbox broken``
and ``sandbox mended`` decide what the readiness of the sandbox is; ``watched?`` asks for the line ``unwatched`` on
standard output once no stream is subscribed to anything, and ``pods?`` for how many pods have ever been started.
"""

import asyncio
import os
from pathlib import Path

from dishka import Provider, Scope, alias, provide

from runtape.adapters.embedded.live_feed import InProcessLiveFeed, InProcessSubscription
from runtape.adapters.simulated import SimulatedPodRuntime
from runtape.ports.errors import SandboxUnavailable
from runtape.ports.live import LiveFeed
from runtape.ports.pod_runtime import PodRuntime
from runtape.runtime.process import serve
from runtape.runtime.settings import Settings


class Feed(InProcessLiveFeed):
    """A live feed that tells when nobody is subscribed any more."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = False

    def ask(self) -> None:
        self._asked = True
        self._tell()

    def forget(self, subscription: InProcessSubscription) -> None:
        super().forget(subscription)
        self._tell()

    def _tell(self) -> None:
        if self._asked and self.subscribers == 0:
            self._asked = False
            print("unwatched", flush=True)


class Pods(SimulatedPodRuntime):
    """Simulated pods that are told what to do by the lines of standard input."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
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
            elif line == b"watched?":
                self._feed.ask()
            elif line == b"pods?":
                print(f"pods {len(self.started)}", flush=True)
            else:
                self.let(line.decode())

    async def ready(self) -> None:
        if self._broken:
            raise SandboxUnavailable("no user namespaces; allow them")


class PodsProvider(Provider):
    scope = Scope.APP

    feed = provide(Feed)
    live_feed = alias(source=Feed, provides=LiveFeed)

    @provide
    async def pods(self, feed: Feed) -> PodRuntime:
        return Pods(feed)


def main(data: str) -> int:
    """Serve over the folder `data` until a signal, and return the exit code; ``LISTEN`` is another address and port."""
    host, _, port = os.environ.get("LISTEN", "127.0.0.1:0").partition(":")
    return serve(Settings(data=Path(data)), host=host, port=int(port), ephemeral=False, pods=PodsProvider())
