"""How long each phase of a pod took is told once, for the pods that concern this process."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes_asyncio import client
from structlog.testing import capture_logs

from runtape.adapters.kubernetes import placed
from runtape.adapters.kubernetes.api import Listed, PodApi
from runtape.adapters.kubernetes.manifests import ATTEMPT, EXECUTION
from runtape.adapters.kubernetes.placed import ClusterPods

POD = "exec-e-1"
PENDING: Mapping[str, Any] = {"phase": "Pending"}
RUNNING: Mapping[str, Any] = {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}
KILLED: Mapping[str, Any] = {
    "phase": "Failed",
    "containerStatuses": [{"state": {"terminated": {"reason": "Error", "exitCode": 137}}}],
}
_versions = itertools.count(1)


def pod(status: Mapping[str, Any], node: str | None = None) -> dict[str, Any]:
    """Return a pod as the API tells of it, newer than those before."""
    labels = {EXECUTION: "e", ATTEMPT: "1"}
    metadata = {"name": POD, "resourceVersion": str(next(_versions)), "labels": labels}
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": status}


async def told(
    monkeypatch: pytest.MonkeyPatch,
    changes: Sequence[tuple[float, Mapping[str, Any]]],
    *,
    there: Iterable[tuple[float, Mapping[str, Any]]] = (),
    concerns: bool = True,
) -> list[dict[str, Any]]:
    """Return what is logged when pods are `there`, and change; each comes at its second."""
    first, over = [*there], asyncio.Event()
    times_s = iter([at_s for at_s, _ in [*first, *changes]])

    async def listed(_: PodApi, selector: str) -> Listed:
        return Listed([dict(each) for _, each in first], "0")

    async def watch(api: PodApi, selector: str, version: str) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
        for _, each in changes:
            yield "MODIFIED", each
        over.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(PodApi, "list", listed)
    monkeypatch.setattr(PodApi, "watch", watch)
    monkeypatch.setattr(placed, "time", SimpleNamespace(monotonic=lambda: next(times_s)))
    pods = ClusterPods(client.Configuration(), "programs", lambda execution_id: concerns)
    with capture_logs() as logs:
        watching = asyncio.ensure_future(pods.run())
        try:
            async with asyncio.timeout(10):
                await over.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await pods.close()
    return [{**line} for line in logs]


def line(event: str, **fields: Any) -> dict[str, Any]:
    return {"event": event, "log_level": "info", "pod": POD, **fields}


LIFE = [
    (10.0, PENDING, None),
    (11.5, PENDING, "node"),
    (12.0, PENDING, "node"),
    (13.25, RUNNING, "node"),
    (14.0, RUNNING, "node"),
    (20.0, KILLED, "node"),
    (21.0, KILLED, "node"),
]


async def test_a_pod_is_told_of_when_it_has_a_node_when_it_runs_and_when_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await told(monkeypatch, [(at_s, pod(status, node)) for at_s, status, node in LIFE]) == [
        line("pod.scheduled", after_s=1.5),
        line("pod.running", after_s=3.25),
        line("pod.terminated", ran_s=6.75, reason="runner_killed"),
    ]


async def test_of_a_pod_that_was_there_before_only_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [(5.0, pod(PENDING))]
    assert await told(monkeypatch, [(at_s, pod(status, node)) for at_s, status, node in LIFE], there=there) == [
        line("pod.terminated", ran_s=6.75, reason="runner_killed"),
    ]


async def test_of_a_pod_that_never_ran_no_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    evicted = {"phase": "Failed", "reason": "Evicted"}
    assert await told(monkeypatch, [(10.0, pod(PENDING)), (11.0, pod(evicted))]) == [
        line("pod.terminated", ran_s=None, reason="evicted"),
    ]


async def test_nothing_is_told_of_pods_that_concern_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await told(monkeypatch, [(at_s, pod(status, node)) for at_s, status, node in LIFE], concerns=False) == []
