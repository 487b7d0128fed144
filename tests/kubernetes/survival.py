"""Runs in pods that something breaks under, and what is left of them: nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.manifests import EXECUTION, STATE, WARM
from runtape.adapters.kubernetes.pools import waits
from tests.cluster.flood import LINES
from tests.kubernetes.plugin import PodCluster
from tests.kubernetes.pods import connected

GONE_S = 60.0
"""Pods that nobody needs are gone by then."""
LOOK_S = 0.2
IS_WARM = f"{STATE}={WARM}"


def script(name: str, number: int) -> str:
    """Return a Python program that prints what `tests.cluster.flood.printed` says.

    It takes half a second for it, so that something breaks in the middle of some of them.
    """
    print_one = f"print({name!r}, {number}, line, flush=True)"
    return f"import time\nfor line in range({LINES}):\n    {print_one}\n    time.sleep(0.1)\n"


@contextlib.asynccontextmanager
async def pods_of(cluster: PodCluster) -> AsyncIterator[PodApi]:
    """The pods of the cluster, to be listed and deleted by its administrator."""
    async with connected(cluster.kubeconfig) as connection:
        pods = PodApi(connection.configuration, cluster.namespace)
        try:
            yield pods
        finally:
            await pods.close()


async def until_none_is_left(cluster: PodCluster, warm: int | None = None) -> None:
    """Return once no pod of a run is left, and, if it is given, `warm` pods wait for the next runs, and no more."""
    until_s = time.monotonic() + GONE_S
    async with pods_of(cluster) as pods:
        while True:
            left = [pod["metadata"]["name"] for pod in (await pods.list(EXECUTION)).pods]
            ready = [waits(pod) for pod in (await pods.list(IS_WARM)).pods]
            if not left and (warm is None or ready == [True] * warm):
                return
            assert time.monotonic() < until_s, f"pods are left: {left}; of {len(ready)} warm ones {sum(ready)} wait"
            await asyncio.sleep(LOOK_S)
