"""What a program may have at most is read from the cluster: its namespace's bounds and its nodes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from decimal import Decimal
from typing import Any

import pytest
from kubernetes_asyncio import client
from structlog.testing import capture_logs

from runtape.adapters.kubernetes import manifests, room
from runtape.adapters.kubernetes.connection import configuration
from runtape.adapters.kubernetes.manifests import RUNNER_MB, PodSettings
from runtape.adapters.kubernetes.quantities import quantity
from runtape.adapters.kubernetes.room import ClusterRooms, room_of
from runtape.domain.limits import Limits
from runtape.ports.room import Room
from tests.e2e.server import Client
from tests.kubernetes.plugin import CPU, PodCluster
from tests.kubernetes.pods import eventually
from tests.rig.kubernetes.cluster import Kubernetes

MIB = 1 << 20
ONE = {"cpu": Decimal("0.5"), "memory": Decimal(256 * MIB), "ephemeral-storage": Decimal(64 * MIB)}
on_a_cluster = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("0.5", "0.5"),
        ("500m", "0.5"),
        ("1e3", 1000),
        ("1E3", 1000),
        ("2E", 2 * 10**18),
        ("64Mi", 64 * MIB),
        ("64M", 64_000_000),
        ("3Gi", 3 << 30),
        ("100u", "0.0001"),
        ("129e6", 129_000_000),
        ("4k", 4000),
    ],
)
def test_a_quantity_is_read_as_kubernetes_writes_it(text: str, value: Any) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "Mi", "1 Gi", "12KB", "one", "1mi"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


def quota(**hard: str) -> dict[str, Any]:
    return {"spec": {"hard": {name.replace("_", "."): value for name, value in hard.items()}}}


def limit_range(**most: str) -> dict[str, Any]:
    return {
        "spec": {
            "limits": [{"type": "Container", "max": most}, {"type": "PersistentVolumeClaim", "max": {"cpu": "1m"}}]
        }
    }


def node(ready: bool = True, unschedulable: bool = False, **allocatable: str) -> dict[str, Any]:
    room = {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "100Gi", "pods": "110"} | allocatable
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {"spec": {"unschedulable": unschedulable}, "status": {"allocatable": room, "conditions": conditions}}


def test_where_nothing_bounds_programs_nothing_is_told() -> None:
    assert room_of(ONE, [], [], None) == Room()


def test_each_bound_counts_and_the_least_is_told() -> None:
    whole = room_of(ONE, [], [], [node()])
    assert whole == Room(cpu=4.0, memory_mb=8192 - RUNNER_MB, disk_mb=100 << 10, programs=8)
    assert room_of(ONE, [], [limit_range(cpu="2", memory="1Gi")], [node()]) == Room(
        cpu=2.0, memory_mb=1024 - RUNNER_MB, disk_mb=100 << 10, programs=8
    )
    assert room_of(ONE, [quota(limits_cpu="3", pods="50")], [], [node()]).cpu == 3.0
    assert room_of(ONE, [quota(limits_cpu="3", pods="50")], [], [node()]).programs == 6
    assert room_of(ONE, [quota(pods="5")], [], [node()]).programs == 5
    assert room_of(ONE, [quota(requests_memory="600Mi")], [], [node()]).programs == 2


def test_nodes_add_up_for_programs_and_not_for_one() -> None:
    found = room_of(ONE, [], [], [node(), node(cpu="8", pods="10")])
    assert (found.cpu, found.programs) == (8.0, 8 + 10)


def test_nodes_that_take_no_pods_do_not_count() -> None:
    assert room_of(ONE, [], [], [node(), node(ready=False), node(unschedulable=True)]).programs == 8
    nothing = room_of(ONE, [], [], [node(ready=False)])
    assert (nothing.cpu, nothing.memory_mb, nothing.programs) == (0.0, 0, 0)


def test_a_quota_for_some_pods_alone_does_not_count() -> None:
    scoped = quota(pods="0")
    scoped["spec"]["scopeSelector"] = {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Exists"}]}
    assert room_of(ONE, [scoped], [], [node()]).programs == 8


class TestOnACluster:
    """The rig's, of one node."""

    pytestmark = on_a_cluster

    @pytest.fixture
    async def rooms(self, kubernetes: Kubernetes, namespace: str) -> AsyncIterator[ClusterRooms]:
        settings = PodSettings(namespace=namespace, cpu="500m")
        rooms = ClusterRooms(await configuration(kubernetes.kubeconfig), settings, Limits(memory_mb=256))
        yield rooms
        await rooms.close()

    async def test_it_is_that_of_the_node_then_that_of_the_limit_range_and_the_quota(
        self, rooms: ClusterRooms, api: client.CoreV1Api, namespace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (there,) = (await api.list_node()).items
        whole = await rooms.room()
        assert whole is not None and whole.cpu == float(quantity(there.status.allocatable["cpu"]))
        assert whole.memory_mb == quantity(there.status.allocatable["memory"]) // MIB - RUNNER_MB
        limits: Any = {"metadata": {"name": "l"}, "spec": limit_range(cpu="1", memory="1Gi")["spec"]}
        limits["spec"]["limits"].pop()
        await api.create_namespaced_limit_range(namespace, limits)
        hard: Any = {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "3", "limits.memory": "512Mi"}}}
        await api.create_namespaced_resource_quota(namespace, hard)
        assert await rooms.room() == whole, "it is told on for a while"
        monkeypatch.setattr(rooms, "_due_s", 0.0)
        bounded = await rooms.room()
        assert bounded == Room(cpu=1.0, memory_mb=512 - RUNNER_MB, disk_mb=whole.disk_mb, programs=1)
        settings = PodSettings(namespace=namespace, cpu="1")
        pod: Any = manifests.pod("none", settings, "none", Limits(memory_mb=512 - RUNNER_MB), {}, "")
        await api.create_namespaced_pod(namespace, pod, dry_run="All")
        pod = manifests.pod("none", settings, "none", Limits(memory_mb=512 - RUNNER_MB + 1), {}, "")
        with pytest.raises(client.ApiException, match="exceeded quota"):
            await api.create_namespaced_pod(namespace, pod, dry_run="All")

    async def test_what_was_known_is_told_on_while_the_api_is_gone(
        self, rooms: ClusterRooms, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = await rooms.room()
        assert known is not None
        monkeypatch.setattr(rooms, "_due_s", 0.0)
        kubernetes.api_server.kill()
        try:
            with capture_logs() as logs:
                assert await asyncio.gather(*(rooms.room() for _ in range(5))) == [known] * 5
        finally:
            kubernetes.api_server.start()
        assert [line["event"] for line in logs] == ["room.unknown"]

    async def test_who_may_not_see_nodes_knows_the_namespace(
        self, rooms: ClusterRooms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def refused() -> None:
            return None

        monkeypatch.setattr(rooms, "_nodes", refused)
        assert await rooms.room() == Room()


async def test_what_never_answered_is_unknown_and_not_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ANSWER_S", 0.5)
    nowhere = client.Configuration()
    nowhere.host = "http://127.0.0.1:1"
    rooms = ClusterRooms(nowhere, PodSettings(namespace="none"), Limits())
    try:
        with capture_logs() as logs:
            assert [await rooms.room(), await rooms.room()] == [None, None]
    finally:
        await rooms.close()
    assert len(logs) == 1


@pytest.mark.needs("kubernetes", "own", "kafka", "mongo", "redis", "registry")
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_every_process_of_the_api_tells_what_its_cluster_has(podded: PodCluster) -> None:
    settings = PodSettings(namespace=podded.namespace, cpu=CPU)
    rooms = ClusterRooms(await configuration(podded.kubeconfig), settings, Limits())
    try:
        there = await rooms.room()
    finally:
        await rooms.close()
    assert there is not None and there.cpu and there.memory_mb and there.disk_mb and there.programs
    for process in podded.apis:
        async with podded.client_of(process) as http:

            async def told(http: Client = http) -> Any:  # not while the API of Kubernetes is slow to answer
                answer = await http.get("/k8s-limits")
                return answer.json()["cluster"]

            assert await eventually(told) == asdict(there)
