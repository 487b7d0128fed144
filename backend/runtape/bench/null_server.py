"""The embedded server with nothing behind it: `python -m runtape.bench.null_server DATA`.

Everything is the product's but the pods, which print what the script says and end at once.
"""

import sys
from pathlib import Path

from dishka import Provider, Scope, provide

from runtape.adapters.simulated import SimulatedPodRuntime
from runtape.ports.pod_runtime import PodKey, PodRuntime
from runtape.runtime.process import serve
from runtape.runtime.settings import Settings


class NullPods(SimulatedPodRuntime):
    """Simulated pods that keep no record of those that are gone: it would be taken for the server's growth."""

    async def remove(self, key: PodKey) -> None:
        await super().remove(key)
        self._finished.clear()
        self.started.clear()


class NullPodsProvider(Provider):
    """Pods that run no code and leave nothing."""

    scope = Scope.APP

    pods = provide(NullPods, provides=PodRuntime)


if __name__ == "__main__":
    sys.exit(
        serve(Settings(data=Path(sys.argv[1])), host="127.0.0.1", port=0, ephemeral=False, pods=NullPodsProvider())
    )
