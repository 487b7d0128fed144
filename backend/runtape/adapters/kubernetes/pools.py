"""What a pool of warm pods is: of which runtime, within which limits, how many, and which pods are of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from runtape.adapters.kubernetes import manifests
from runtape.adapters.kubernetes.manifests import LONGER_S, PodSettings
from runtape.domain.limits import Limits
from runtape.ports.pod_runtime import Runtime

OLDEST_S: Final = 3600.0
"""A pod that has waited longer is replaced by a new one."""
DEADLINE_S: Final = 4 * 3600
"""When Kubernetes ends a warm pod that nobody has claimed or replaced; a claim can but bring that forward."""


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many pods of a runtime wait, whatever the load."""

    least: int = 1
    most: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmSettings:
    """What an operator says of all pools."""

    limits: Limits = field(default_factory=Limits)
    """Those of the warm pods: the service's default."""
    size: PoolSize = PoolSize()
    sizes: Mapping[str, PoolSize] = field(default_factory=dict[str, PoolSize])
    """By language and version, as in ``python 3.14``, where `size` is not meant."""
    window_s: float = 300.0
    """How long a load is provided for after it was last seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The warm pods of one runtime."""

    name: str
    """As a label has it."""
    settings: PodSettings
    image: str
    limits: Limits
    size: PoolSize
    spec: str
    """The hash of the spec of pods that are made today."""

    def fits(self, limits: Limits) -> bool:
        """Whether a program within `limits` can have one of its pods; the others travel with the program."""
        return (limits.memory_mb, limits.disk_mb) == (self.limits.memory_mb, self.limits.disk_mb)

    def holds(self, pod: Mapping[str, Any]) -> bool:
        """Whether the pod is one of it, made as it would be today."""
        labels = pod["metadata"]["labels"]
        return labels.get(manifests.POOL) == self.name and labels.get(manifests.SPEC) == self.spec

    def manifest(self, name: str, deadline_s: int = DEADLINE_S) -> dict[str, Any]:
        """Return that of a pod of it."""
        return manifests.warm_pod(name, self.settings, self.image, self.limits, self.name, deadline_s=deadline_s)


def pools(
    settings: PodSettings, warm: WarmSettings, images: Iterable[tuple[Runtime, str]]
) -> dict[tuple[str, str], Pool]:
    """Return the pool of each runtime, by language and version."""
    return {
        (runtime.lang, runtime.version): Pool(
            name=manifests.label_value(f"{runtime.lang}-{runtime.version}"),
            settings=settings,
            image=image,
            limits=warm.limits,
            size=warm.sizes.get(f"{runtime.lang} {runtime.version}", warm.size),
            spec=manifests.fingerprint(settings, image, warm.limits),
        )
        for runtime, image in images
    }


def waits(pod: Mapping[str, Any]) -> bool:
    """Whether its container runs, by Kubernetes' word, and nobody has asked for its end."""
    status = pod.get("status", {})
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())
    return status.get("phase") == "Running" and ready and not leaves(pod)


def leaves(pod: Mapping[str, Any]) -> bool:
    """Whether it is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def age_s(pod: Mapping[str, Any]) -> float:
    """Return how long ago the pod was made."""
    return (datetime.now(UTC) - datetime.fromisoformat(pod["metadata"]["creationTimestamp"])).total_seconds()


def deadline_s(pod: Mapping[str, Any], wall_s: float) -> int | None:
    """Return when Kubernetes is to end the pod, in s of its life, if it is to run a program now.

    None when that is later than it may live: what was said of its deadline can but be lessened.
    """
    wanted = math.ceil(max(0.0, age_s(pod)) + wall_s) + LONGER_S
    return wanted if wanted <= pod["spec"].get("activeDeadlineSeconds", 0) else None
