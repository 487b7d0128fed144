"""The API of Kubernetes is away for longer than any start is tried: runs are late then, and none fails for it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes_asyncio import client

from runtape.adapters.kubernetes import attempt, runtime
from runtape.adapters.kubernetes.runtime import Image
from runtape.application import retrying, running
from runtape.domain.ids import ExecutionId
from tests.application.world import ALICE
from tests.contract.embedded.basic import quick_place
from tests.kubernetes.mortal import Living, Place, reasons
from tests.kubernetes.proxy import Faults, HttpProxy, Lose, Refuse, connection_proxy, http_proxy, no_fault, verb
from tests.kubernetes.waiting import reached
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
TRIES = 3
LEASE_S = 4
OUTAGE_S = 10.0
"""Longer than three attempts would be tried for here, of `TRIES` each, and than two leases."""
START_S = 3.0
AT_ONCE_S = 5.0
HELLO = "echo hello"


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "START_TRIES", TRIES)
    monkeypatch.setattr(running, "LEASE_TTL", timedelta(seconds=LEASE_S))
    monkeypatch.setattr(running, "TIDY_INTERVAL_S", 1.0)
    monkeypatch.setattr(retrying, "LONGEST_PAUSE_S", 0.5)


@pytest.fixture
async def proxy(kubernetes: Kubernetes) -> AsyncIterator[HttpProxy]:
    async with http_proxy(await reached(kubernetes.kubeconfig)) as proxy:
        yield proxy


@pytest.fixture
async def place(
    kubernetes: Kubernetes, api: client.CoreV1Api, namespace: str, folder: Path, bash: Image
) -> AsyncIterator[Place]:
    yield Place(await reached(kubernetes.kubeconfig), api, namespace, folder, bash)


def away(proxy: HttpProxy, faults: Faults) -> None:
    """Let the API be away from now on."""
    proxy.faults = faults
    for watch in [*proxy.watches]:
        watch.cut()


async def all_run(living: Living, runs: list[ExecutionId]) -> None:
    """Return once all have run in their first attempts, and no pod is left."""
    for each in runs:
        execution = await living.until_stored(each)
        assert execution.status == "completed", (execution.outcome, reasons(execution))
        assert execution.attempt == 1, reasons(execution)
        assert await living.world.printed(execution.id) == b"hello\n"
    await living.place.until_no_pods()


OUTAGES: dict[str, Faults] = {
    "refused": lambda _: Refuse(503),
    "answers lost": lambda _: Lose(),
    "no new pods": lambda request: Refuse(500) if verb(request) == "create" else None,
}


@pytest.mark.parametrize("name", OUTAGES)
async def test_runs_that_come_while_the_api_is_away_wait_for_it(place: Place, proxy: HttpProxy, name: str) -> None:
    async with place.worker(configuration=proxy.configuration) as living:
        away(proxy, OUTAGES[name])
        runs = [await living.submit(HELLO) for _ in range(3)]
        await asyncio.sleep(OUTAGE_S)
        assert {(await living.world.get(each)).attempt for each in runs} == {1}
        away(proxy, no_fault)
        await all_run(living, runs)


async def test_runs_that_come_while_nothing_listens_wait_for_it(place: Place) -> None:
    async with (
        connection_proxy(place.configuration) as proxy,
        place.worker(configuration=proxy.configuration) as living,
    ):
        proxy.shut.set()
        runs = [await living.submit(HELLO) for _ in range(3)]
        await asyncio.sleep(OUTAGE_S)
        proxy.shut.clear()
        await all_run(living, runs)


async def test_a_run_that_waits_for_the_api_is_cancelled_at_once(place: Place, proxy: HttpProxy) -> None:
    async with place.worker(configuration=proxy.configuration) as living:
        away(proxy, lambda _: Lose())
        execution_id = await living.submit(HELLO)
        await place.until(lambda: _has_asked(proxy, "list", 10))
        await living.world.submissions.cancel(ALICE, execution_id, None)
        assert (await living.until_stored(execution_id, AT_ONCE_S)).status == "cancelled"
        away(proxy, no_fault)
        await place.until_no_pods()  # its pod was made, and the answer lost


async def _has_asked(proxy: HttpProxy, wanted: str, times: int) -> bool:
    return sum(each.verb == wanted for each in proxy.asked) >= times


async def test_that_nobody_sees_a_pod_begin_is_not_that_it_does_not(
    place: Place, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "START_S", START_S)
    async with place.worker(configuration=proxy.configuration) as living:
        made = asyncio.Event()

        def after_the_first(request: web.Request) -> Refuse | None:
            if made.is_set():
                return Refuse(503)
            if verb(request) == "create":
                made.set()
            return None

        away(proxy, after_the_first)
        execution_id = await living.submit(HELLO)
        await made.wait()
        for watch in [*proxy.watches]:
            watch.cut()
        await asyncio.sleep(3 * START_S)
        away(proxy, no_fault)
        await all_run(living, [execution_id])


async def test_a_runner_that_nobody_reached_while_the_api_was_away_has_its_time_again(
    place: Place, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "HAND_OVER_S", START_S)
    async with place.worker(configuration=proxy.configuration) as living:
        proxy.faults = lambda request: Refuse(503) if verb(request) in ("attach", "get") else None
        execution_id = await living.submit(HELLO)
        await place.until(lambda: _has_asked(proxy, "attach", 1))
        await asyncio.sleep(3 * START_S)
        left = [Refuse(503)] * 2
        # The way to the nodes comes back last.
        proxy.faults = lambda request: left.pop() if left and verb(request) == "attach" else None
        await all_run(living, [execution_id])
