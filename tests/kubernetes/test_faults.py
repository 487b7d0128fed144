"""What runs pods dies or stands still: no run is lost, none ends twice, no byte is missing, no pod is left."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from kubernetes_asyncio import client

from runtape.runtime.roles import Role
from tests.cluster.survival import survived
from tests.e2e.server import Client
from tests.kubernetes.plugin import PodCluster
from tests.kubernetes.pods import connected
from tests.kubernetes.survival import script, until_none_is_left
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "kafka", "mongo", "redis", "registry", "alone", "own"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

RUNS = 24
OVER_S = 6.0
WITHIN_S = 60.0
"""A lease that nobody extends lasts 30 s, and its run begins again behind those that wait."""
COMPONENTS = ("kubelet", "containerd", "api_server", "etcd", "controllers", "scheduler")


@pytest.fixture
async def clients(podded: PodCluster) -> AsyncIterator[list[Client]]:
    """The admin, at each process of the API."""
    clients = [podded.client_of(process) for process in podded.apis]
    yield clients
    for each in clients:
        await each.http.aclose()


async def outlived(
    podded: PodCluster,
    clients: list[Client],
    name: str,
    break_it: Callable[[], object],
    mend_it: Callable[[], object] = lambda: None,
    **more: Any,
) -> None:
    """Let runs go on while something breaks, and check them; soon no pod of a run is left."""
    await survived(clients, name, break_it, mend_it, runs=RUNS, over_s=OVER_S, within_s=WITHIN_S, write=script, **more)
    await until_none_is_left(podded)


@pytest.mark.parametrize("name", COMPONENTS)
async def test_a_component_dies(podded: PodCluster, clients: list[Client], kubernetes: Kubernetes, name: str) -> None:
    component = getattr(kubernetes, name)

    def mend() -> None:
        component.begin()
        component.until_ready()

    await outlived(podded, clients, f"{name}-dies", component.kill, mend)


@pytest.mark.parametrize("name", ["kubelet", "containerd", "api_server", "etcd"])
async def test_a_component_stands_still(
    podded: PodCluster, clients: list[Client], kubernetes: Kubernetes, name: str
) -> None:
    component = getattr(kubernetes, name)
    await outlived(podded, clients, f"{name}-stands", component.pause, component.resume)


@pytest.mark.parametrize("role", [Role.K8S_WORKER, Role.POD_MONITOR])
async def test_a_worker_dies_and_comes_again(podded: PodCluster, clients: list[Client], role: Role) -> None:
    worker = podded.workers[role][0]
    await outlived(podded, clients, f"{role}-dies", worker.kill, lambda: worker.begin().until_ready())


async def test_a_program_runs_on_while_its_worker_dies_and_comes_again(
    podded: PodCluster, clients: list[Client]
) -> None:
    """What it has told when it ends is its end: nobody began it anew."""
    execution_id = await clients[0].execute("import time\nprint('begun', flush=True)\ntime.sleep(8)\n")
    async with clients[0].stream(execution_id) as stream:
        while (frame := await stream.next(WITHIN_S)) is not None and frame.event != "output":
            pass
        for worker in podded.workers[Role.K8S_WORKER]:
            worker.kill()
        for worker in podded.workers[Role.K8S_WORKER]:
            worker.begin().until_ready()
        while (frame := await stream.next(WITHIN_S)) is not None and frame.kind != "result_stored":
            pass
    assert frame is not None
    result = frame.data["result"]
    assert (result["status"], result["stdout"], frame.data["attempt"]) == ("completed", "begun\n", 1)
    await until_none_is_left(podded)


@pytest.mark.parametrize("role", [Role.K8S_WORKER, Role.POD_MONITOR])
async def test_a_worker_stands_still(podded: PodCluster, clients: list[Client], role: Role) -> None:
    worker = podded.workers[role][0]
    await outlived(podded, clients, f"{role}-stands", worker.pause, worker.resume)


async def test_all_pods_are_deleted_by_hand(podded: PodCluster, clients: list[Client]) -> None:
    async def delete() -> None:
        async with connected(podded.kubeconfig) as connection:
            await client.CoreV1Api(connection).delete_collection_namespaced_pod(
                podded.namespace, grace_period_seconds=0
            )

    await outlived(podded, clients, "deleted", lambda: asyncio.run(delete()))
