"""Whether programs reach the network is found out by pods that try, and what follows from it."""

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from kubernetes_asyncio import client
from structlog.testing import capture_logs

from certs import objects
from certs.objects import MANIFESTS, PROGRAMS
from runtape.adapters.kubernetes import manifests, network
from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.connection import configuration
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.network import Finding, NetworkOpen, Verdict, judge
from runtape.domain.limits import MINIMUM
from runtape.ports.errors import Transient
from tests.kubernetes import image
from tests.kubernetes.pods import connected, eventually
from tests.kubernetes.proxy import Fate, Lose, Refuse, http_proxy, verb
from tests.rig.kubernetes.cluster import Kubernetes

on_a_cluster = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
ENFORCED = Finding(Verdict.ENFORCED, "a program's pod reaches nothing and is not reached, and the control is")
OPEN = Finding(Verdict.NOT_ENFORCED, "outgoing connections of a program's pod get through")
PASSING = Finding(Verdict.UNKNOWN, "the probe could not be carried out: Kubernetes answers 500", passing=True)
UNCLEAR = Finding(Verdict.UNKNOWN, "no node takes the pods")


@pytest.mark.parametrize(("control", "outgoing", "incoming"), [*itertools.product([True, False], repeat=3)])
def test_policies_are_enforced_when_the_control_gets_through_and_nothing_else_does(
    control: bool, outgoing: bool, incoming: bool
) -> None:
    found = judge(control=control, outgoing=outgoing, incoming=incoming).verdict
    if outgoing or incoming:
        assert found is Verdict.NOT_ENFORCED
    else:
        assert found is (Verdict.ENFORCED if control else Verdict.UNKNOWN)


def test_what_gets_through_is_named() -> None:
    assert "outgoing and incoming" in judge(control=True, outgoing=True, incoming=True).reason
    assert judge(control=True, outgoing=False, incoming=True).reason.startswith("incoming connections")


@pytest.mark.parametrize(("finding", "told"), [(OPEN, "not enforced"), (UNCLEAR, "perhaps not enforced")])
def test_what_is_required_and_was_not_shown_is_refused_with_what_to_do(finding: Finding, told: str) -> None:
    with capture_logs() as logs, pytest.raises(NetworkOpen) as refused:
        network.settle(finding, required=True)
    assert not logs
    for part in (
        f"network policies are {told} ({finding.reason})",
        "deny-all",
        "kubernetes.require_network_policy = false",
    ):
        assert part in str(refused.value)


@pytest.mark.parametrize("finding", [OPEN, UNCLEAR])
def test_what_is_not_required_is_a_warning(finding: Finding) -> None:
    with capture_logs() as logs:
        network.settle(finding, required=False)
    (line,) = logs
    assert line["log_level"] == "warning" and line["event"] == f"network_policy.{finding.verdict}"
    assert line["reason"] == finding.reason and "deny-all" in line["fix"]


def test_what_is_required_and_could_not_be_looked_at_is_waited_for() -> None:
    with capture_logs() as logs, pytest.raises(Transient, match="nobody can say yet"):
        network.settle(PASSING, required=True)
    assert not logs


@pytest.mark.parametrize("required", [True, False])
def test_what_is_enforced_is_no_warning(required: bool) -> None:
    with capture_logs() as logs:
        network.settle(ENFORCED, required=required)
    assert [line["log_level"] for line in logs] == ["info"]


class TestOfAnApiThatFails:
    """What it keeps from being found out is looked for again."""

    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(network, "PAUSES_S", (0.0, 0.0, 0.0))

    async def found(self, monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> tuple[Finding, int]:
        """Return what is found out when each look finds the next of `findings`, and how many are left over."""
        left = [*findings]

        async def look(*_: object) -> Finding:
            return left.pop(0)

        monkeypatch.setattr(network, "look", look)
        nobody: Any = None
        return await network.find_out(nobody, settings(), "image"), len(left)

    async def test_a_failure_that_passes_is_no_finding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with capture_logs() as logs:
            assert await self.found(monkeypatch, PASSING, PASSING, ENFORCED) == (ENFORCED, 0)
        assert [(line["event"], line["reason"]) for line in logs] == [
            ("network_policy.looked_at_again", PASSING.reason)
        ] * 2

    @pytest.mark.parametrize("finding", [OPEN, UNCLEAR, ENFORCED])
    async def test_what_does_not_pass_is_final_at_once(self, monkeypatch: pytest.MonkeyPatch, finding: Finding) -> None:
        assert await self.found(monkeypatch, finding, ENFORCED) == (finding, 1)
        assert await self.found(monkeypatch, PASSING, finding, ENFORCED) == (finding, 1)

    async def test_a_failure_that_stays_is_told_in_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert await self.found(monkeypatch, *[PASSING] * 5) == (PASSING, 1)


@pytest.fixture
async def pods(kubernetes: Kubernetes) -> AsyncIterator[PodApi]:
    """The pods of the namespace of programs, with its policies, quota and limits."""
    kubernetes.containerd.take(image.archive(image.BASH))
    async with connected(kubernetes.kubeconfig) as connection:
        kinds = ("Namespace", "PriorityClass", "ServiceAccount", "ResourceQuota", "LimitRange", "NetworkPolicy")
        for thing in [
            *objects.of_kinds(objects.read(MANIFESTS / "base"), kinds),
            *objects.read(MANIFESTS / "gvisor"),
        ]:
            if thing["metadata"].get("namespace", PROGRAMS) == PROGRAMS:
                await objects.apply(connection, thing)
        core = client.CoreV1Api(connection)
        await eventually(lambda: core.read_namespaced_service_account("default", PROGRAMS))
    api = PodApi(await configuration(kubernetes.kubeconfig), PROGRAMS)
    yield api
    await api.close()


def settings(**given: Any) -> PodSettings:
    return PodSettings(namespace=PROGRAMS, pull_policy="Never", priority_class="runtape-program", **given)


async def left(api: PodApi) -> list[str]:
    """The pods of probes that are not on their way out."""
    found = (await api.list(network.PROBE)).pods
    return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]


class TestOnACluster:
    """The rig's, whose network plugin enforces no policy."""

    pytestmark = on_a_cluster

    async def test_that_nothing_is_enforced_is_found_out_and_nothing_is_left(self, pods: PodApi) -> None:
        found = await network.look(pods, settings(), image.BASH.reference)
        assert found == judge(control=True, outgoing=True, incoming=True), found.reason
        assert await left(pods) == []
        with pytest.raises(NetworkOpen, match="not enforced"):
            network.settle(found, required=True)

    async def test_a_pod_of_the_probe_is_hardened_as_a_program_is(
        self, pods: PodApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Any] = []

        async def create(manifest: Any) -> Any:
            made.append(await PodApi.create(pods, manifest))
            return made[-1]

        monkeypatch.setattr(pods, "create", create)
        await network.look(pods, settings(), image.BASH.reference)
        assert [pod["metadata"]["labels"][network.PROBE] for pod in made].count("program") == 2
        for pod in made:
            name = pod["metadata"]["name"]
            spec, wanted = pod["spec"], manifests.pod(name, settings(), image.BASH.reference, MINIMUM, {}, "")["spec"]
            assert spec["securityContext"] == wanted["securityContext"]
            assert spec["automountServiceAccountToken"] is False
            (container,), (like,) = spec["containers"], wanted["containers"]
            assert container["securityContext"] == like["securityContext"]
            assert container["resources"]["limits"].keys() == like["resources"]["limits"].keys()

    async def test_pods_that_no_node_takes_show_nothing(self, pods: PodApi, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(network, "PROBE_S", 5.0)
        found = await network.look(pods, settings(runtime_class="gvisor"), image.BASH.reference)
        assert found.verdict is Verdict.UNKNOWN and "didn't match Pod's node affinity/selector" in found.reason
        assert await left(pods) == []

    async def test_an_image_without_the_probe_shows_nothing(self, pods: PodApi) -> None:
        found = await network.look(pods, settings(), "docker.io/library/python:3.11-slim-bookworm")
        assert found.verdict is Verdict.UNKNOWN and "listens" in found.reason
        assert await left(pods) == []

    @pytest.mark.parametrize("fate", [Refuse(429), Refuse(500), Lose()])
    async def test_one_request_that_fails_keeps_nobody_from_finding_out(
        self, pods: PodApi, kubernetes: Kubernetes, fate: Fate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(network, "PAUSES_S", (0.1,))
        fates = [fate]
        async with http_proxy(await configuration(kubernetes.kubeconfig)) as proxy:
            proxy.faults = lambda request: fates.pop() if fates and verb(request) == "create" else None
            through = PodApi(proxy.configuration, PROGRAMS)
            try:
                found = await network.find_out(through, settings(), image.BASH.reference)
            finally:
                await through.close()
        assert found == judge(control=True, outgoing=True, incoming=True), found.reason
        assert await left(pods) == []

    async def test_pods_that_the_namespace_does_not_allow_show_nothing(self, pods: PodApi) -> None:
        above = replace(settings(), priority_class="runtape-service")
        found = await network.look(pods, above, image.BASH.reference)
        assert found.verdict is Verdict.UNKNOWN and "no-higher-priority" in found.reason
        assert await left(pods) == []
