"""A worker over real pods that dies or stands still at one of its steps, as `tests.cluster.mortal_worker` does.

What shows that somebody is gone comes sooner here too: who keeps the warm pods leads for `LED_S` alone, a monitor holds
its partitions for `HELD_S`, and reapers go round every `ROUND_S`, to look again at what may go on after `LOOKED_AT_S`.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from runtape.adapters.kubernetes import leases
from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.attempt import Attempt
from runtape.adapters.kubernetes.leases import Partitions
from runtape.adapters.kubernetes.placed import ClusterPods
from runtape.adapters.kubernetes.protocol import State
from runtape.adapters.kubernetes.watching import Pods
from runtape.adapters.mongo.tape import MongoTapeStore
from runtape.application import reaping
from runtape.application.monitoring import PodMonitor
from runtape.runtime import leading
from runtape.runtime.pod_watch import GROUP
from runtape.runtime.providers.kubernetes import KubernetesMonitorProvider, KubernetesProvider
from runtape.runtime.roles import Role
from tests.cluster import mortal_worker
from tests.cluster.arming import Given, Step
from tests.cluster.flood import LINES
from tests.cluster.mortal_worker import work

LED_S, LED_AGAIN_S = 3, 1.0
HELD_S, RENEWED_S, TURN_S = 4, 3.0, 0.5
ROUND_S = 0.5
GRACE_S = 1.0
LOOKED_AT_S = 2.0


def _is_warm(given: Given, _: Any) -> bool:
    """Whether the pod that is made is to wait."""
    return given[0]["metadata"]["name"].startswith("warm-")


def _is_cold(given: Given, answer: Any) -> bool:
    """Whether the pod that is made is for a program."""
    return not _is_warm(given, answer)


def _is_part(given: Given, _: Any) -> bool:
    """Whether an append leaves the last line of a program still to come."""
    return given[1][-1].data.split()[-1] != b"%d" % (LINES - 1)


def _waits(given: Given, _: Any) -> bool:
    """Whether the runner that says who it is waits for a program."""
    return given[0] is State.WAITING


def _takes_partition(given: Given, answer: Any) -> bool:
    """Whether a lease that was written is that of a partition, which is now ours."""
    name, holder = given
    return bool(answer and holder) and name.removeprefix(f"{GROUP}-").isdecimal()


STEPS: Mapping[str, Step] = {
    # k8s_worker
    "not-made": Step(PodApi, "create", counts=_is_cold),
    "made": Step(PodApi, "create", after=True, counts=_is_cold),
    "not-claimed": Step(PodApi, "patch"),
    "claimed": Step(PodApi, "patch", after=True),
    "not-handed-over": Step(Attempt, "_welcomed", counts=_waits),
    "handed-over": Step(Attempt, "_welcomed", after=True, counts=_waits),
    "partly-written": Step(MongoTapeStore, "append", after=True, counts=_is_part),
    "written": mortal_worker.STEPS["written"],
    "end-recorded": mortal_worker.STEPS["end-recorded"],
    "not-deleted": Step(PodApi, "delete"),
    "deleted": Step(PodApi, "delete", after=True),
    "warm-made": Step(PodApi, "create", after=True, counts=_is_warm),
    # pod_monitor
    "taken": Step(Partitions, "_write", after=True, counts=_takes_partition, stalls=(Pods, "_list")),
    "end-seen": Step(PodMonitor, "finish"),
    "end-told": Step(PodMonitor, "finish", after=True),
    "left-seen": Step(ClusterPods, "delete"),
    "left-deleted": Step(ClusterPods, "delete", after=True),
    "loss-seen": Step(PodMonitor, "lose"),
    "loss-told": Step(PodMonitor, "lose", after=True),
    "expiry-seen": Step(PodMonitor, "expire"),
    "expiry-told": Step(PodMonitor, "expire", after=True),
}
"""The steps by name.  A partition is ``taken`` before anything is known of the pods."""


def hurry() -> None:
    """Let it be noticed soon that somebody is gone who kept warm pods or looked after those of others."""
    for module, changes in {
        leading: {"LEASE_S": LED_S, "RENEW_S": LED_AGAIN_S},
        leases: {"LEASE_S": HELD_S, "RENEWED_S": RENEWED_S, "TURN_S": TURN_S},
        reaping: {
            "ROUND_S": ROUND_S,
            "GRACE_S": GRACE_S,
            "LOOK_S": LOOKED_AT_S,
            "LIST_S": LOOKED_AT_S,
            "LEASE_GRACE": timedelta(),
        },
    }.items():
        for name, value in changes.items():
            setattr(module, name, value)


def main(argument: str) -> int:
    """Work as the role of that name until a signal."""
    role = Role(argument)
    hurry()
    match role:
        case Role.K8S_WORKER:
            return work(role, STEPS, KubernetesProvider(looks_at_network=False))
        case Role.POD_MONITOR:
            return work(role, STEPS, KubernetesMonitorProvider())
        case _:
            return work(role, {}, None)
