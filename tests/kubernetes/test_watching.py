"""What is known of pods is what the cluster has, whatever becomes of a watch."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from kubernetes_asyncio import client, config

from runtape.adapters.kubernetes import api as api_module
from runtape.adapters.kubernetes import watching
from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.watching import Pods
from tests.kubernetes.pods import SOON_S, a_pod
from tests.kubernetes.proxy import Break, Delay, Fate, HttpProxy, Refuse, http_proxy, no_fault, verb
from tests.rig.given import GivenKubernetes
from tests.rig.kubernetes.cluster import Kubernetes
from tests.rig.kubernetes.images import PYTHON

pytestmark = [
    pytest.mark.needs("kubernetes"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
SELECTOR = "test=watched"
EXPIRED = b'{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}\n'


@dataclass
class Watched:
    """Pods as they are known through a proxy, and a way to the cluster beside it."""

    proxy: HttpProxy
    pods: Pods
    known: set[str]
    core: client.CoreV1Api
    namespace: str
    changes: list[str] = field(default_factory=list)

    async def make(self, name: str) -> None:
        pod = a_pod(PYTHON.reference, ["python", "-c", "0"])
        pod["metadata"] = {"name": name, "labels": {"test": "watched"}}
        pod["spec"]["schedulerName"] = "nobody"  # it is not to change by itself
        await self.core.create_namespaced_pod(self.namespace, pod)

    async def remove(self, name: str) -> None:
        await self.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)

    async def until(self, holds: Callable[[], bool], within_s: float = SOON_S) -> None:
        async with asyncio.timeout(within_s):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_watching(self) -> None:
        await self.until(lambda: bool(self.proxy.watches) and self.pods.up_to_date)

    async def watch_anew(self) -> None:
        """Have another watch take the place of the one that there is."""
        old = self.proxy.watches[0]
        old.cut()
        await self.until(lambda: bool(self.proxy.watches) and old not in self.proxy.watches)
        await self.until_watching()


@pytest.fixture
async def watched(
    kubernetes: Kubernetes | GivenKubernetes, api: client.CoreV1Api, namespace: str
) -> AsyncIterator[Watched]:
    configuration = client.Configuration()
    await config.load_kube_config(str(kubernetes.kubeconfig), client_configuration=configuration)
    async with http_proxy(configuration) as proxy, contextlib.aclosing(_Closing(proxy, namespace)) as connection:
        known: set[str] = set()

        def on_change(name: str, pod: dict[str, Any] | None) -> None:
            (known.discard if pod is None else known.add)(name)

        pods = Pods(connection.api, SELECTOR, on_change)
        running = asyncio.create_task(pods.run())
        found = Watched(proxy, pods, known, api, namespace)
        try:
            await found.make("first")
            await found.until_watching()
            await found.until(lambda: known == {"first"})
            yield found
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


class _Closing:
    def __init__(self, proxy: HttpProxy, namespace: str) -> None:
        self.api = PodApi(proxy.configuration, namespace)

    async def aclose(self) -> None:
        await self.api.close()


async def test_changes_come_by_the_watch_alone(watched: Watched) -> None:
    lists = watched.proxy.lists
    await watched.make("second")
    await watched.until(lambda: watched.known == {"first", "second"}, within_s=5)
    await watched.remove("first")
    await watched.until(lambda: watched.known == {"second"}, within_s=5)
    assert watched.proxy.lists == lists


async def test_what_happened_while_a_watch_was_cut_is_found(watched: Watched) -> None:
    watch = watched.proxy.watches[0]
    watched.proxy.faults = lambda request: Refuse(500)
    watch.cut()
    await watched.until(lambda: not watched.pods.up_to_date)
    await watched.make("second")
    await watched.remove("first")
    watched.proxy.faults = no_fault
    await watched.until(lambda: watched.known == {"second"} and watched.pods.up_to_date)


async def test_a_watch_that_is_not_answered_is_asked_for_anew(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "TIMEOUT_S", 1.0)
    unanswered: list[Fate] = [Delay(60.0)]
    watched.proxy.faults = lambda request: unanswered.pop() if unanswered and verb(request) == "watch" else None
    watched.proxy.watches[0].cut()
    await watched.until(lambda: not unanswered)
    await watched.make("second")
    await watched.until(lambda: watched.known == {"first", "second"} and bool(watched.proxy.watches), within_s=15)


async def test_watches_that_end_at_once_are_begun_anew(watched: Watched) -> None:
    ends = [Break(0, told=True)] * 5
    watched.proxy.faults = lambda request: ends.pop() if ends and verb(request) == "watch" else None
    watched.proxy.watches[0].cut()
    await watched.until(lambda: not ends)
    await watched.make("second")
    await watched.until(lambda: watched.known == {"first", "second"}, within_s=15)


async def test_a_watch_that_ends_in_the_middle_of_a_line_as_if_that_was_all_is_begun_anew(watched: Watched) -> None:
    ends = [Break(200, told=True)] * 2
    watched.proxy.faults = lambda request: ends.pop() if ends and verb(request) == "watch" else None
    await watched.watch_anew()
    for name in ("second", "third"):
        await watched.make(name)
        await watched.until(lambda name=name: name in watched.known, within_s=15)
    assert not ends


async def test_a_watch_that_says_nothing_at_all_is_given_up(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "SILENCE_S", 1.0)
    await watched.watch_anew()  # with that patience
    watched.proxy.watches[0].silent = True
    await watched.make("second")
    await watched.until(lambda: watched.known == {"first", "second"}, within_s=15)


async def test_all_is_listed_again_from_time_to_time_although_the_watch_lives(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RELIST_S", 1.0)
    await watched.watch_anew()
    watched.proxy.watches[0].silent = True
    await watched.make("second")
    await watched.until(lambda: watched.known == {"first", "second"}, within_s=15)


async def test_a_version_that_is_too_old_is_listed_anew_at_once(watched: Watched) -> None:
    lists = watched.proxy.lists
    watch = watched.proxy.watches[0]
    await watch.say(EXPIRED)
    await watched.until(lambda: watched.proxy.lists > lists and watched.proxy.watches not in ([], [watch]))
    await watched.make("second")
    await watched.until(lambda: watched.known == {"first", "second"}, within_s=5)


async def test_a_watch_that_is_refused_as_too_old_is_listed_anew(watched: Watched) -> None:
    refused: list[str] = []

    def faults(request: web.Request) -> Refuse | None:
        if "watch" not in request.query or len(refused) >= 3:
            return None
        refused.append(request.query["resourceVersion"])
        return Refuse(410, "too old resource version")

    lists = watched.proxy.lists
    watched.proxy.faults = faults
    watched.proxy.watches[0].cut()
    await watched.until(lambda: len(refused) == 3 and bool(watched.proxy.watches))
    assert watched.proxy.lists >= lists + 3
    await watched.make("second")
    await watched.until(lambda: watched.known == {"first", "second"}, within_s=5)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_refusals_are_waited_out_with_growing_pauses(watched: Watched, status: int) -> None:
    asked: list[float] = []

    def faults(request: web.Request) -> Refuse:
        asked.append(time.monotonic())
        return Refuse(status, retry_after_s=1)

    watched.proxy.faults = faults
    watched.proxy.watches[0].cut()
    await watched.make("second")
    await watched.until(lambda: len(asked) >= 4)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses[-1] > 0.7
    assert not watched.pods.up_to_date
    watched.proxy.faults = no_fault
    await watched.until(lambda: watched.known == {"first", "second"} and watched.pods.up_to_date)


async def test_attachments_do_not_wait_for_one_another(watched: Watched) -> None:
    connection = PodApi(watched.proxy.configuration, watched.namespace)
    pool = connection._streams.rest_client.pool_manager  # pyright: ignore[reportPrivateUsage]
    assert pool.connector is not None
    assert pool.connector.limit == 0, "as many as there are programs"
    await connection.close()
