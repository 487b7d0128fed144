"""What a pod may have at most: bounded by its namespace (LimitRange, ResourceQuota) and by the nodes that there are."""

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import structlog
from kubernetes_asyncio import client

from runtape.adapters.kubernetes import manifests
from runtape.adapters.kubernetes.api import RAW, asked
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.quantities import quantity
from runtape.domain.limits import Limits
from runtape.ports.errors import InfrastructureError, Permanent
from runtape.ports.room import Room

log = structlog.get_logger(__name__)

KEPT_S: Final = 30.0
"""How long an answer is told on; one that cannot be had anew is told for longer."""
ANSWER_S: Final = 3.0
"""How long who asks may have to wait."""
CPU: Final = "cpu"
MEMORY: Final = "memory"
DISK: Final = "ephemeral-storage"
_MIB: Final = 1 << 20


class ClusterRooms:
    """`Rooms` of one namespace of a cluster; `close` ends its connections."""

    def __init__(self, configuration: client.Configuration, settings: PodSettings, default: Limits) -> None:
        """Prepare; `default` are the limits of a program that asks for no others."""
        self._namespace = settings.namespace
        self._client = client.ApiClient(configuration)
        self._core: Any = client.CoreV1Api(self._client)
        (container,) = manifests.pod("", settings, "", default, {}, "")["spec"]["containers"]
        self._one = {name: quantity(text) for name, text in container["resources"]["limits"].items()}
        self._room: Room | None = None
        self._due_s = 0.0
        self._asking = asyncio.Lock()

    async def close(self) -> None:
        """End the connections."""
        await self._client.close()

    async def room(self) -> Room | None:
        async with self._asking:
            if time.monotonic() >= self._due_s:
                self._due_s = time.monotonic() + KEPT_S
                try:
                    async with asyncio.timeout(ANSWER_S):
                        self._room = await self._read()
                except (InfrastructureError, TimeoutError, ValueError) as error:
                    log.warning("room.unknown", namespace=self._namespace, error=str(error) or "no answer")
            return self._room

    async def _read(self) -> Room:
        quotas, ranges, nodes = await asyncio.gather(
            asked(self._core.list_namespaced_resource_quota(self._namespace, **RAW)),
            asked(self._core.list_namespaced_limit_range(self._namespace, **RAW)),
            self._nodes(),
        )
        return room_of(self._one, quotas["items"], ranges["items"], nodes)

    async def _nodes(self) -> Sequence[Mapping[str, Any]] | None:
        """Return the nodes; None, when this account may not see them."""
        try:
            return (await asked(self._core.list_node(**RAW)))["items"]
        except Permanent as error:
            log.info("room.nodes_unseen", error=str(error))
            return None


def room_of(
    one: Mapping[str, Decimal],
    quotas: Sequence[Mapping[str, Any]],
    ranges: Sequence[Mapping[str, Any]],
    nodes: Sequence[Mapping[str, Any]] | None,
) -> Room:
    """Return what a pod may have, and how many that have `one` each fit."""
    hard = [each["spec"]["hard"] for each in quotas if not _is_scoped(each)]
    ready = None if nodes is None else [each["status"]["allocatable"] for each in nodes if _takes_pods(each)]

    def most(name: str) -> Decimal | None:
        bounds = [*_maxima(ranges, name), *_in_quotas(hard, name)]
        if ready is not None:
            bounds.append(max((quantity(each.get(name, "0")) for each in ready), default=Decimal(0)))
        return min(bounds, default=None)

    fit = [bound // each for name, each in one.items() for bound in _in_quotas(hard, name)]
    fit += [quantity(each[name]) for each in hard for name in ("pods", "count/pods") if name in each]
    if ready is not None:
        fit.append(sum((_on_node(one, each) for each in ready), Decimal(0)))
    cpu, memory, disk = most(CPU), most(MEMORY), most(DISK)
    return Room(
        cpu=None if cpu is None else float(cpu),
        memory_mb=None if memory is None else max(0, math.floor(memory / _MIB) - manifests.RUNNER_MB),
        disk_mb=None if disk is None else math.floor(disk / _MIB),
        programs=int(min(fit)) if fit else None,
    )


def _is_scoped(quota: Mapping[str, Any]) -> bool:
    """Whether a quota counts some pods alone (of a priority, say); programs' may be others."""
    return bool(quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"))


def _in_quotas(hard: Iterable[Mapping[str, str]], name: str) -> Iterator[Decimal]:
    """Yield what quotas have of a resource; requests are limits here, so either bounds both."""
    for each in hard:
        for counted in (name, f"requests.{name}", f"limits.{name}"):
            if counted in each:
                yield quantity(each[counted])


def _maxima(ranges: Iterable[Mapping[str, Any]], name: str) -> Iterator[Decimal]:
    for each in ranges:
        for limit in each["spec"]["limits"]:
            if limit["type"] in ("Container", "Pod") and name in limit.get("max", {}):
                yield quantity(limit["max"][name])


def _takes_pods(node: Mapping[str, Any]) -> bool:
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
    return ready and not node["spec"].get("unschedulable")


def _on_node(one: Mapping[str, Decimal], allocatable: Mapping[str, str]) -> Decimal:
    fit = [quantity(allocatable.get(name, "0")) // each for name, each in one.items()]
    return min([*fit, quantity(allocatable["pods"])])
