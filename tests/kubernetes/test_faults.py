"""What runs pods dies or stands still: no run is lost, none ends twice, no byte is missing, no pod is left."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from kubernetes_asyncio import client

from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.manifests import ATTEMPT, EXECUTION
from runtape.adapters.kubernetes.placed import placed
from runtape.ports.placed_pods import PodState
from runtape.runtime.roles import Role
from tests.cluster.survival import survived
from tests.e2e.server import Client
from tests.e2e.sse import EventStream, Frame
from tests.kubernetes.plugin import PodCluster
from tests.kubernetes.pods import connected
from tests.kubernetes.survival import LOOK_S, pods_of, script, until_none_is_left
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
SOON_S = 25.0
"""A lease lasts longer."""
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


@pytest.fixture
def without_workers(podded: PodCluster) -> Iterator[Callable[[], None]]:
    """Return what kills all k8s_workers; at the end of the test they work again."""
    workers = podded.workers[Role.K8S_WORKER]

    def kill() -> None:
        for worker in workers:
            worker.kill()

    yield kill
    again(podded)


def again(podded: PodCluster) -> None:
    """Begin the k8s_workers that are dead, in their data folders."""
    dead = [worker for worker in podded.workers[Role.K8S_WORKER] if not worker.begun]
    for worker in dead:
        worker.begin()
    for worker in dead:
        worker.until_ready()


async def test_what_a_pod_has_told_while_its_worker_was_dead_is_the_end(
    podded: PodCluster, clients: list[Client], without_workers: Callable[[], None]
) -> None:
    execution_id = await clients[0].execute("import time\nprint('begun', flush=True)\ntime.sleep(2)\n")
    async with clients[0].stream(execution_id) as stream:
        await frame_of(stream, "output")
        await asyncio.to_thread(without_workers)
        async with pods_of(podded) as pods:
            while await running(pods, execution_id, 1):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(again, podded)
        stored = await frame_of(stream, "result_stored")
    assert (stored.data["result"]["status"], stored.data["result"]["stdout"]) == ("completed", "begun\n")
    assert stored.data["attempt"] == 1
    await until_none_is_left(podded)


async def test_a_run_is_begun_again_once_its_program_has_ended_in_the_pod_of_a_dead_worker(
    podded: PodCluster, clients: list[Client], without_workers: Callable[[], None]
) -> None:
    """It would have gone on for a minute, and nobody waits for its lease."""
    script = "import time\nprint('begun', flush=True)\ntime.sleep(60)\n"
    execution_id = await clients[0].execute(script, limits={"wall_s": 70})
    async with clients[0].stream(execution_id) as stream:
        await frame_of(stream, "output")
        began_s = time.monotonic()
        await asyncio.to_thread(without_workers)
        await asyncio.to_thread(again, podded)
        await frame_of(stream, "execution_restarted")
        async with pods_of(podded) as pods:
            assert not await running(pods, execution_id, 1)
        assert time.monotonic() - began_s < SOON_S
        await clients[0].post(f"/executions/{execution_id}/cancel")
        await frame_of(stream, "result_stored")
    await until_none_is_left(podded)


async def frame_of(stream: EventStream, name: str) -> Frame:
    """Return the next frame of a kind."""
    while (frame := await stream.next(WITHIN_S)) is not None:
        if name in (frame.event, frame.kind):
            return frame
    raise AssertionError(f"the stream ended without {name}")


async def running(pods: PodApi, execution_id: str, attempt: int) -> Sequence[Any]:
    """Return the pods of an attempt of which something runs."""
    found = (await pods.list(f"{EXECUTION}={execution_id},{ATTEMPT}={attempt}")).pods
    return [pod for pod in found if (each := placed(pod)) is not None and each.state is not PodState.ENDED]


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
