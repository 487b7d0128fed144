"""What is asked of Kubernetes: pods that can do nothing but run one program.

A pod has no rights in the cluster and none on its node, keeps nothing, is started once, and says nothing but through
its runner.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtape.domain.limits import Limits

WORK_DIRECTORY: Final = "/box"
RUNNER: Final = "/runtape/pod"
REPORT: Final = "/dev/termination-log"
CONTAINER: Final = "program"
FIRST_UID: Final = 2_000_000_000
UIDS: Final = 1_000_000
"""Each pod has a uid of this range: no user of any image, and no other pod's of its node, as far as a million can tell.

The kernel counts processes (``RLIMIT_NPROC``) by uid over a whole node, so those of one pod would be another's limit.
The range is above those that systemd, subordinate users (``/etc/subuid``) and the kubelet's user namespaces give away.
"""
UID: Final = 64_000
"""The user that images name, and of a program whose pod has a user namespace: its uids are no other pod's anyway."""
RUNNER_MB: Final = 8
"""Memory of the runner, with what waits in it for the service."""
LONGER_S: Final = 60
"""How much longer than its program's wall time a pod may live: to start, to hand over the files that were left."""

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
NAME: Final = "app.kubernetes.io/name"
EXECUTION: Final = "runtape.dev/execution"
ATTEMPT: Final = "runtape.dev/attempt"
OWNER: Final = "runtape.dev/owner"
POOL: Final = "runtape.dev/pool"
"""The runtime of a warm pod, also once it is claimed, and of a pod that was made because no warm one was left."""
STATE: Final = "runtape.dev/state"
WARM: Final = "warm"
CLAIMED: Final = "claimed"
SPEC: Final = "runtape.dev/spec"
"""The hash of the spec that a warm pod was made of."""
TOKEN: Final = "runtape.dev/token"  # noqa: S105
"""Annotation: what the runner's report is to show."""
SAFE_TO_EVICT: Final = "cluster-autoscaler.kubernetes.io/safe-to-evict"
"""Annotation: whether the cluster autoscaler may take the pod's node away.  A pod without a controller keeps its node,
whatever it does, unless this says ``true``."""
MAY_GO: Final = {SAFE_TO_EVICT: "true"}
"""Annotations of a pod that waits: another one is made in its place."""
MUST_STAY: Final = {SAFE_TO_EVICT: "false"}
"""Annotations of a pod that runs a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """What an operator says of all pods."""

    namespace: str
    cpu: str = "1"
    """As Kubernetes has it: what a program may use at once."""
    runtime_class: str | None = None
    priority_class: str | None = None
    user_namespaces: bool = False
    """Whether pods have user namespaces of their own (``hostUsers: false``), which the nodes must be able to make."""
    pull_policy: str = "IfNotPresent"


def pod(
    name: str, settings: PodSettings, image: str, limits: Limits, labels: Mapping[str, str], token: str
) -> dict[str, Any]:
    """Return the manifest of a pod for one program within `limits`."""
    spec = _spec(name, settings, image, limits, deadline_s=math.ceil(limits.wall_s) + LONGER_S)
    return _manifest(name, settings, labels, {TOKEN: token, **MUST_STAY}, spec)


def warm_pod(
    name: str, settings: PodSettings, image: str, limits: Limits, pool: str, *, deadline_s: int
) -> dict[str, Any]:
    """Return the manifest of a pod that waits for a program within `limits`, and lives no longer than `deadline_s`."""
    spec = _spec(name, settings, image, limits, deadline_s=deadline_s)
    labels = {POOL: pool, STATE: WARM, SPEC: fingerprint(settings, image, limits)}
    return _manifest(name, settings, labels, MAY_GO, spec)


def fingerprint(settings: PodSettings, image: str, limits: Limits) -> str:
    """Return what tells pods apart that are made of other settings or by another version: 16 hexadecimal digits."""
    spec = _spec("", settings, image, limits, deadline_s=0)
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


def label_value(text: str) -> str:
    """Return `text` as the value of a label, which may hold less than a name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:63].strip("._-")


def _manifest(
    name: str, settings: PodSettings, labels: Mapping[str, str], annotations: Mapping[str, str], spec: dict[str, Any]
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": {MANAGED_BY: "runtape", NAME: "program", **labels},
            "annotations": dict(annotations),
        },
        "spec": spec,
    }


def _spec(name: str, settings: PodSettings, image: str, limits: Limits, *, deadline_s: int) -> dict[str, Any]:
    return {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": deadline_s,
        "terminationGracePeriodSeconds": 1,
        **_hardening(name, settings),
        "containers": [_container(settings, image, limits)],
        "volumes": [_volume("box", limits), _volume("tmp", limits)],
    }


def _uid(name: str, settings: PodSettings) -> int:
    """Return the uid of the pod of that name, which is the same whoever asks."""
    if settings.user_namespaces:
        return UID
    return FIRST_UID + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % UIDS


def _hardening(name: str, settings: PodSettings) -> dict[str, Any]:
    """Return the part of a pod's spec that keeps its program in."""
    uid = _uid(name, settings)
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "dnsPolicy": "Default",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": uid,
            "runAsGroup": uid,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if settings.user_namespaces:
        spec["hostUsers"] = False
    if settings.runtime_class:
        spec["runtimeClassName"] = settings.runtime_class
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    return spec


def _container(settings: PodSettings, image: str, limits: Limits) -> dict[str, Any]:
    room = {
        "cpu": settings.cpu,
        "memory": f"{limits.memory_mb + RUNNER_MB}Mi",
        "ephemeral-storage": "64Mi",
    }
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": settings.pull_policy,
        "command": [RUNNER, REPORT],
        "workingDir": WORK_DIRECTORY,
        "stdin": True,
        "stdinOnce": False,
        "terminationMessagePath": REPORT,
        "terminationMessagePolicy": "File",
        "resources": {"requests": room, "limits": room},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "box", "mountPath": WORK_DIRECTORY}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }


def _volume(name: str, limits: Limits) -> dict[str, Any]:
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": f"{limits.disk_mb}Mi"}}
