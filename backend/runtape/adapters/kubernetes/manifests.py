"""What is asked of Kubernetes: pods that can do nothing but run one program.

A pod has no rights in the cluster and none on its node, keeps nothing, is started once, and says nothing but through
its runner.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtape.domain.limits import Limits

WORK_DIRECTORY: Final = "/box"
RUNNER: Final = "/runtape/pod"
REPORT: Final = "/dev/termination-log"
CONTAINER: Final = "program"
UID: Final = 64_000
"""Of every program: no user of any image."""
RUNNER_MB: Final = 8
"""Memory of the runner, with what waits in it for the service."""
LONGER_S: Final = 60
"""How much longer than its program's wall time a pod may live: to start, to hand over the files that were left."""

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
NAME: Final = "app.kubernetes.io/name"
EXECUTION: Final = "runtape.dev/execution"
ATTEMPT: Final = "runtape.dev/attempt"
OWNER: Final = "runtape.dev/owner"
TOKEN: Final = "runtape.dev/token"  # noqa: S105
"""Annotation: what the runner's report is to show."""


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
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": {MANAGED_BY: "runtape", NAME: "program", **labels},
            "annotations": {TOKEN: token},
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": math.ceil(limits.wall_s) + LONGER_S,
            "terminationGracePeriodSeconds": 1,
            **_hardening(settings),
            "containers": [_container(settings, image, limits)],
            "volumes": [_volume("box", limits), _volume("tmp", limits)],
        },
    }


def _hardening(settings: PodSettings) -> dict[str, Any]:
    """Return the part of a pod's spec that keeps its program in."""
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "dnsPolicy": "Default",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
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
