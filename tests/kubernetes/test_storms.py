"""The API server refuses, loses, cuts and delays while runs go on: none fails for it, nothing is lost, no pod is left.

Between the workers and the API server stands a proxy, and the storm is one of all of them at once: of the requests for
which a case is made every second one fails, each verb counted by itself, over `STORM_S`.
"""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes_asyncio import client

from runtape.application.starting import TELL_INTERVAL_S
from runtape.runtime.roles import Role
from tests.cluster.plugin import running
from tests.cluster.survival import survived
from tests.e2e.server import Client
from tests.kubernetes.plugin import PodCluster
from tests.kubernetes.pods import connected
from tests.kubernetes.proxy import (
    Break,
    Delay,
    Fate,
    Faults,
    HttpProxy,
    Lose,
    Refuse,
    http_proxy_beside,
    no_fault,
    verb,
)
from tests.kubernetes.survival import IS_WARM, LOOK_S, script, until_none_is_left
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "kafka", "mongo", "redis", "registry", "alone", "own"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

RUNS = 24
RUNNING = 6
STARTED = "execution_started"
OVER_S = 6.0
BEFORE_S = 0.5
STORM_S = 6.0
WITHIN_S = 45.0
"""So long after the storm and the last submission every run has ended."""
OUTAGE_S = 60.0
"""Longer than three attempts would have tried for, of 16 s each."""
BEGUN_S = 3.0
"""So long before the outage runs are submitted, and so long into it."""
WARM_MOST = 3
REQUESTS_MOST = 120
"""In any second, of two workers and two monitors with four new runs; who asks without a pause asks a thousand times."""

ASKED = frozenset({"create", "list", "watch", "attach"})
"""What is asked for in every storm, however slow the machine is."""
EVERY = ASKED | {"update", "patch", "delete", "get"}
WRITES = frozenset({"create", "update", "patch", "delete"})


class EverySecond:
    """Faults of every second request of each of `verbs`; `fates` take turns."""

    def __init__(self, verbs: Collection[str], *fates: Fate) -> None:
        self._verbs = verbs
        self._fates = fates
        self._asked: Counter[str] = Counter()

    def __call__(self, request: web.Request) -> Fate | None:
        asked = verb(request)
        if asked not in self._verbs:
            return None
        self._asked[asked] += 1
        return self._fates[self._asked[asked] // 2 % len(self._fates)] if self._asked[asked] % 2 else None


def conflicting() -> Faults:
    """Return faults that say of every second write that it meets another, though it does not."""
    exists = EverySecond({"create"}, Refuse(409, "pods already exists", "AlreadyExists"))
    changed = EverySecond(WRITES - {"create"}, Refuse(409, "the object has been modified", "Conflict"))
    return lambda request: exists(request) or changed(request)


@dataclass(frozen=True)
class Storm:
    """Faults, and the requests that surely meet some."""

    faults: Faults
    meets: frozenset[str] = ASKED


STORMS = {
    "429": Storm(EverySecond(EVERY, Refuse(429, retry_after_s=1))),
    "500 and 503": Storm(EverySecond(EVERY, Refuse(500), Refuse(503))),
    "409": Storm(conflicting(), frozenset({"create", "update"})),
    "answers lost": Storm(EverySecond(EVERY, Lose())),
    "answers cut": Storm(EverySecond(EVERY, Break(150), Break(3000, told=True), Break(1))),
    "answers late": Storm(lambda _: Delay(2.0)),
    "all refused": Storm(lambda _: Refuse(503), frozenset({"create", "list"})),
}


@pytest.fixture(scope="module")
def proxy(kubernetes: Kubernetes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HttpProxy, Path]]:
    """A proxy in front of the API server, and the file that names it."""
    file = tmp_path_factory.mktemp("proxy") / "kubeconfig"
    with http_proxy_beside(kubernetes.kubeconfig, file) as proxy:
        yield proxy, file


@pytest.fixture(scope="module")
def stormy(
    kubernetes: Kubernetes, proxy: tuple[HttpProxy, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PodCluster]:
    """A cluster whose workers reach Kubernetes through the proxy."""
    sizes = json.dumps({"python:3.11": {"least": 2, "most": WARM_MOST}})
    folder = tmp_path_factory.mktemp("stormy")
    reached = str(proxy[1])
    cluster = PodCluster(
        folder, kubernetes, apis=1, running=RUNNING, kubernetes__kubeconfig=reached, kubernetes__warm__sizes=sizes
    )
    with running(cluster):
        yield cluster


@pytest.fixture
async def clients(stormy: PodCluster) -> AsyncIterator[list[Client]]:
    """The admin, at the process of the API."""
    clients = [stormy.client_of(process) for process in stormy.apis]
    yield clients
    for each in clients:
        await each.http.aclose()


@pytest.mark.parametrize("name", STORMS)
async def test_runs_outlive_a_storm(
    stormy: PodCluster, clients: list[Client], proxy: tuple[HttpProxy, Path], name: str
) -> None:
    way, storm = proxy[0], STORMS[name]
    way.asked.clear()
    lasted: list[float] = []

    def break_it() -> None:
        lasted.append(time.monotonic())
        way.faults = storm.faults
        way.cut_watches()

    def mend_it() -> None:
        way.faults = no_fault
        lasted.append(time.monotonic())

    async with connected(stormy.kubeconfig) as connection:
        api = client.CoreV1Api(connection)
        counting = asyncio.ensure_future(_most_warm(api, stormy.namespace))
        try:
            found = await survived(
                clients,
                name.replace(" ", "-"),
                break_it,
                mend_it,
                runs=RUNS,
                over_s=OVER_S,
                before_s=BEFORE_S,
                down_s=STORM_S,
                within_s=WITHIN_S,
                write=script,
            )
        finally:
            way.faults = no_fault
        ended_s = time.monotonic()
        await until_none_is_left(stormy)
        gone_s = time.monotonic()
        counting.cancel()
        warm = await counting
    for each in found:
        assert len({attempt for attempt, _ in each.records}) == 1, "a program that has begun goes on"
    asked = [each for each in way.asked if lasted[0] <= each.at_s < lasted[1]]
    failed = Counter(each.verb for each in asked if each.fate is not None)
    assert failed.keys() >= storm.meets, failed
    busiest = max(Counter(int(each.at_s - lasted[0]) for each in asked).values())
    attempts = Counter(max(attempt for attempt, _ in each.records) for each in found)
    print(
        f"{name}: {len(asked)} requests, {busiest} in a second, failed {dict(failed)}; runs by attempts "
        f"{dict(attempts)}, the last over {ended_s - lasted[1]:.1f} s after, no pod {gone_s - ended_s:.1f} s later; "
        f"{warm} warm pods at most"
    )
    assert busiest <= REQUESTS_MOST
    assert warm <= WARM_MOST


async def test_runs_outlive_an_outage_that_is_longer_than_any_start_is_tried(
    stormy: PodCluster, clients: list[Client], proxy: tuple[HttpProxy, Path]
) -> None:
    """Those that come meanwhile wait, and of those that had begun before a program may have lost its lease."""
    way = proxy[0]
    way.asked.clear()
    at_s: list[float] = []

    def told() -> list[int]:
        return [worker.log.read_text().count("pod.start_waits") for worker in stormy.workers[Role.K8S_WORKER]]

    told_before = told()

    def break_it() -> None:
        at_s.append(time.monotonic())
        way.faults = lambda _: Refuse(503)
        way.cut_watches()

    def mend_it() -> None:
        way.faults = no_fault
        at_s.append(time.monotonic())

    try:
        found = await survived(
            clients,
            "outage",
            break_it,
            mend_it,
            runs=RUNS,
            over_s=2 * BEGUN_S,
            before_s=BEGUN_S,
            down_s=OUTAGE_S,
            within_s=WITHIN_S,
            write=script,
        )
    finally:
        way.faults = no_fault
    ended_s = time.monotonic()
    await until_none_is_left(stormy)
    attempts = [max(attempt for attempt, _ in each.records) for each in found]
    refused = [each for each in way.asked if at_s[0] <= each.at_s < at_s[1]]
    busiest = max(Counter(int(each.at_s - at_s[0]) for each in refused).values())
    times = [now - before for now, before in zip(told(), told_before, strict=True)]
    print(
        f"outage of {at_s[1] - at_s[0]:.1f} s: {len(refused)} requests, {busiest} in a second; runs by attempts "
        f"{dict(Counter(attempts))}, the last over {ended_s - at_s[1]:.1f} s after; waiting told {times} times"
    )
    assert max(attempts) <= 2
    assert busiest <= REQUESTS_MOST
    assert 1 <= max(times) <= OUTAGE_S / TELL_INTERVAL_S + 2


async def test_workers_that_are_told_to_end_in_an_outage_give_back_what_waits(
    stormy: PodCluster, clients: list[Client], proxy: tuple[HttpProxy, Path]
) -> None:
    way, workers = proxy[0], stormy.workers[Role.K8S_WORKER]
    way.faults = lambda _: Refuse(503)
    way.cut_watches()
    try:
        runs = [await clients[0].execute("print('hello')") for _ in range(RUNNING)]
        await _until_all(clients[0], runs, lambda events: [each["event_type"] for each in events][-1:] == [STARTED])
        began_s = time.monotonic()
        for worker in workers:
            assert await asyncio.to_thread(worker.stop) == 0
        ended_s = time.monotonic() - began_s
        for each in runs:
            assert {"given_back"} == {event["reason"] for event in await _events(clients[0], each)} - {None}
    finally:
        way.faults = no_fault
        for worker in workers:
            worker.begin()
        for worker in workers:
            await asyncio.to_thread(worker.until_ready)
    await _until_all(clients[0], runs, lambda events: events[-1]["event_type"] == "result_stored")
    told = [await _events(clients[0], each) for each in runs]
    print(f"both ended after {ended_s:.1f} s; runs by attempts {dict(Counter(each[-1]['attempt'] for each in told))}")
    for each in told:
        assert each[-2]["event_type"] == "execution_completed"
        assert {event["reason"] for event in each if event["event_type"] == "execution_restarted"} == {"given_back"}
    await until_none_is_left(stormy)


async def _events(api: Client, execution_id: str) -> list[dict[str, Any]]:
    """Return what has happened to a run so far."""
    return (await api.get(f"/executions/{execution_id}/events")).json()["events"]


async def _until_all(api: Client, runs: Sequence[str], holds: Callable[[list[dict[str, Any]]], bool]) -> None:
    """Return once that holds of what has happened to each run."""
    async with asyncio.timeout(WITHIN_S):
        for each in runs:
            while not holds(await _events(api, each)):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)


async def _most_warm(api: client.CoreV1Api, namespace: str) -> int:
    """Return how many pods waited at most, once this is cancelled."""
    most = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            pods = (await api.list_namespaced_pod(namespace, label_selector=IS_WARM)).items
            there = [each for each in pods if each.metadata.deletion_timestamp is None]
            most = max(most, len(there))
            await asyncio.sleep(LOOK_S)
    return most
