"""Each way in which a pod can end gives the right outcome, whoever is there to tell it, and no pod is left."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client, config

from runtape.adapters.kubernetes import attempt, leases, runtime
from runtape.adapters.kubernetes.manifests import ATTEMPT, EXECUTION, MANAGED_BY
from runtape.adapters.kubernetes.runtime import Image
from runtape.application import reaping, running
from runtape.domain.execution import OnInterrupt
from runtape.domain.outcome import OutcomeKind
from tests.contract.embedded.basic import quick_place
from tests.kubernetes.mortal import Place, reasons
from tests.kubernetes.pods import a_pod
from tests.kubernetes.proxy import connection_proxy
from tests.kubernetes.waiting import runner_of
from tests.rig.kubernetes.cluster import Kubernetes
from tests.rig.kubernetes.images import PYTHON

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
LEASE_S = 9
WAITS = "echo begun; sleep 4; echo ended"
"""Long enough to be disturbed; the next attempt is not."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LEASE_TTL", timedelta(seconds=LEASE_S))
    monkeypatch.setattr(attempt, "ANSWER_S", 3.0)
    monkeypatch.setattr(reaping, "LOOK_S", 5.0)


@pytest.fixture
async def place(
    kubernetes: Kubernetes, api: client.CoreV1Api, namespace: str, folder: Path, bash: Image
) -> AsyncIterator[Place]:
    configuration = client.Configuration()
    await config.load_kube_config(str(kubernetes.kubeconfig), client_configuration=configuration)
    yield Place(configuration, api, namespace, folder, bash)


# The worker lives


async def test_a_program_without_memory_is_told_so(place: Place) -> None:
    async with place.worker() as worker:
        execution = await worker.until_stored(
            await worker.submit("x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done", limits={"memory_mb": 32})
        )
        assert execution.outcome is not None
        assert (execution.outcome.kind, execution.attempt) == (OutcomeKind.MEMORY_LIMIT, 1)
        await place.until_no_pods()


async def test_a_pod_that_is_deleted_by_hand_while_its_program_runs_gets_another_one(place: Place) -> None:
    async with place.worker() as worker:
        execution_id = await worker.submit(WAITS)
        await worker.until_printed(execution_id, b"begun\n")
        await place.core.delete_namespaced_pod(f"exec-{execution_id}-1", place.namespace)
        execution = await worker.until_stored(execution_id)
        assert (execution.status, execution.attempt, reasons(execution)) == ("completed", 2, ["pod_deleted"])
        assert await worker.world.printed(execution_id, 2) == b"begun\nended\n"
        await place.until_no_pods()


async def test_a_pod_that_is_deleted_before_the_hand_over_gets_another_one_whatever_was_asked_for(
    place: Place, kubernetes: Kubernetes
) -> None:
    async with place.worker() as worker:
        kubernetes.kubelet.pause()
        try:
            execution_id = await worker.submit("echo ran", on_interrupt=OnInterrupt.FAIL)
            await place.until(lambda: _is_there(place))
            await place.core.delete_namespaced_pod(f"exec-{execution_id}-1", place.namespace, grace_period_seconds=0)
            await worker.until_attempt(execution_id, 2)
        finally:
            kubernetes.kubelet.resume()
        execution = await worker.until_stored(execution_id)
        assert (execution.status, execution.attempt, reasons(execution)) == ("completed", 2, ["pod_deleted"])
        await place.until_no_pods()


async def _is_there(place: Place) -> bool:
    return bool(await place.pods())


async def test_a_pod_that_lives_longer_than_it_may_says_so(place: Place) -> None:
    async with place.worker() as worker:
        execution_id = await worker.submit(WAITS, on_interrupt=OnInterrupt.FAIL)
        await worker.until_printed(execution_id, b"begun\n")
        deadline = {"spec": {"activeDeadlineSeconds": 1}}
        await place.core.patch_namespaced_pod(f"exec-{execution_id}-1", place.namespace, deadline)
        execution = await worker.until_stored(execution_id)
        assert execution.outcome is not None
        assert execution.outcome.reason == "pod_deadline"
        await place.until_no_pods()


async def test_a_pod_that_is_evicted_says_so(place: Place) -> None:
    async with place.worker() as worker:
        execution_id = await worker.submit(WAITS)
        await worker.until_printed(execution_id, b"begun\n")
        eviction: Any = {"metadata": {"name": f"exec-{execution_id}-1"}}
        await place.core.create_namespaced_pod_eviction(f"exec-{execution_id}-1", place.namespace, eviction)
        execution = await worker.until_stored(execution_id)
        assert (execution.status, reasons(execution)) == ("completed", ["evicted"])
        await place.until_no_pods()


async def test_a_program_whose_runner_is_killed_gets_another_pod(place: Place) -> None:
    async with place.worker() as worker:
        execution_id = await worker.submit(WAITS)
        await worker.until_printed(execution_id, b"begun\n")
        await _kill_runner(place, f"exec-{execution_id}-1")
        execution = await worker.until_stored(execution_id)
        assert (execution.status, execution.attempt, reasons(execution)) == ("completed", 2, ["runner_killed"])
        assert await worker.world.printed(execution_id, 2) == b"begun\nended\n"
        await place.until_no_pods()


async def test_a_program_that_is_not_to_run_again_has_failed_with_its_runner(place: Place) -> None:
    async with place.worker() as worker:
        execution_id = await worker.submit(WAITS, on_interrupt=OnInterrupt.FAIL)
        await worker.until_printed(execution_id, b"begun\n")
        await _kill_runner(place, f"exec-{execution_id}-1")
        execution = await worker.until_stored(execution_id)
        outcome = execution.outcome
        assert outcome is not None
        assert (outcome.kind, outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "runner_killed")
        assert (execution.status, execution.attempt) == ("failed", 1)
        assert await worker.world.printed(execution_id) == b"begun\n"
        await place.until_no_pods()


async def _kill_runner(place: Place, name: str) -> None:
    os.kill(await runner_of(place.core, place.namespace, name), signal.SIGKILL)


async def test_an_image_that_does_not_exist_ends_a_run_in_seconds_with_the_words_of_kubernetes(place: Place) -> None:
    place.image = Image("registry.invalid/none:1", place.image.runtime)
    async with place.worker(pull_policy="IfNotPresent") as worker:
        execution = await worker.until_stored(await worker.submit("echo never"), within_s=60)
        outcome = execution.outcome
        assert outcome is not None
        assert (outcome.reason, execution.attempt) == ("image_pull_failed", 3)
        assert reasons(execution) == ["image_pull_failed"] * 2
        assert "registry.invalid/none:1" in (outcome.message or "")
        await place.until_no_pods()


async def test_a_pod_that_no_node_takes_says_why(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "START_S", 3.0)
    async with place.worker(cpu="900") as worker:
        execution = await worker.until_stored(await worker.submit("echo never"))
        outcome = execution.outcome
        assert outcome is not None
        assert (outcome.reason, execution.attempt) == ("unschedulable", 3)
        assert "Insufficient cpu" in (outcome.message or "")
        await place.until_no_pods()


async def test_a_pod_that_kubernetes_refuses_says_why(place: Place) -> None:
    async with place.worker(priority_class="there-is-none") as worker:
        execution = await worker.until_stored(await worker.submit("echo never"))
        outcome = execution.outcome
        assert outcome is not None
        assert (outcome.reason, execution.attempt) == ("pod_refused", 3)
        assert "there-is-none" in (outcome.message or "")


async def test_a_full_quota_is_waited_out(place: Place) -> None:
    quota: Any = {"metadata": {"name": "full"}, "spec": {"hard": {"pods": "0"}}}
    await place.core.create_namespaced_resource_quota(place.namespace, quota)
    await place.until(lambda: _is_counted(place))
    async with place.worker() as worker:
        execution_id = await worker.submit("echo ran")
        await worker.until_attempt(execution_id, 1)
        await asyncio.sleep(2 * runtime.QUOTA_S)
        await place.core.delete_namespaced_resource_quota("full", place.namespace)
        execution = await worker.until_stored(execution_id)
        assert (execution.status, execution.attempt) == ("completed", 1)


async def _is_counted(place: Place) -> bool:
    quota = await place.core.read_namespaced_resource_quota("full", place.namespace)
    return bool(quota.status.hard)


async def test_a_program_on_a_node_that_is_lost_is_run_again_once_its_lease_is_over_there(
    place: Place, kubernetes: Kubernetes
) -> None:
    async with place.worker() as worker:
        execution_id = await worker.submit("while :; do echo on; sleep 0.2; done", limits={"wall_s": 200.0})
        await worker.until_printed(execution_id, b"on\n")
        kubernetes.kubelet.kill()
        try:
            lost_at_s = asyncio.get_running_loop().time()
            await worker.until_attempt(execution_id, 2)
            took_s = asyncio.get_running_loop().time() - lost_at_s
        finally:
            kubernetes.kubelet.start()
        assert LEASE_S - LEASE_S / 3 < took_s < LEASE_S + 30
        assert reasons(await worker.world.get(execution_id)) == ["node_lost"]
        await worker.until_printed(execution_id, b"on\n", attempt=2)


async def test_a_connection_that_died_without_a_word_is_noticed_before_the_lease_is_over(place: Place) -> None:
    async with connection_proxy(place.configuration) as way, place.worker(configuration=way.configuration) as worker:
        execution_id = await worker.submit(f"echo begun; sleep {2 * LEASE_S}; echo ended", limits={"wall_s": 60.0})
        await worker.until_printed(execution_id, b"begun\n")
        way.freeze()
        execution = await worker.until_stored(execution_id)
        assert (execution.status, execution.attempt) == ("completed", 1)
        assert await worker.world.printed(execution_id) == b"begun\nended\n"


# The worker is gone


async def test_what_a_program_told_whose_worker_was_killed_is_told_by_the_monitor(place: Place) -> None:
    async with place.worker() as worker:
        execution_id = await worker.submit("echo begun; sleep 2; exit 3")
        await worker.until_printed(execution_id, b"begun\n")
    async with place.worker("next") as successor, place.monitor(successor.world):
        execution = await successor.until_stored(execution_id)
        assert execution.outcome is not None
        assert (execution.outcome.exit_code, execution.attempt) == (3, 1)
        assert await successor.world.printed(execution_id) == b"begun\n"
        await place.until_no_pods()


async def test_no_pod_is_left_a_minute_after_a_worker_was_killed_and_its_program_runs_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lease as it is in earnest."""
    monkeypatch.setattr(running, "LEASE_TTL", timedelta(seconds=30))
    monkeypatch.setattr(reaping, "LOOK_S", 30.0)
    async with place.worker() as worker:
        execution_id = await worker.submit("while :; do echo on; sleep 0.2; done", limits={"wall_s": 200.0})
        await worker.until_printed(execution_id, b"on\non\n")
    killed_at_s = asyncio.get_running_loop().time()
    async with place.worker("next") as successor, place.monitor(successor.world):
        await successor.until_attempt(execution_id, 2)
        restarted_s = asyncio.get_running_loop().time() - killed_at_s
        await place.until(lambda: _is_gone(place, f"exec-{execution_id}-1"))
        gone_s = asyncio.get_running_loop().time() - killed_at_s
        assert reasons(await successor.world.get(execution_id))[0] in ("lease_expired", "output_lost")
        print(f"restarted after {restarted_s:.1f} s, its pod gone after {gone_s:.1f} s")
        assert gone_s < 60


async def _is_gone(place: Place, name: str) -> bool:
    return name not in {pod.metadata.name for pod in await place.pods()}


async def test_a_pod_that_a_finalizer_keeps_is_let_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaping, "STUCK_S", 3.0)
    async with place.worker() as worker, place.monitor(worker.world):
        execution_id = await worker.submit(WAITS)
        await worker.until_printed(execution_id, b"begun\n")
        kept = {"metadata": {"finalizers": ["test.runtape.dev/kept"]}}
        await place.core.patch_namespaced_pod(f"exec-{execution_id}-1", place.namespace, kept)
        assert (await worker.until_stored(execution_id)).status == "completed"
        await place.until_no_pods(within_s=60)


async def test_a_pod_whose_kubelet_stands_still_is_forgotten_by_force(
    place: Place, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaping, "STUCK_S", 3.0)
    async with place.worker() as worker:
        execution_id = await worker.submit("echo begun; sleep 100", limits={"wall_s": 200.0})
        await worker.until_printed(execution_id, b"begun\n")
    async with place.worker("next") as successor, place.monitor(successor.world):
        kubernetes.kubelet.pause()
        try:
            await place.core.delete_namespaced_pod(f"exec-{execution_id}-1", place.namespace)
            await place.until(lambda: _is_gone(place, f"exec-{execution_id}-1"), within_s=60)
            await successor.until_attempt(execution_id, 2)
        finally:
            kubernetes.kubelet.resume()


async def test_an_execution_whose_pod_is_gone_with_its_worker_is_run_again(place: Place) -> None:
    async with place.worker() as worker:
        execution_id = await worker.submit(WAITS)
        await worker.until_printed(execution_id, b"begun\n")
    await place.core.delete_namespaced_pod(f"exec-{execution_id}-1", place.namespace, grace_period_seconds=0)
    async with place.worker("next") as successor, place.monitor(successor.world):
        execution = await successor.until_stored(execution_id)
        assert (execution.status, reasons(execution)) == ("completed", ["pod_lost"])
        await place.until_no_pods()


async def test_two_monitors_share_the_pods_and_the_one_that_is_left_takes_all(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 3)
    monkeypatch.setattr(leases, "RENEWED_S", 2.0)
    monkeypatch.setattr(leases, "TURN_S", 0.3)
    monkeypatch.setattr(reaping, "LOOK_S", 1.0)
    async with contextlib.AsyncExitStack() as stack:
        worker = await stack.enter_async_context(place.worker())
        way = await stack.enter_async_context(connection_proxy(place.configuration))
        one = await stack.enter_async_context(place.monitor(worker.world, "one"))
        other = await stack.enter_async_context(place.monitor(worker.world, "other", way.configuration))
        await place.until(lambda: _holds(one, 4, other, 4))
        await _make_orphans(place, 16)
        await place.until_no_pods()
        way.shut.set()
        await place.until(lambda: _holds(one, 8, other, 0))
        await _make_orphans(place, 16)
        await place.until_no_pods()


async def _holds(one: Any, count: int, other: Any, other_count: int) -> bool:
    held = [len(watch._partitions.held) for watch in (one, other)]
    return held == [count, other_count]


async def _make_orphans(place: Place, count: int) -> None:
    for number in range(count):
        pod = a_pod(PYTHON.reference, ["python", "-c", "0"])
        labels = {MANAGED_BY: "runtape", EXECUTION: f"unknown-{number}", ATTEMPT: "1"}
        pod["metadata"] = {"name": f"orphan-{number}", "labels": labels}
        pod["spec"]["schedulerName"] = "nobody"  # it stays as it is until somebody deletes it
        await place.core.create_namespaced_pod(place.namespace, pod)
