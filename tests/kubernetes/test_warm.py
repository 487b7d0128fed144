"""Programs in pods that wait for them, on a real cluster: a pod has one winner, and one that is not right has none."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes_asyncio import client

from runtape.adapters.kubernetes.manifests import CLAIMED, EXECUTION, OWNER, STATE, PodSettings
from runtape.adapters.kubernetes.network import PROBE
from runtape.adapters.kubernetes.pools import PoolSize, WarmSettings
from runtape.adapters.kubernetes.runtime import Image, KubernetesPods
from runtape.adapters.kubernetes.warm import WELCOME_S
from runtape.domain.limits import Limits
from runtape.ports.errors import Transient
from runtape.ports.pod_runtime import PodRuntime, PodStart
from tests.contract import test_pod_runtime as suite
from tests.contract.test_pod_runtime import PodRuntimeContract, Program
from tests.kubernetes.pods import eventually
from tests.kubernetes.proxy import Fate, Lose, Refuse, http_proxy, verb
from tests.kubernetes.waiting import (
    VERSION,
    ended,
    kept,
    names,
    of,
    pool,
    reached,
    runner_of,
    runs,
    soon,
    spec,
    until_waiting,
    waiting,
    warm_ones,
    workers,
)
from tests.rig.kubernetes.cluster import Kubernetes
from tests.rig.kubernetes.images import PYTHON

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.fixture
async def settings(api: client.CoreV1Api, namespace: str) -> AsyncIterator[PodSettings]:
    """Those of pods that take no room from other tests' once this one is over."""
    yield PodSettings(namespace=namespace, pull_policy="Never", cpu="75m")
    await api.delete_collection_namespaced_pod(namespace, grace_period_seconds=0)


@pytest.fixture
async def configuration(kubernetes: Kubernetes) -> client.Configuration:
    return await reached(kubernetes.kubeconfig)


class TestWarmPods(PodRuntimeContract):
    """Each program in a pod that waited for it, while there is one."""

    soon_s = 4.0

    @pytest.fixture(autouse=True)
    def _place(self, configuration: client.Configuration, settings: PodSettings, bash: Image) -> None:
        self._place_of_pods = configuration, replace(settings, cpu="250m"), bash

    def make(self, tmp_path: Path) -> AbstractAsyncContextManager[PodRuntime]:
        @asynccontextmanager
        async def made() -> AsyncIterator[PodRuntime]:
            async with kept(*self._place_of_pods, WarmSettings(size=PoolSize(2, 4))) as pods:
                await until_waiting(pods, 2)
                yield pods

        return made()

    def program(self, kind: Program) -> tuple[str, str, str]:
        return "bash", VERSION, suite.TestLocalSandbox.SCRIPTS[kind]


async def test_of_twenty_claimers_each_pod_has_one_and_the_others_start_cold(
    api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
) -> None:
    async with workers(configuration, settings, bash, warm=5, count=20) as claimers:
        before = await names(api, settings.namespace, warm_ones())
        starts = [worker.start(spec(f"e{at}", "sleep 0.2; echo $UID"), 1, soon()) for at, worker in enumerate(claimers)]

        async def one(at: int) -> tuple[PodStart | None, bytes]:
            how = await starts[at]
            if how is PodStart.WARM:
                found: Any = await api.list_namespaced_pod(settings.namespace, label_selector=of(f"e{at}"))
                assert [pod.metadata.labels[STATE] for pod in found.items] == [CLAIMED]
                taken.append(found.items[0].metadata.name)
            return how, (await ended(claimers[at], f"e{at}"))[0]

        taken: list[str] = []
        ran = await asyncio.gather(*map(one, range(20)))
        assert [how for how, _ in ran].count(PodStart.WARM) == 5
        assert [how for how, _ in ran].count(PodStart.COLD) == 15
        assert sorted(taken) == sorted(before)
        assert len({uid for _, uid in ran}) == 20, "each pod has a uid of its own"
        tallies = [worker.warm.count for worker in claimers if worker.warm]
        assert sum(tally["claimed"] for tally in tallies) == 5
        assert sum(tally["lost"] for tally in tallies) > 0, "nobody met anybody"
        assert await names(api, settings.namespace, "") == set(), "used pods are deleted"


async def test_a_run_in_a_warm_pod_takes_four_calls_with_that_for_the_next_pod(
    api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
) -> None:
    async with (
        http_proxy(configuration) as proxy,
        kept(proxy.configuration, settings, bash, WarmSettings(size=PoolSize(1, 1))) as pods,
    ):
        await until_waiting(pods, 1)
        first = await names(api, settings.namespace, "")
        before = len(proxy.asked)
        assert await runs(pods, "e") is PodStart.WARM

        async def next_one_waits() -> bool:
            return waiting(pods) == 1 and not first & await names(api, settings.namespace, "")

        await eventually(next_one_waits)
        calls = sorted(each.verb for each in proxy.asked[before:])
        assert calls == ["attach", "create", "delete", "patch"]


async def test_a_program_with_other_limits_than_the_pool_has_a_pod_made_for_it(
    configuration: client.Configuration, settings: PodSettings, bash: Image
) -> None:
    async with workers(configuration, settings, bash, warm=1) as [worker]:
        assert await worker.start(spec("more", limits=Limits(memory_mb=300)), 1, soon()) is PodStart.COLD
        assert await worker.start(spec("other", limits=Limits(wall_s=3.0, processes=5)), 1, soon()) is PodStart.WARM


async def test_the_life_of_a_claimed_pod_is_bounded_by_that_of_its_program(
    api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
) -> None:
    async with workers(configuration, settings, bash, warm=1) as [worker]:
        await worker.start(spec("e", "sleep 60"), 1, soon())
        [name] = await names(api, settings.namespace, of("e"))
        found: Any = await api.read_namespaced_pod(name, settings.namespace)
        assert 70 < found.spec.active_deadline_seconds < 70 + 60


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_dead_pod_that_says_that_it_is_ready_is_deleted_and_the_next_one_taken(
    api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image, number: int
) -> None:
    async with workers(configuration, settings, bash, warm=2) as [worker]:
        for dead in (1, 2):
            [name, *_] = await names(api, settings.namespace, warm_ones())
            others = await names(api, settings.namespace, warm_ones()) - {name}
            for other in others:
                await api.patch_namespaced_pod(other, settings.namespace, {"metadata": {"labels": {STATE: "aside"}}})
            await eventually(lambda: _sees(worker, 1))
            os.kill(await runner_of(api, settings.namespace, name), number)
            began_s = time.monotonic()
            how = await worker.start(spec(f"e{dead}"), 1, soon())
            assert how is PodStart.COLD
            assert (await ended(worker, f"e{dead}"))[0] == b"hello\n"
            assert time.monotonic() - began_s < WELCOME_S + 15
            assert worker.warm is not None
            if number == signal.SIGSTOP:  # the kubelet may have seen the death of the other before
                assert worker.warm.count["dead"] == dead
            await eventually(lambda gone=name: _is_gone(api, settings.namespace, gone))
            for other in others:
                await api.patch_namespaced_pod(other, settings.namespace, {"metadata": {"labels": {STATE: "warm"}}})
                await eventually(lambda: _sees(worker, 1))


async def test_pods_that_were_tampered_with_are_refused_and_deleted(
    kubernetes: Kubernetes,
    api: client.CoreV1Api,
    configuration: client.Configuration,
    settings: PodSettings,
    bash: Image,
) -> None:
    """Those that a cluster takes in a namespace that restricts nothing; test_hardening.py knows more."""
    await api.patch_namespace(
        settings.namespace, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}
    )
    async with workers(configuration, settings, bash, warm=1) as [worker]:
        for at, tamper in enumerate(TAMPERED):
            pod: Any = pool(worker).manifest(f"tampered-{at}")
            tamper(pod)
            await api.create_namespaced_pod(settings.namespace, pod)
        [sound] = await names(api, settings.namespace, f"{warm_ones()}") - {
            f"tampered-{at}" for at in range(len(TAMPERED))
        }
        debugged: Any = {"spec": {"ephemeralContainers": [_debugger()]}}
        await api.patch_namespaced_pod_ephemeralcontainers(sound, settings.namespace, debugged)
        await until_waiting(worker, len(TAMPERED) + 1)
        assert await worker.start(spec("e"), 1, soon()) is PodStart.COLD
        assert worker.warm is not None
        assert dict(worker.warm.count) == {"unfit": len(TAMPERED) + 1}
        assert (await ended(worker, "e"))[0] == b"hello\n"

        async def none_left() -> bool:
            return not await names(api, settings.namespace, "")

        await eventually(none_left)


def _program(pod: dict[str, Any]) -> dict[str, Any]:
    return pod["spec"]["containers"][0]


def _debugger() -> dict[str, Any]:
    command = ["python", "-c", "import signal; signal.pause()"]
    return {"name": "debugger", "image": PYTHON.reference, "imagePullPolicy": "Never", "command": command}


TAMPERED = [
    lambda pod: pod["spec"]["securityContext"].update(runAsUser=64_001),
    lambda pod: pod["spec"]["securityContext"].pop("seccompProfile"),
    lambda pod: pod["spec"]["securityContext"].update(fsGroup=100),
    lambda pod: pod["spec"].pop("automountServiceAccountToken"),
    lambda pod: pod["spec"].pop("enableServiceLinks"),
    lambda pod: pod["spec"].update(hostNetwork=True),
    lambda pod: pod["spec"].update(hostIPC=True),
    lambda pod: pod["spec"].update(shareProcessNamespace=False, hostname="other"),
    lambda pod: pod["spec"]["containers"].append(_debugger()),
    lambda pod: pod["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    lambda pod: _program(pod)["securityContext"].pop("readOnlyRootFilesystem"),
    lambda pod: _program(pod)["securityContext"].pop("capabilities"),
    lambda pod: _program(pod)["securityContext"].pop("allowPrivilegeEscalation"),
    lambda pod: _program(pod)["resources"].update(limits={"memory": "1Gi"}),
    lambda pod: _program(pod).update(env=[{"name": "LD_PRELOAD", "value": "/tmp/x"}]),
    lambda pod: pod["metadata"]["labels"].pop("app.kubernetes.io/name"),
    lambda pod: pod["metadata"]["labels"].update({PROBE: "control"}),
]


async def test_a_claim_whose_answer_is_lost_is_found_by_its_label(
    api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
) -> None:
    lost: list[str] = []

    def faults(request: web.Request) -> Fate | None:
        if verb(request) == "patch" and not lost:
            lost.append(request.path)
            return Lose()
        return None

    async with (
        http_proxy(configuration, faults) as proxy,
        workers(proxy.configuration, settings, bash, warm=2) as [worker],
    ):
        before = await names(api, settings.namespace, warm_ones())
        assert await worker.start(spec("e", "sleep 60"), 1, soon()) is PodStart.WARM
        [taken] = await names(api, settings.namespace, of("e"))
        assert lost and lost[0].endswith(taken)
        assert await names(api, settings.namespace, warm_ones()) == before - {taken}


async def test_a_start_that_follows_a_claim_of_which_nobody_knows_runs_the_program_once(
    api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
) -> None:
    broken = True
    lost: list[str] = []

    def faults(request: web.Request) -> Fate | None:
        if broken and verb(request) == "patch":
            lost.append(request.path)
            return Lose()
        if broken and EXECUTION in request.query.get("labelSelector", ""):
            return Refuse(503)
        return None

    async with (
        http_proxy(configuration, faults) as proxy,
        workers(proxy.configuration, settings, bash, warm=2) as [worker],
    ):
        before = await names(api, settings.namespace, warm_ones())
        with pytest.raises(Transient):
            await worker.start(spec("e"), 1, soon())
        assert lost
        broken = False
        assert await worker.start(spec("e"), 1, soon()) is PodStart.WARM
        assert (await ended(worker, "e"))[0] == b"hello\n"

        async def nothing_left() -> bool:
            return not await names(api, settings.namespace, "")

        await eventually(nothing_left)
        assert len(before) == 2, "one for the claim that nobody knew of, one for that which ran"


async def test_a_claim_that_is_carried_out_late_is_undone(
    api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
) -> None:
    async with workers(configuration, settings, bash, warm=1) as [worker]:
        [name] = await names(api, settings.namespace, warm_ones())
        late = {"metadata": {"labels": {OWNER: "worker-0", STATE: CLAIMED, EXECUTION: "late"}}}
        await api.patch_namespaced_pod(name, settings.namespace, late)
        await eventually(lambda: _is_gone(api, settings.namespace, name))
        assert await runs(worker, "e") is PodStart.COLD


async def _sees(worker: KubernetesPods, count: int) -> bool:
    return waiting(worker) == count


async def _is_gone(api: client.CoreV1Api, namespace: str, name: str) -> bool:
    return name not in await names(api, namespace, "")
