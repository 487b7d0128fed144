"""Workers with warm pods, and what tests do with those."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kubernetes_asyncio import client, config

from runtape.adapters.kubernetes.manifests import EXECUTION, RUNNER, STATE, WARM, PodSettings
from runtape.adapters.kubernetes.pools import Pool, PoolSize, WarmSettings
from runtape.adapters.kubernetes.runtime import Image, KubernetesPods
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.source import Source
from runtape.ports.pod_runtime import PodEnded, PodKey, PodRuntime, PodSpec, PodStart
from tests.kubernetes.pods import SOON_S, eventually

VERSION = "5.2"


async def reached(kubeconfig: Path) -> client.Configuration:
    """Return how to reach the API, as whom the file names."""
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    return configuration


@contextlib.asynccontextmanager
async def kept(
    configuration: client.Configuration, settings: PodSettings, image: Image, warm: WarmSettings
) -> AsyncIterator[KubernetesPods]:
    """Keep the pool filled meanwhile; yields who keeps it."""
    async with KubernetesPods(configuration, settings, [image], "keeper", warm) as pods:
        keeping = asyncio.create_task(pods.keep())
        try:
            yield pods
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping


@contextlib.asynccontextmanager
async def workers(
    configuration: client.Configuration, settings: PodSettings, bash: Image, warm: int, count: int = 1
) -> AsyncIterator[list[KubernetesPods]]:
    """Yield so many workers that all see so many pods wait, of which none will have a successor."""
    wanted = WarmSettings(size=PoolSize(warm, warm))
    async with contextlib.AsyncExitStack() as stack:
        async with kept(configuration, settings, bash, wanted) as keeper:
            await until_waiting(keeper, warm)
        made = [KubernetesPods(configuration, settings, [bash], f"worker-{at}", wanted) for at in range(count)]
        for worker in made:
            await stack.enter_async_context(worker)
            assert waiting(worker) == warm
        yield made


def pool(pods: KubernetesPods) -> Pool:
    """Return the pool of the tests' image."""
    assert pods.warm is not None
    found = pods.warm.pool("bash", VERSION)
    assert found is not None
    return found


def waiting(pods: KubernetesPods) -> int:
    """Return how many pods wait, as this worker sees them."""
    assert pods.warm is not None
    return pods.warm.waiting(pool(pods))


async def until_waiting(pods: KubernetesPods, count: int) -> None:
    """Return when so many pods wait, or more."""

    async def enough() -> bool:
        return waiting(pods) >= count

    await eventually(enough)


def spec(execution: str, script: str = "echo hello", limits: Limits | None = None) -> PodSpec:
    """Return a shell script to be run."""
    return PodSpec(
        execution_id=ExecutionId(execution),
        lang="bash",
        lang_version=VERSION,
        source=Source(script=script),
        limits=limits or Limits(),
    )


def soon() -> datetime:
    """Return when a lease ends that a test does not extend."""
    return datetime.now(UTC) + timedelta(seconds=SOON_S)


async def ended(pods: PodRuntime, execution: str) -> tuple[bytes, PodEnded]:
    """Return what a started program printed, and its end; its pod is then removed."""
    key = PodKey(ExecutionId(execution), 1)
    async with asyncio.timeout(SOON_S):
        printed = b"".join([record.data async for batch in pods.records(key) for record in batch])
        async for end in pods.watch():
            if end.key == key:
                await pods.remove(key)
                return printed, end
    raise AssertionError("the watch stopped before the pod ended")


async def runs(pods: PodRuntime, execution: str) -> PodStart | None:
    """Run a program from its start to its end, which has to be as it should; returns how it was started."""
    how = await pods.start(spec(execution), 1, soon())
    printed, end = await ended(pods, execution)
    assert (printed, end.outcome.exit_code) == (b"hello\n", 0)
    return how


async def names(api: client.CoreV1Api, namespace: str, selector: str) -> set[str]:
    """Return the pods that the cluster has."""
    found: Any = await api.list_namespaced_pod(namespace, label_selector=selector)
    return {pod.metadata.name for pod in found.items}


def warm_ones() -> str:
    """Return what finds the pods that wait for somebody."""
    return f"{STATE}={WARM}"


def of(execution: str) -> str:
    """Return what finds the pods of an execution."""
    return f"{EXECUTION}={execution}"


async def runner_of(api: client.CoreV1Api, namespace: str, name: str) -> int:
    """Return the process, as this machine has it, that is the first of a pod's container."""
    uid = (await api.read_namespaced_pod(name, namespace)).metadata.uid  # pyright: ignore[reportOptionalMemberAccess]
    return _first_process(str(uid))


def _first_process(uid: str) -> int:
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path("/proc", process, "cmdline").read_bytes().split(b"\0")[0]
            if command == RUNNER.encode() and uid in Path("/proc", process, "cgroup").read_text():
                return int(process)
    raise AssertionError(f"the pod {uid} has no runner")
