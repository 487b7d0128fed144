"""Pools of warm pods are kept filled: as the load asks, from what there is, and no faster than pods can start."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from kubernetes_asyncio import client

from runtape.adapters.kubernetes.keeping import LOOK_AGAIN_S, MAKING_MOST, REFILL_S, target
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.pools import PoolSize, WarmSettings
from runtape.adapters.kubernetes.runtime import Image
from runtape.ports.pod_runtime import PodStart
from tests.kubernetes.pods import eventually
from tests.kubernetes.waiting import kept, names, reached, runs, until_waiting, waiting, warm_ones
from tests.rig.kubernetes.cluster import Kubernetes

SIZE = PoolSize(least=2, most=10)


@pytest.mark.parametrize(
    ("taken_s", "wanted"),
    [
        ([], 2),
        ([0.0], 2),
        ([0.0, 0.0, 0.0], 3),
        ([0.0, 1.0, REFILL_S, REFILL_S + 1], 2),
        ([0.0, 1.0, REFILL_S - 0.1, REFILL_S + 1], 3),
        ([float(second) for second in range(100)], 10),
        ([2.0 * second for second in range(100)], 5),
        ([0.0] * 5 + [20.0] * 7 + [40.0], 7),
        ([0.0] * 30, 10),
    ],
)
def test_as_many_wait_as_were_taken_within_the_time_that_refilling_takes(taken_s: list[float], wanted: int) -> None:
    assert target(taken_s, SIZE) == wanted


def test_a_pool_that_may_hold_nothing_holds_nothing() -> None:
    assert target([0.0] * 5, PoolSize(0, 0)) == 0


@pytest.mark.needs("kubernetes", "own")
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
class TestKeeper:
    """On a real cluster."""

    @pytest.fixture
    async def settings(self, api: client.CoreV1Api, namespace: str) -> AsyncIterator[PodSettings]:
        """Those of pods that take no room from other tests' once this one is over."""
        yield PodSettings(namespace=namespace, pull_policy="Never", cpu="75m")
        await api.delete_collection_namespaced_pod(namespace, grace_period_seconds=0)

    @pytest.fixture
    async def configuration(self, kubernetes: Kubernetes) -> client.Configuration:
        return await reached(kubernetes.kubeconfig)

    async def test_who_keeps_them_next_goes_on_with_those_that_there_are(
        self, api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
    ) -> None:
        async with kept(configuration, settings, bash, WarmSettings(size=PoolSize(3, 9))):

            async def made() -> set[str] | None:
                found = await names(api, settings.namespace, warm_ones())
                return found if len(found) == 3 else None

            first: set[str] = await eventually(made)  # which do not run yet
        async with kept(configuration, settings, bash, WarmSettings(size=PoolSize(3, 9))) as pods:
            await until_waiting(pods, 3)
            assert await names(api, settings.namespace, warm_ones()) == first
        async with kept(configuration, settings, bash, WarmSettings(size=PoolSize(4, 9))) as pods:
            await until_waiting(pods, 4)
            found = await names(api, settings.namespace, warm_ones())
            assert first < found and len(found) == 4

    async def test_a_load_makes_a_pool_larger_and_it_shrinks_when_the_load_is_over(
        self, api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
    ) -> None:
        warm = WarmSettings(size=PoolSize(1, 6), window_s=8.0)
        async with kept(configuration, settings, bash, warm) as pods:
            await until_waiting(pods, 1)
            hows = await asyncio.gather(*(runs(pods, f"e{at}") for at in range(4)))
            assert sorted(str(how) for how in hows) == ["cold", "cold", "cold", "warm"]
            await until_waiting(pods, 4)

            async def is_small_again() -> bool:
                return waiting(pods) == 1

            await eventually(is_small_again)
            assert len(await names(api, settings.namespace, "")) == 1

    async def test_a_claimed_pod_has_its_successor_before_the_next_look(
        self, api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
    ) -> None:
        async with kept(configuration, settings, bash, WarmSettings(size=PoolSize(1, 1))) as pods:
            for at in range(3):
                await until_waiting(pods, 1)
                before = await names(api, settings.namespace, warm_ones())
                began_s = time.monotonic()
                assert await runs(pods, f"e{at}") is PodStart.WARM

                async def has_another(before: set[str] = before) -> bool:
                    return bool(await names(api, settings.namespace, warm_ones()) - before)

                await eventually(has_another)
                assert time.monotonic() - began_s < LOOK_AGAIN_S / 2

    async def test_pods_of_another_spec_are_replaced(
        self, api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
    ) -> None:
        warm = WarmSettings(size=PoolSize(2, 2))
        async with kept(configuration, settings, bash, warm) as pods:
            await until_waiting(pods, 2)
            old = await names(api, settings.namespace, warm_ones())
        async with kept(configuration, replace(settings, cpu="80m"), bash, warm) as pods:
            assert waiting(pods) == 0
            await until_waiting(pods, 2)
            assert not old & await names(api, settings.namespace, "")
            assert await runs(pods, "e") is PodStart.WARM

    async def test_pods_that_find_no_room_are_not_multiplied(
        self, api: client.CoreV1Api, configuration: client.Configuration, settings: PodSettings, bash: Image
    ) -> None:
        warm = WarmSettings(size=PoolSize(20, 20))
        async with kept(configuration, replace(settings, cpu="64"), bash, warm):

            async def as_many_as_may_be() -> set[str] | None:
                found = await names(api, settings.namespace, warm_ones())
                assert len(found) <= MAKING_MOST
                return found if len(found) == MAKING_MOST else None

            for _ in range(3):  # each deletion has the keeper look again
                before: set[str] = await eventually(as_many_as_may_be)
                await api.delete_namespaced_pod(before.pop(), settings.namespace, grace_period_seconds=0)

            assert len(await eventually(as_many_as_may_be)) == MAKING_MOST
