"""`PlacedPods` over a Kubernetes cluster: the pods of all workers, and how long each of their phases took."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from kubernetes_asyncio import client

from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.manifests import ATTEMPT, EXECUTION, MANAGED_BY, TOKEN
from runtape.adapters.kubernetes.outcomes import outcome_of, reported, unreported, usage_of
from runtape.adapters.kubernetes.watching import Pods
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.ports.placed_pods import PlacedPod, PodState, Told
from runtape.ports.pod_runtime import PodEnded, PodKey

log = structlog.get_logger(__name__)

SELECTOR: Final = f"{MANAGED_BY}=runtape,{EXECUTION}"


@dataclass(slots=True)
class _Phases:
    """When a pod was first seen, and what it has been since; monotonic."""

    made_s: float | None
    """None: it was there before this process looked."""
    running_s: float | None = None
    scheduled: bool = False
    ended: bool = False


class ClusterPods:
    """The pods of one namespace that are for a program; `run` keeps up with them.

    The phases of those for which `concerns` holds are logged, with the seconds that each took.
    """

    def __init__(
        self, configuration: client.Configuration, namespace: str, concerns: Callable[[ExecutionId], bool]
    ) -> None:
        self._api = PodApi(configuration, namespace)
        self._concerns = concerns
        self._pods = Pods(self._api, SELECTOR, self._on_change)
        self._placed: dict[str, PlacedPod] = {}
        self._phases: dict[str, _Phases] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def run(self) -> None:
        """Keep up with the cluster; runs until cancelled."""
        await self._pods.run()

    def seen(self) -> Sequence[PlacedPod] | None:
        return [*self._placed.values()] if self._pods.up_to_date else None

    async def find(self, key: PodKey) -> Sequence[PlacedPod]:
        selector = f"{MANAGED_BY}=runtape,{EXECUTION}={key.execution_id},{ATTEMPT}={key.attempt}"
        return [each for pod in (await self._api.list(selector)).pods if (each := placed(pod)) is not None]

    async def delete(self, pod: PlacedPod, *, force: bool = False) -> None:
        at_once = force or pod.state is PodState.ENDED
        await self._api.delete(pod.name, 0 if at_once else 1, pod.version)
        left = await self._api.read(pod.name) if force else None
        if left is not None and left["metadata"].get("finalizers"):
            # Whoever has put one there would keep it for ever.
            version = left["metadata"]["resourceVersion"]
            await self._api.patch(pod.name, {"metadata": {"resourceVersion": version, "finalizers": None}})

    def _on_change(self, name: str, pod: Mapping[str, Any] | None) -> None:
        if pod is None:
            self._placed.pop(name, None)
            self._phases.pop(name, None)
        elif (found := placed(pod)) is not None:
            self._placed[name] = found
            self._tell_phases(found, pod)

    def _tell_phases(self, placed: PlacedPod, pod: Mapping[str, Any]) -> None:
        now_s = time.monotonic()
        phases = self._phases.get(placed.name)
        if phases is None:
            new = self._pods.up_to_date and "nodeName" not in pod["spec"]
            phases = self._phases[placed.name] = _Phases(now_s if new else None)
        tells = self._concerns(placed.key.execution_id)
        if not phases.scheduled and "nodeName" in pod["spec"]:
            phases.scheduled = True
            if tells and phases.made_s is not None:
                log.info("pod.scheduled", pod=placed.name, after_s=round(now_s - phases.made_s, 3))
        if placed.state is PodState.RUNNING and phases.running_s is None:
            phases.running_s = now_s
            if tells and phases.made_s is not None:
                log.info("pod.running", pod=placed.name, after_s=round(now_s - phases.made_s, 3))
        if placed.state is PodState.ENDED and not phases.ended:
            phases.ended = True
            if tells:
                ran_s = round(now_s - phases.running_s, 3) if phases.running_s is not None else None
                why = "told" if placed.told is not None else placed.outcome and placed.outcome.reason
                log.info("pod.terminated", pod=placed.name, ran_s=ran_s, reason=why)


def placed(pod: Mapping[str, Any]) -> PlacedPod | None:
    """Return what a pod's JSON says, None when that is of no attempt."""
    metadata, status = pod["metadata"], pod["status"]
    labels = metadata.get("labels") or {}
    number = labels.get(ATTEMPT, "")
    if EXECUTION not in labels or not number.isdecimal():
        return None
    key = PodKey(ExecutionId(labels[EXECUTION]), int(number))
    token = (metadata.get("annotations") or {}).get(TOKEN)
    report = reported(pod, token) if token else None

    def told(limits: Limits) -> Told:
        assert report is not None
        outcome = outcome_of(report, limits, pod)
        ended = PodEnded(key=key, outcome=outcome, usage=usage_of(report), last_seq=report.last_seq)
        return Told(ended, report.left_files)

    states = [each.get("state") or {} for each in status.get("containerStatuses") or ()]
    running, terminated = (any(word in state for state in states) for word in ("running", "terminated"))
    # Of a node that is lost the phase is said by others, who do not know what runs there.
    over = terminated or (status.get("phase") in ("Failed", "Succeeded") and not running)
    state = PodState.ENDED if over else PodState.RUNNING if running else PodState.PENDING
    return PlacedPod(
        name=metadata["name"],
        version=metadata["resourceVersion"],
        key=key,
        state=state,
        ran=running or terminated,
        leaving="deletionTimestamp" in metadata,
        told=told if report is not None else None,
        outcome=unreported(pod) if report is None else None,
    )
