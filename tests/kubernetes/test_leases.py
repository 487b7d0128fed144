"""Partitions are shared by Lease objects: never held by two, by nobody for no longer than a lease lasts."""

import asyncio
import contextlib
import copy
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from kubernetes_asyncio import client, config

from runtape.adapters.kubernetes import leases
from runtape.adapters.kubernetes.api import Changed, Exists, Forbidden, Missing
from runtape.adapters.kubernetes.leases import LeaseApi, Leases, Partitions
from runtape.ports.errors import Unavailable
from tests.rig.given import GivenKubernetes
from tests.rig.kubernetes.cluster import Kubernetes

PARTITIONS = 4
LASTS_S = 2
SOON_S = 30.0
GROUP = "monitor"


class InMemory:
    """Lease objects with their versions, as the API server keeps them."""

    def __init__(self) -> None:
        self._leases: dict[str, dict[str, Any]] = {}
        self._version = 0

    async def list(self, group: str) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        return copy.deepcopy([*self._leases.values()])

    async def create(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        if lease["metadata"]["name"] in self._leases:
            raise Exists("it is there")
        return self._store(lease)

    async def replace(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        self._expect(lease)
        return self._store(lease)

    async def delete(self, lease: Mapping[str, Any]) -> None:
        await asyncio.sleep(0)
        self._expect(lease)
        del self._leases[lease["metadata"]["name"]]

    def _expect(self, lease: Mapping[str, Any]) -> None:
        name = lease["metadata"]["name"]
        if name not in self._leases:
            raise Missing(name)
        if self._leases[name]["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"]:
            raise Changed(name)

    def _store(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        self._version += 1
        metadata = {**lease["metadata"], "resourceVersion": str(self._version)}
        self._leases[metadata["name"]] = copy.deepcopy({**lease, "metadata": metadata})
        return copy.deepcopy(self._leases[metadata["name"]])


class Cuttable:
    """A process's way to the API, which can be cut; what it was asked meanwhile was not done."""

    def __init__(self, inner: LeaseApi) -> None:
        self._inner = inner
        self.trouble: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            if self.trouble is not None:
                raise self.trouble
            return await getattr(self._inner, name)(*arguments)

        return call


@dataclass
class Process:
    """One that shares in the work."""

    me: str
    way: Cuttable
    partitions: Partitions
    task: asyncio.Task[None]


@dataclass
class Shared:
    """Processes over one API, and who does which partition's work."""

    api: LeaseApi
    doing: dict[int, set[str]] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    def begin(self, me: str) -> Process:
        way: Any = Cuttable(self.api)
        partitions = Partitions(way, GROUP, PARTITIONS, me)

        async def work(number: int) -> None:
            doing = self.doing.setdefault(number, set())
            doing.add(me)
            assert doing == {me}, f"partition {number} is held by {doing}"
            try:
                await asyncio.Event().wait()
            finally:
                doing.discard(me)

        process = Process(me, way, partitions, asyncio.create_task(partitions.run(work)))
        self.processes.append(process)
        return process

    def held(self) -> list[int]:
        """How many partitions each process holds."""
        return [len(process.partitions.held) for process in self.processes]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not holds():
                assert all(len(doing) <= 1 for doing in self.doing.values()), self.doing
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def shared(api: LeaseApi) -> AsyncIterator[Shared]:
    all_of_them = Shared(api)
    try:
        yield all_of_them
    finally:
        for process in all_of_them.processes:
            process.task.cancel()
        await asyncio.gather(*(process.task for process in all_of_them.processes), return_exceptions=True)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", LASTS_S)
    monkeypatch.setattr(leases, "RENEWED_S", 1.2)
    monkeypatch.setattr(leases, "TURN_S", 0.1)


async def test_processes_come_to_equal_shares_and_a_leaving_one_hands_its_own_on_at_once() -> None:
    async with shared(InMemory()) as work:
        first = work.begin("a")
        await work.until(lambda: work.held() == [4])
        work.begin("b")
        await work.until(lambda: work.held() == [2, 2])
        work.begin("c")
        await work.until(lambda: sorted(work.held()) == [1, 1, 2])
        first.task.cancel()
        async with asyncio.timeout(LASTS_S / 2):  # sooner than a lease is over
            await work.until(lambda: work.held() == [0, 2, 2])


@pytest.mark.parametrize("trouble", [Unavailable("the network is gone"), Forbidden("its rights are gone")])
async def test_what_a_process_held_that_is_cut_off_is_taken_when_its_lease_is_over_and_not_held_by_two(
    trouble: Exception,
) -> None:
    loop = asyncio.get_running_loop()
    async with shared(InMemory()) as work:
        lost = work.begin("a")
        work.begin("b")
        await work.until(lambda: work.held() == [2, 2])
        lost.way.trouble = trouble
        cut_at = loop.time()
        await work.until(lambda: not lost.partitions.held)
        assert loop.time() - cut_at < LASTS_S, "it has stopped before anybody else can begin"
        await work.until(lambda: work.held() == [0, 4])
        assert loop.time() - cut_at < LASTS_S + 1
        lost.way.trouble = None
        await work.until(lambda: work.held() == [2, 2])


async def test_times_of_a_lease_count_for_nothing_as_clocks_differ() -> None:
    api = InMemory()
    long_ago = {"holderIdentity": "other", "leaseDurationSeconds": LASTS_S, "renewTime": "1999-01-01T00:00:00.000000Z"}
    other = await api.create({"metadata": {"name": f"{GROUP}-0"}, "spec": long_ago})
    await api.create({"metadata": {"name": f"{GROUP}-1"}, "spec": {**long_ago, "renewTime": "2999-01-01T00:00:00Z"}})
    async with shared(api) as work:
        work.begin("a")
        await work.until(lambda: work.held() == [2])
        for number in range(LASTS_S * 6):
            await asyncio.sleep(0.25)
            other["spec"]["renewTime"] = f"1999-01-01T00:00:{number:02}.000000Z"
            other = await api.replace(other)
            assert 0 not in work.processes[0].partitions.held
        assert 1 in work.processes[0].partitions.held
        await work.until(lambda: work.held() == [4])


async def test_work_that_fails_is_begun_again() -> None:
    begun: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        raise RuntimeError("broken")

    task = asyncio.create_task(Partitions(InMemory(), GROUP, 1, "a").run(work))
    async with asyncio.timeout(SOON_S):
        while len(begun) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_work_that_takes_a_while_to_stop_is_begun_again_although_its_lease_could_be_renewed_meanwhile() -> None:
    way: Any = Cuttable(InMemory())
    begun: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        try:
            await asyncio.Event().wait()
        finally:
            way.trouble = None
            await asyncio.sleep(0.5)

    task = asyncio.create_task(Partitions(way, GROUP, 1, "a").run(work))
    async with asyncio.timeout(SOON_S):
        for count in (1, 2):
            while len(begun) < count:
                assert not task.done(), task
                await asyncio.sleep(0.01)
            way.trouble = Unavailable("the network is gone") if count == 1 else None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_members_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "FORGOTTEN_S", 0.5)
    api = InMemory()
    await api.create({"metadata": {"name": f"{GROUP}-member-old"}, "spec": {"holderIdentity": "old"}})

    async def names() -> set[str]:
        return {lease["metadata"]["name"] for lease in await api.list(GROUP)}

    async with shared(api) as work:
        work.begin("a")
        await work.until(lambda: work.held() == [PARTITIONS])
        await _eventually(lambda: _lacks(names, f"{GROUP}-member-old"))
        assert f"{GROUP}-member-a" in await names()
    assert await names() == {f"{GROUP}-{number}" for number in range(PARTITIONS)}


async def _lacks(names: Callable[[], Awaitable[set[str]]], name: str) -> bool:
    return name not in await names()


async def _eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SOON_S):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.needs("kubernetes")
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_lease_objects_of_a_real_cluster_are_shared_handed_on_and_inherited(
    kubernetes: Kubernetes | GivenKubernetes, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TURN_S", 0.3)
    configuration = client.Configuration()
    await config.load_kube_config(str(kubernetes.kubeconfig), client_configuration=configuration)
    async with contextlib.AsyncExitStack() as connections:

        def connect() -> Leases:
            api = Leases(configuration, namespace)
            connections.push_async_callback(api.close)
            return api

        async with shared(connect()) as work:
            suffix = os.urandom(3).hex()
            for name in "abc":
                work.begin(f"{name}-{suffix}")
            await work.until(lambda: sorted(work.held()) == [1, 1, 2])
            work.processes[0].way.trouble = Unavailable("the network is gone")
            await work.until(lambda: work.held() == [0, 2, 2])
            work.processes[1].task.cancel()
            await work.until(lambda: work.held() == [0, 0, 4])
        left = await connect().list(GROUP)
        named = {lease["metadata"]["name"]: lease["spec"].get("holderIdentity") for lease in left}
        assert named.pop(f"{GROUP}-member-a-{suffix}") == f"a-{suffix}", "it could not say goodbye"
        assert named == {f"{GROUP}-{number}": None for number in range(PARTITIONS)}
