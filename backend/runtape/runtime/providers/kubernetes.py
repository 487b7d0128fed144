"""Pods of a Kubernetes cluster."""

import asyncio
from collections.abc import AsyncIterator

import structlog
from dishka import Provider, Scope, provide
from kubernetes_asyncio.client import Configuration

from runtape.adapters.kubernetes import network
from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.connection import configuration
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.pools import PoolSize, WarmSettings
from runtape.adapters.kubernetes.room import ClusterRooms
from runtape.adapters.kubernetes.runtime import Image, KubernetesPods
from runtape.adapters.mongo.announced import NoPods
from runtape.adapters.sandbox import runtimes
from runtape.application.monitoring import PodMonitor
from runtape.domain.limits import Limits
from runtape.ports.clock import Clock
from runtape.ports.errors import Permanent
from runtape.ports.pod_runtime import PodRuntime
from runtape.ports.room import NoRooms, Rooms
from runtape.ports.stores import ExecutionStore, TapeStore
from runtape.runtime.cluster import NoPodsProvider, PodTasks
from runtape.runtime.pod_watch import PodWatch
from runtape.runtime.pods import KubernetesSettings
from runtape.runtime.providers.application import ProcessIdentity
from runtape.runtime.settings import Settings

log = structlog.get_logger(__name__)


class KubernetesProvider(Provider):
    """Pods of a Kubernetes cluster, which this process makes and owns.

    Unless it `looks_at_network`, nobody finds out what programs reach there.
    """

    scope = Scope.APP

    def __init__(self, *, looks_at_network: bool) -> None:
        super().__init__()
        self._looks_at_network = looks_at_network

    @provide
    async def pods(self, settings: Settings, process: ProcessIdentity) -> AsyncIterator[PodRuntime]:
        given = settings.kubernetes
        reached, of_pods, found = await configuration(given.kubeconfig), _pod_settings(given), images(given)
        warm = _warm_settings(given, settings.limits.limits())
        pods = KubernetesPods(reached, of_pods, found, process.owner, warm)
        looking: list[asyncio.Task[None]] = []
        if self._looks_at_network:
            look = _look_at_network(reached, of_pods, found[0].reference, given)
            looking.append(asyncio.create_task(look))
        try:
            if given.require_network_policy:
                await asyncio.gather(*looking)
            await pods.open()
            yield pods
        finally:
            for each in looking:
                each.cancel()
            await asyncio.gather(*looking, return_exceptions=True)
            await pods.close()


async def _look_at_network(
    reached: Configuration, settings: PodSettings, image: str, given: KubernetesSettings
) -> None:
    """Find out whether policies are enforced, and tell the log.  Raises: SandboxUnavailable, when they have to be."""
    api = PodApi(reached, given.namespace)
    try:
        finding = await network.find_out(api, settings, image)
    finally:
        await api.close()
    network.settle(finding, required=given.require_network_policy)


class KubernetesMonitorProvider(Provider):
    """A look at the pods of a Kubernetes cluster, which other processes make."""

    scope = Scope.APP

    pods = provide(NoPods, provides=PodRuntime)

    @provide
    async def tasks(
        self,
        settings: Settings,
        process: ProcessIdentity,
        executions: ExecutionStore,
        tape: TapeStore,
        monitor: PodMonitor,
        clock: Clock,
    ) -> AsyncIterator[PodTasks]:
        given = settings.kubernetes
        watch = PodWatch(
            await configuration(given.kubeconfig),
            given.namespace,
            me=process.owner,
            executions=executions,
            tape=tape,
            monitor=monitor,
            clock=clock,
        )
        try:
            yield PodTasks({"pods": watch.run})
        finally:
            await watch.close()


class KubernetesRoomProvider(NoPodsProvider):
    """What pods may have at most, for a process that makes none."""

    @provide
    async def rooms(self, settings: Settings) -> AsyncIterator[Rooms]:
        try:
            found = await configuration(settings.kubernetes.kubeconfig)
        except Permanent as error:
            log.warning("room.unknown", error=str(error))  # the API serves without it
            yield NoRooms()
            return
        rooms = ClusterRooms(found, _pod_settings(settings.kubernetes), settings.limit_policy.default)
        yield rooms
        await rooms.close()


def images(settings: KubernetesSettings) -> list[Image]:
    """Return the images that programs run in, newest version of a language first.  Raises: Permanent."""
    given = [(*name.split(":"), each.binary, each.reference) for name, each in settings.images.items()] or [
        (lang, version, binary, f"{settings.image_prefix}{lang}:{version}")
        for lang, version, binary in runtimes.images()
    ]
    given.sort(key=lambda each: [int(number) for number in each[1].split(".")], reverse=True)
    try:
        found = [
            Image(reference, runtimes.in_image(lang, version, binary)) for lang, version, binary, reference in given
        ]
    except KeyError as error:
        raise Permanent(f"kubernetes.images: no language is called {error}") from error
    for each in found:
        if each.runtime.compile:
            raise Permanent(f"kubernetes.images: {each.runtime.name} is compiled, and pods have no box for a compiler")
    return found


def _pod_settings(settings: KubernetesSettings) -> PodSettings:
    return PodSettings(
        namespace=settings.namespace,
        cpu=settings.cpu,
        runtime_class=settings.runtime_class,
        priority_class=settings.priority_class,
        user_namespaces=settings.user_namespaces,
        pull_policy=settings.pull_policy,
    )


def _warm_settings(settings: KubernetesSettings, limits: Limits) -> WarmSettings:
    given = settings.warm
    return WarmSettings(
        limits=limits,
        size=PoolSize(given.least, given.most),
        sizes={name.replace(":", " "): PoolSize(each.least, each.most) for name, each in given.sizes.items()},
        window_s=given.window_s,
    )
