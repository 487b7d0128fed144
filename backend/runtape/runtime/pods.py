"""Where a cluster's programs run: the settings of pods."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from runtape.runtime.parts import Section

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_CPU = re.compile(r"\d+m|\d+(\.\d{1,3})?")
_REFERENCE = re.compile(  # distribution/reference: a registry, a path, and a tag or a digest
    r"([a-zA-Z0-9][a-zA-Z0-9.-]*(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[a-zA-Z0-9_][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_RUNTIME = re.compile(r"[a-z+]+:\d+(\.\d+)*", re.ASCII)


class ImageSettings(Section):
    """An image that has a language in one version, and the product's runner (deploy/images)."""

    reference: str = Field(min_length=1, description="what the nodes pull")
    binary: str = Field(pattern="^/", description="the executable in it, as an absolute path")


class PoolSettings(Section):
    """How many pods of a runtime wait, whatever the load."""

    least: int = Field(default=1, ge=0, le=1000, description="pods that wait when nobody runs anything")
    most: int = Field(default=10, ge=0, le=1000, description="pods that wait at most, however many are asked for")


class WarmSettings(PoolSettings):
    """Pods that wait for the next programs, for each runtime."""

    window_s: float = Field(default=300.0, gt=0, description="how long a load is provided for after it was seen, s")
    sizes: dict[str, PoolSettings] = Field(
        default={}, description="of runtimes of which more or fewer are to wait, by language and version (python:3.13)"
    )


class KubernetesSettings(Section):
    """Pods, where ``worker.pods`` is ``kubernetes``."""

    kubeconfig: Path | None = Field(
        default=None, description="the file that says which cluster and as whom; unset: the one that this pod is in"
    )
    namespace: str = Field(default="runtape-programs", description="where pods are made, and nothing else is")
    image_prefix: str = Field(default="runtape/", description="what <lang>:<version> follows in an image's name")
    images: dict[str, ImageSettings] = Field(
        default={}, description="images by language and version (python:3.13); unset: all that have a recipe"
    )
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field(
        default="IfNotPresent", description="when a node pulls an image"
    )
    cpu: str = Field(default="1", description="what a program may use at once, in processors: 2, 0.5 or 500m")
    runtime_class: str | None = Field(default=None, description="the RuntimeClass of pods, gvisor for one")
    priority_class: str | None = Field(default=None, description="the PriorityClass of pods")
    user_namespaces: bool = Field(
        default=False,
        description="whether pods have user namespaces of their own, which nodes must be able to make",
    )
    require_network_policy: bool = Field(
        default=False, description="whether to run nothing where no NetworkPolicy is seen to keep pods from the network"
    )
    warm: WarmSettings = WarmSettings()

    def problems(self) -> Iterator[str]:
        """Yield what cannot be so."""
        if not _NAMESPACE.fullmatch(self.namespace):
            yield "kubernetes.namespace is no name of a namespace: up to 63 of a-z, 0-9 and -"
        if not _CPU.fullmatch(self.cpu):
            yield "kubernetes.cpu is no number of processors: it looks like 2, 0.5 or 500m"
        if self.kubeconfig is not None and not self.kubeconfig.is_file():
            yield f"kubernetes.kubeconfig: there is no file {self.kubeconfig}"
        for setting, names in (("images", self.images), ("warm.sizes", self.warm.sizes)):
            for name in names:
                if not _RUNTIME.fullmatch(name):
                    yield f"kubernetes.{setting}: {name} is no language with its version: it looks like python:3.13"
        for pool in (self.warm, *self.warm.sizes.values()):
            if pool.least > pool.most:
                yield f"kubernetes.warm: at least {pool.least} pods are to wait, and at most {pool.most}"
        references = [image.reference for image in self.images.values()] or [f"{self.image_prefix}python:3.13"]
        for reference in references:
            if not _REFERENCE.fullmatch(reference):
                yield f"kubernetes.images: {reference!a} is no reference of an image: it looks like runtape/python:3.13"
