"""A node that is to be emptied: pods that wait go at once, those of programs when these have ended."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes_asyncio import client

from certs import objects
from certs.objects import MANIFESTS, PROGRAMS
from runtape.adapters.kubernetes.manifests import SAFE_TO_EVICT, PodSettings
from runtape.adapters.kubernetes.pools import PoolSize, WarmSettings
from runtape.adapters.kubernetes.runtime import Image, KubernetesPods
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind
from runtape.ports.pod_runtime import PodKey, PodStart
from tests.deploy.composition import PROJECT
from tests.kubernetes.pods import connected
from tests.kubernetes.waiting import ended, kept, names, of, reached, soon, spec, until_waiting, warm_ones
from tests.rig.kubernetes.cluster import Kubernetes
from tests.rig.kubernetes.components import NODE

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
LONG = "sleep 1000"
OTHER_LIMITS = Limits(memory_mb=64)
"""No pod that waits has them."""


@pytest.fixture
async def pods(
    kubernetes: Kubernetes, api: client.CoreV1Api, namespace: str, bash: Image
) -> AsyncIterator[KubernetesPods]:
    """One pod of a pool waits; the budget of deploy/kubernetes holds in the namespace."""
    [budget] = [each for each in objects.read(MANIFESTS / "base") if each["metadata"]["name"] == "runs"]
    [renamed] = objects.renamed([budget], {PROGRAMS: namespace})
    async with connected(kubernetes.kubeconfig) as connection:
        await objects.apply(connection, renamed)
    settings = PodSettings(namespace=namespace, pull_policy="Never", cpu="75m")
    configuration = await reached(kubernetes.kubeconfig)
    async with kept(configuration, settings, bash, WarmSettings(size=PoolSize(1, 1))) as pods:
        await until_waiting(pods, 1)
        yield pods
    await api.delete_collection_namespaced_pod(namespace, grace_period_seconds=0)


async def test_the_autoscaler_is_told_which_pods_keep_their_node(
    api: client.CoreV1Api, namespace: str, pods: KubernetesPods
) -> None:
    async def may_go(selector: str) -> list[str]:
        found: Any = await api.list_namespaced_pod(namespace, label_selector=selector)
        return [pod.metadata.annotations[SAFE_TO_EVICT] for pod in found.items]

    assert await may_go(warm_ones()) == ["true"]
    assert await pods.start(spec("claimed", LONG), 1, soon()) is PodStart.WARM
    assert await pods.start(spec("made", LONG, OTHER_LIMITS), 1, soon()) is PodStart.COLD
    assert await may_go(of("claimed")) == await may_go(of("made")) == ["false"]
    await until_waiting(pods, 1)
    assert await may_go(warm_ones()) == ["true"]


async def test_a_node_is_drained_once_the_programs_on_it_have_ended(
    kubernetes: Kubernetes, api: client.CoreV1Api, namespace: str, pods: KubernetesPods
) -> None:
    await pods.start(spec("claimed", LONG), 1, soon())
    await pods.start(spec("made", LONG, OTHER_LIMITS), 1, soon())
    await until_waiting(pods, 1)
    [waits] = await names(api, namespace, warm_ones())
    programs = [PodKey(ExecutionId(each), 1) for each in ("claimed", "made")]
    running = {name for key in programs for name in await names(api, namespace, of(key.execution_id))}
    for name in {waits, *running}:  # other tests' pods are not drained
        await api.patch_namespaced_pod(name, namespace, {"metadata": {"labels": {"drained": namespace}}})
    drain = [*documented(), f"--pod-selector=drained={namespace}"]
    refused = await begun(kubernetes, *(word for word in drain if word != "--force"))
    _, said = await refused.communicate()
    assert b"cannot delete Pods that declare no controller (use --force to override)" in said
    try:
        draining = await begun(kubernetes, *drain)
        assert draining.stdout is not None and draining.stderr is not None
        refusals = [f'pods/"{name}"' for name in running] * 2  # each is tried again
        await asyncio.gather(told(draining.stdout, [f"pod/{waits} evicted"]), told(draining.stderr, refusals))
        assert await names(api, namespace, f"drained={namespace}") == running
        for key in programs:
            await pods.kill(key)
            assert (await ended(pods, key.execution_id))[1].outcome.kind is OutcomeKind.CANCELLED
        assert await draining.wait() == 0
    finally:
        assert await (await begun(kubernetes, "uncordon", NODE)).wait() == 0
    await until_waiting(pods, 1)


def documented() -> list[str]:
    """Return the words after ``kubectl`` by which docs/operations.md drains a node, of the node here."""
    [line] = [line for line in (PROJECT / "docs/operations.md").read_text().splitlines() if "kubectl drain" in line]
    return line.replace("NODE", NODE).split()[1:]


async def begun(kubernetes: Kubernetes, *words: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    as_whom = ("--kubeconfig", str(kubernetes.kubeconfig))
    return await asyncio.create_subprocess_exec(kubernetes.kubectl, *as_whom, *words, stdout=pipe, stderr=pipe)


async def told(stream: asyncio.StreamReader, words: list[str]) -> None:
    """Return once a line with each of these was read, whichever comes first.  Raises: AssertionError."""
    missing = [*words]
    lines: list[str] = []
    while missing:
        line = (await stream.readline()).decode()
        assert line, f"{missing} were not told: {lines}"
        lines.append(line)
        if found := next((each for each in missing if each in line), None):
            missing.remove(found)
