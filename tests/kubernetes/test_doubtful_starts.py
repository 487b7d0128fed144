"""Starts of which the API says nothing, or what is not so: each program runs once, in a pod of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiohttp import web
from kubernetes_asyncio import client

from runtape.adapters.kubernetes import runtime, warm
from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.pools import PoolSize, WarmSettings
from runtape.adapters.kubernetes.runtime import Image, KubernetesPods
from runtape.application.retrying import persistently
from runtape.domain.outcome import OutcomeKind
from runtape.ports.errors import Transient, Unavailable
from runtape.ports.pod_runtime import PodStart
from tests.kubernetes.pods import SOON_S, eventually
from tests.kubernetes.proxy import Delay, Fate, Faults, HttpProxy, Lose, Refuse, http_proxy, no_fault, verb
from tests.kubernetes.waiting import ended, kept, names, of, reached, runs, soon, spec, until_waiting
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
LASTING = "echo begun; sleep 3; echo ended"


@pytest.fixture
async def settings(api: client.CoreV1Api, namespace: str) -> AsyncIterator[PodSettings]:
    yield PodSettings(namespace=namespace, pull_policy="Never", cpu="75m")
    await api.delete_collection_namespaced_pod(namespace, grace_period_seconds=0)


@pytest.fixture
async def proxy(kubernetes: Kubernetes) -> AsyncIterator[HttpProxy]:
    async with http_proxy(await reached(kubernetes.kubeconfig)) as proxy:
        yield proxy


def first(count: int, wanted: str, fate: Fate) -> Faults:
    """Return faults of the first `count` requests of a verb."""
    left = [fate] * count

    def faults(request: web.Request) -> Fate | None:
        return left.pop() if left and verb(request) == wanted else None

    return faults


async def test_the_end_of_a_pod_that_an_earlier_start_has_made_is_not_that_of_the_next(
    api: client.CoreV1Api, proxy: HttpProxy, settings: PodSettings, bash: Image
) -> None:
    """Both pods have the same name, and the watch tells of the first one's end when there is the second one."""
    lost, undeleted = first(1, "create", Lose()), True

    def faults(request: web.Request) -> Fate | None:
        return Refuse(500) if undeleted and verb(request) == "delete" else lost(request)

    proxy.faults = faults
    async with KubernetesPods(proxy.configuration, settings, [bash], "worker") as pods:
        with pytest.raises(Transient):
            await pods.start(spec("e", LASTING), 1, soon())
        await eventually(lambda: names(api, settings.namespace, of("e")))
        await eventually(lambda: _is_seen(pods))
        [watch] = proxy.watches
        watch.held, undeleted = True, False
        starting = asyncio.ensure_future(pods.start(spec("e", LASTING), 1, soon()))
        await eventually(lambda: _are_made(proxy, 2))
        watch.held = False
        await starting
        printed, end = await ended(pods, "e")
        assert (printed, end.outcome.exit_code) == (b"begun\nended\n", 0)


async def _is_seen(pods: KubernetesPods) -> bool:
    return pods._pods["exec-e-1"] is not None


async def _are_made(proxy: HttpProxy, count: int) -> bool:
    return sum(each.verb == "create" for each in proxy.asked) == count


async def test_a_pod_is_not_deleted_in_place_of_the_one_that_an_earlier_start_has_made(
    api: client.CoreV1Api, proxy: HttpProxy, settings: PodSettings, bash: Image
) -> None:
    lost, late = first(1, "create", Lose()), first(1, "delete", Delay(1.5, on_its_way=True))
    proxy.faults = lambda request: lost(request) or late(request)
    async with KubernetesPods(proxy.configuration, settings, [bash], "worker") as pods:
        await persistently(lambda: pods.start(spec("e", LASTING), 1, soon()), "pod.start")
        printed, end = await ended(pods, "e")
        assert (printed, end.outcome.exit_code) == (b"begun\nended\n", 0)
        assert not await names(api, settings.namespace, of("e"))


async def test_a_conflict_that_is_none_is_tried_again(proxy: HttpProxy, settings: PodSettings, bash: Image) -> None:
    proxy.faults = first(2, "create", Refuse(409, "pods already exists", "AlreadyExists"))
    async with KubernetesPods(proxy.configuration, settings, [bash], "worker") as pods:
        await persistently(lambda: pods.start(spec("e"), 1, soon()), "pod.start")
        assert (await ended(pods, "e"))[0] == b"hello\n"


async def test_a_pod_that_is_forbidden_for_a_moment_runs(
    proxy: HttpProxy, settings: PodSettings, bash: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "QUOTA_S", 0.1)
    proxy.faults = first(2, "create", Refuse(403, "clusterrole not found", "Forbidden"))
    async with KubernetesPods(proxy.configuration, settings, [bash], "worker") as pods:
        await runs(pods, "e")


async def test_a_pod_that_stays_forbidden_says_so(
    proxy: HttpProxy, settings: PodSettings, bash: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "QUOTA_S", 0.1)
    monkeypatch.setattr(runtime, "FORBIDDEN_S", 0.5)
    proxy.faults = lambda request: Refuse(403, "not yours", "Forbidden") if verb(request) == "create" else None
    async with KubernetesPods(proxy.configuration, settings, [bash], "worker") as pods:
        await pods.start(spec("e"), 1, soon())
        outcome = (await ended(pods, "e"))[1].outcome
        assert (outcome.kind, outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "pod_refused")


async def test_a_pod_that_cannot_begin_is_told_however_often_the_watch_is_cut(
    proxy: HttpProxy, settings: PodSettings, bash: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a load balancer that gives a silent connection less time than a pod has to begin."""
    monkeypatch.setattr(runtime, "START_S", 4.0)

    async def cut() -> None:
        while True:
            await asyncio.sleep(1.0)
            for watch in [*proxy.watches]:
                watch.cut()

    async with KubernetesPods(proxy.configuration, replace(settings, cpu="1000"), [bash], "worker") as pods:
        cutting = asyncio.create_task(cut())
        try:
            async with asyncio.timeout(SOON_S):
                await pods.start(spec("e"), 1, soon())
            outcome = (await ended(pods, "e"))[1].outcome
        finally:
            cutting.cancel()
        assert outcome.reason == "unschedulable"


async def test_rights_that_are_lacking_are_named_with_the_fix(
    proxy: HttpProxy, settings: PodSettings, bash: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "QUOTA_S", 0.1)
    monkeypatch.setattr(runtime, "FORBIDDEN_S", 0.5)
    words = 'pods is forbidden: User "worker" cannot create resource "pods" in API group "" in the namespace "programs"'
    proxy.faults = lambda request: Refuse(403, words, "Forbidden") if verb(request) == "create" else None
    async with KubernetesPods(proxy.configuration, settings, [bash], "worker") as pods:
        await pods.start(spec("e"), 1, soon())
        outcome = (await ended(pods, "e"))[1].outcome
        assert outcome.message is not None and words in outcome.message
        assert "role k8s-worker of deploy/kubernetes/base/access.yaml" in outcome.message


@pytest.mark.parametrize("status", [401, 404, 429, 500, 502, 503, 504])
async def test_what_the_api_says_of_itself_is_not_said_of_the_pod(
    proxy: HttpProxy, settings: PodSettings, status: int
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        api = PodApi(proxy.configuration, settings.namespace)
        stack.push_async_callback(api.close)
        proxy.faults = lambda _: Refuse(status)
        with pytest.raises(Unavailable):
            await api.read("none")


async def test_that_there_is_no_such_page_says_nothing_of_a_pod(proxy: HttpProxy, settings: PodSettings) -> None:
    async with contextlib.AsyncExitStack() as stack:
        api = PodApi(proxy.configuration, settings.namespace)
        stack.push_async_callback(api.close)
        assert await api.read("none") is None
        proxy.faults = lambda _: Refuse(404, "404 page not found")
        with pytest.raises(Transient):
            await api.read("none")


async def test_a_warm_pod_whose_claim_was_refused_is_claimed_when_the_api_is_well_again(
    proxy: HttpProxy, settings: PodSettings, bash: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "TRIED_S", 0.0)
    wanted = WarmSettings(size=PoolSize(1, 1))
    async with kept(proxy.configuration, settings, bash, wanted) as keeper:
        await until_waiting(keeper, 1)
    async with KubernetesPods(proxy.configuration, settings, [bash], "worker", wanted) as pods:
        await until_waiting(pods, 1)
        proxy.faults = lambda request: Refuse(503) if verb(request) == "patch" else None
        with pytest.raises(Transient):
            await pods.start(spec("e"), 1, soon())
        proxy.faults = no_fault
        assert await runs(pods, "e") is PodStart.WARM


async def test_a_warm_pod_that_cannot_be_attached_to_for_a_moment_is_used_all_the_same(
    proxy: HttpProxy, settings: PodSettings, bash: Image
) -> None:
    wanted = WarmSettings(size=PoolSize(1, 1))
    async with kept(proxy.configuration, settings, bash, wanted) as keeper:
        await until_waiting(keeper, 1)
    async with KubernetesPods(proxy.configuration, settings, [bash], "worker", wanted) as pods:
        await until_waiting(pods, 1)
        proxy.faults = first(2, "attach", Refuse(503))
        assert await runs(pods, "e") is PodStart.WARM


async def test_how_long_the_api_wants_to_be_left_alone_is_told_to_who_asks_again(
    proxy: HttpProxy, settings: PodSettings
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        api = PodApi(proxy.configuration, settings.namespace)
        stack.push_async_callback(api.close)
        proxy.faults = lambda _: Refuse(429, retry_after_s=7)
        pauses: set[float] = set()
        for _ in range(5):
            with pytest.raises(Transient) as refused:
                await api.list("")
            assert refused.value.retry_after_s is not None
            pauses.add(refused.value.retry_after_s)
        assert len(pauses) == 5, "not everybody comes again at the same moment"
        assert all(7 <= each <= 10.5 for each in pauses)
        proxy.faults = lambda _: Refuse(429, retry_after_s=3600)
        with pytest.raises(Transient) as refused:
            await api.list("")
        assert refused.value.retry_after_s is not None and 30 <= refused.value.retry_after_s <= 45
