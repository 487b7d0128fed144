"""A node that says nothing for so long that its pods are evicted, and that comes back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client, config

from runtape.adapters.kubernetes.runtime import Image
from runtape.adapters.sandbox.runtimes import in_image
from runtape.domain.execution import OnInterrupt
from tests.application.world import ALICE
from tests.contract.embedded.basic import quick_place
from tests.kubernetes import image
from tests.kubernetes.mortal import Place, reasons
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
GRACE_S = 16
"""The kubelet tells of its node every 10 s."""
BEAT_S = 2.0
EVICTED_S = 90.0
LONG = "echo on; sleep 1000"
"""What it prints is told before its node is lost, so that nothing else is lost with it."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture
async def place(kubernetes: Kubernetes, api: client.CoreV1Api, namespace: str, folder: Path) -> AsyncIterator[Place]:
    kubernetes.containerd.take(image.archive(image.BASH))
    bash = Image(image.BASH.reference, in_image("bash", "5.2", "/usr/bin/bash"))
    configuration = client.Configuration()
    await config.load_kube_config(str(kubernetes.kubeconfig), client_configuration=configuration)
    yield Place(configuration, api, namespace, folder, bash)


@pytest.fixture
async def impatient(kubernetes: Kubernetes, api: client.CoreV1Api) -> AsyncIterator[None]:
    """Controllers that soon take a node for lost, and another node: where none is left nothing is evicted."""
    usual_s = kubernetes.controllers.node_grace_s
    node: Any = {
        "metadata": {"name": "another"},
        "spec": {"taints": [{"key": "test", "value": "none", "effect": "NoSchedule"}]},
        "status": {"conditions": [_ready()]},
    }
    await api.create_node(node)
    beating = asyncio.create_task(_beat(api))
    try:
        _begin_anew(kubernetes, GRACE_S)
        yield
    finally:
        _begin_anew(kubernetes, usual_s)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await api.delete_node("another")


def _begin_anew(kubernetes: Kubernetes, node_grace_s: int) -> None:
    kubernetes.controllers.kill()
    kubernetes.controllers.node_grace_s = node_grace_s
    kubernetes.controllers.start()


async def _beat(api: client.CoreV1Api) -> None:
    """Let the other node tell of itself."""
    while True:
        with contextlib.suppress(client.ApiException):  # the controllers write it as well
            await api.patch_node_status("another", {"status": {"conditions": [_ready()]}})
        await asyncio.sleep(BEAT_S)


def _ready() -> Any:
    now = datetime.now(UTC).isoformat()
    return {"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": now}


@pytest.mark.usefixtures("impatient")
async def test_programs_that_were_evicted_from_a_lost_node_end_as_was_asked_for_when_it_is_back(
    place: Place, kubernetes: Kubernetes
) -> None:
    async with place.worker() as worker, place.monitor(worker.world):
        again = await worker.submit(LONG, limits={"wall_s": 200.0})
        once = await worker.submit(LONG, limits={"wall_s": 200.0}, on_interrupt=OnInterrupt.FAIL)
        for execution_id in (again, once):
            await worker.until_printed(execution_id, b"on\n")
        kubernetes.kubelet.kill()
        try:
            evicted_s = await place.until(lambda: _are_evicted(place, {again, once}), within_s=EVICTED_S)
        finally:
            kubernetes.kubelet.start()
        failed = await worker.until_stored(once)
        assert failed.outcome is not None
        assert (failed.status, failed.outcome.reason, failed.attempt) == ("failed", "node_lost", 1)
        await worker.until_printed(again, b"on\n", attempt=2)
        assert reasons(await worker.world.get(again)) == ["node_lost"]
        await worker.world.submissions.cancel(ALICE, again, None)
        assert (await worker.until_stored(again)).attempt == 2
        gone_s = await place.until_no_pods(within_s=60)
        print(f"evicted after {evicted_s:.1f} s, no pod {gone_s:.1f} s after the last end")


async def _are_evicted(place: Place, executions: set[str]) -> bool:
    names = {f"exec-{each}-1" for each in executions}
    pods = [each for each in await place.pods() if each.metadata.name in names]
    why = [each.reason for pod in pods for each in pod.status.conditions or () if each.type == "DisruptionTarget"]
    leaving = [each for each in pods if each.metadata.deletion_timestamp is not None]
    return len(leaving) == len(executions) and why == ["DeletionByTaintManager"] * len(executions)
