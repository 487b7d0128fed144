"""What runs leave behind in a cluster, looked for from outside: pods, what is made for pods, and containers.

The API tells what is written down, by the labels that the service gives all of its own.  That says nothing of
containers: a pod that is deleted at once is gone from the API before its node has ended it.  So at the end the kubelets
of the nodes are asked as well, by who may ask them.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from runtape.adapters.kubernetes.api import Forbidden
from runtape.adapters.kubernetes.inspection import Inspection
from runtape.ports.pod_runtime import PodKey
from runtape.prove.ran import Ran
from runtape.runtime.pods import KubernetesSettings

_GRACE_S: Final = 10.0
"""How long the cluster may take to forget a pod."""
_CONTAINER_GRACE_S: Final = 40.0
"""How long a node may take to end the containers of a pod that the API has forgotten."""
_LOOK_AGAIN_S: Final = 0.2
_BETWEEN_PODS: Final = "A49"
_UNKNOWN: Final = "unknown: not permitted to look"


class PodTraces:
    """Looks for what runs of `owner` leave behind in the cluster; who made `inspection` closes it."""

    slack_s = 1.5

    def __init__(self, inspection: Inspection, settings: KubernetesSettings, owner: str, platform: str = "") -> None:
        """Prepare; `platform` are the addresses of the service's own servers, each ``host port``, with commas."""
        self._inspection = inspection
        self._settings = settings
        self._owner = owner
        self._platform = platform
        self.mark = f"runtape-prove-{os.getpid()}.mark"
        self._nodes: set[str] = set()
        self._names: set[str] = set()
        self._watched: Mapping[str, Any] = {}
        self._kubelets_tell = False

    def before(self) -> None:
        """Return nothing: what belongs to a run is known by its label."""

    async def sees(self, key: PodKey, namespace: int) -> list[str]:
        """Return what is not seen of a program that runs."""
        self._watched = await self.manifest_of(key)
        if not self._watched:
            return ["a pod that runs is not seen by the label of its execution"]
        name, node = self._watched["metadata"]["name"], self._watched["spec"]["nodeName"]
        if not any(each.endswith(name) for each in await self._inspection.owned(self._owner)):
            return ["a pod that runs is not seen by the label of its owner"]

        async def unseen() -> list[str]:
            running = await self._inspection.running_on(node)
            return [] if name in running else ["the container of a pod that runs is not seen on its node"]

        try:
            found = await _that_stays(unseen, _GRACE_S)
        except Forbidden:
            return []
        self._kubelets_tell = True
        return found

    async def left(self, before: None, rans: Iterable[Ran]) -> list[str]:
        """Return the pods that are still there of programs that have ended."""
        ended = {ran.key.execution_id for ran in rans if ran.key is not None}

        async def pods() -> list[str]:
            found = await self._inspection.executions(self._owner)
            return [f"the pod {found[each]}" for each in ended & found.keys()]

        return await _that_stays(pods, _GRACE_S)

    async def left_after_closing(self) -> list[str]:
        """Return what the cluster still has of the owner, and the containers that still run on its nodes."""

        async def containers() -> list[str]:
            return [
                f"a container of {name} on {node}"
                for node in sorted(self._nodes)
                for name in await self._inspection.running_on(node)
                if name in self._names
            ]

        found = await _that_stays(lambda: self._inspection.owned(self._owner), _GRACE_S)
        return found + (await _that_stays(containers, _CONTAINER_GRACE_S) if self._kubelets_tell else [])

    async def manifest_of(self, key: PodKey) -> Mapping[str, Any]:
        """Return a run's pod with its status; empty when there is none."""
        found = await self._inspection.pod_of(key.execution_id)
        if found is None:
            return {}
        self._names.add(found["metadata"]["name"])
        self._nodes.add(found["spec"].get("nodeName", ""))
        return found

    async def addresses(self) -> Mapping[str, str]:
        """Return those of the node that a program was seen on and of the API, as pods and as we are told of it."""
        server = urlsplit(self._inspection.server)
        found = {
            "node_address": self._watched.get("status", {}).get("hostIP", "192.0.2.1"),
            "server": f"{server.hostname} {server.port or 443}",
            "platform": self._platform,
        }
        found["service"] = f"{await self._ask(self._inspection.service_address, found['node_address'])} 443"
        return found

    async def host(self, contained: Mapping[str, bool]) -> dict[str, str]:
        """Return the versions of the cluster and of a node, and what of it isolates pods."""
        node = self._watched.get("spec", {}).get("nodeName", "")
        info: Mapping[str, str] = {}
        with contextlib.suppress(Forbidden):
            info = (await self._inspection.node(node))["status"]["nodeInfo"] if node else {}
        return {
            "kubernetes": await self._ask(self._inspection.version, _UNKNOWN),
            "kernel": info.get("kernelVersion", _UNKNOWN),
            "machine": info.get("architecture", _UNKNOWN),
            "container_runtime": info.get("containerRuntimeVersion", _UNKNOWN),
            "runtime_class": self._settings.runtime_class or "the cluster's default",
            "user_namespaces": "no" if self._watched.get("spec", {}).get("hostUsers", True) else "yes",
            "network_policy": await self._policy(contained.get(_BETWEEN_PODS)),
            "containers_on_nodes": "looked for"
            if self._kubelets_tell
            else "not looked for: nodes/proxy is not granted",
        }

    async def _policy(self, kept_apart: bool | None) -> str:
        """Return whether network policies are enforced, as far as a program in one pod has tried to reach another."""
        if kept_apart is None:
            return f"unknown: {_BETWEEN_PODS} has not run"
        if kept_apart:
            return "enforced"
        try:
            return "not enforced" if await self._inspection.policies() else "there is none"
        except Forbidden:
            return "not enforced, or there is none"

    @staticmethod
    async def _ask(question: Callable[[], Awaitable[str]], otherwise: str) -> str:
        try:
            return await question()
        except Forbidden:
            return otherwise


async def _that_stays(look: Callable[[], Awaitable[Sequence[str]]], grace_s: float) -> list[str]:
    """Return what `look` finds and still finds after the grace."""
    deadline_s = time.monotonic() + grace_s
    while found := await look():
        if time.monotonic() > deadline_s:
            return list(found)
        await asyncio.sleep(_LOOK_AGAIN_S)  # a kubelet tells nobody when a container has ended
    return []
