"""A run that finds its pool empty gets a pod of its own, and its readers are told so."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client

from runtape.adapters.embedded.clock import SystemClock
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.runtime import Image
from runtape.application.streaming import Frame
from runtape.domain.ids import ExecutionId
from runtape.ports.pod_runtime import PodSpec, PodStart
from tests.application.world import BEGINNING, World, a_world, body, event_types
from tests.contract.embedded.basic import quick_place
from tests.kubernetes.pods import SOON_S
from tests.kubernetes.waiting import reached, workers
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture
async def settings(api: client.CoreV1Api, namespace: str) -> AsyncIterator[PodSettings]:
    """Those of pods that take no room from other tests' once this one is over."""
    yield PodSettings(namespace=namespace, pull_policy="Never", cpu="75m")
    await api.delete_collection_namespaced_pod(namespace, grace_period_seconds=0)


class Held:
    """Pods that start nothing before they are let go."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.go = asyncio.Event()

    async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> PodStart | None:
        await self.go.wait()
        return await self.inner.start(spec, attempt, lease_expires_at)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def test_of_two_runs_at_once_on_a_pool_of_one_each_stream_tells_how_its_program_came_to_its_pod(
    kubernetes: Kubernetes, settings: PodSettings, bash: Image, folder: Path
) -> None:
    clock: Any = SystemClock()
    async with workers(await reached(kubernetes.kubeconfig), settings, bash, warm=1) as [worker]:
        held = Held(worker)
        async with a_world(folder, clock=clock, owner="worker-0", wrap_pods=lambda _: held) as world:
            await world.start(alone=False)
            ids = [await world.submit("echo hello", lang="bash") for _ in range(2)]
            reading = [asyncio.ensure_future(frames(world, each)) for each in ids]
            await asyncio.sleep(0)  # both have subscribed
            held.go.set()
            streams = await asyncio.gather(*reading)
            results = [await world.until_stored(each) for each in ids]
    assert [execution.status for execution in results] == ["completed"] * 2
    starts: list[str] = []
    for execution_id, told in zip(ids, streams, strict=True):
        [frame] = [body(each) for each in told if each.event is None and body(each)["event_type"] == "execution_pod"]
        assert (frame["execution_id"], frame["attempt"]) == (execution_id, 1)
        kinds = event_types(told)
        assert kinds.index("execution_pod") < kinds.index("output")
        starts.append(frame["start"])
    assert sorted(starts) == ["cold", "warm"]


async def frames(world: World, execution_id: ExecutionId) -> list[Frame]:
    """Read a stream to its end, which a pod that is made for it may take a while to come to."""
    stream, subscription = world.streams.open(execution_id, BEGINNING)
    try:
        async with asyncio.timeout(SOON_S):
            return [frame async for batch in stream.batches() for frame in batch]
    finally:
        subscription.close()
