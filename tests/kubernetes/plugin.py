"""One Kubernetes for all tests that a process runs over it; `pytest_plugins` of tests/conftest.py names this module."""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client

from runtape.runtime.roles import Role
from tests.cluster.plugin import running
from tests.cluster.processes import Cluster, Process
from tests.kubernetes import image
from tests.kubernetes.pods import a_namespace, connected
from tests.rig.choice import a_kubernetes
from tests.rig.given import GivenKubernetes
from tests.rig.kubernetes.cluster import Kubernetes

CPU = "200m"
"""How many processors a program has."""


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes | GivenKubernetes]:
    cluster = a_kubernetes(tmp_path_factory.mktemp("kubernetes"))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


class PodCluster(Cluster):
    """A cluster whose programs run in pods of one `namespace`; `settings` are more of all its processes."""

    def __init__(
        self, folder: Path, kubernetes: Kubernetes, *, apis: int = 2, each: int = 2, running: int = 4, **settings: str
    ) -> None:
        super().__init__(folder, apis=apis, each=each, running=running)
        self._kubernetes = kubernetes
        self._settings = named(settings)
        self.namespace = ""

    @property
    def kubeconfig(self) -> Path:
        """How to be the administrator."""
        return self._kubernetes.kubeconfig

    def begin(self) -> None:
        super().begin()
        for recipe, _ in image.BINARIES.values():
            self._kubernetes.containerd.take(image.archive(recipe))
        self.namespace = asyncio.run(self._made())

    async def _made(self) -> str:
        async with connected(self._kubernetes.kubeconfig) as connection:
            return await a_namespace(client.CoreV1Api(connection), self._kubernetes.scope)

    def worker(self, role: Role, **settings: str) -> Process:
        return self._begin(role, [sys.executable, "-m", f"workers.{role}"], **named(settings))

    def _begin(
        self, name: str, command: Sequence[str], kind: type[Process] = Process, url: str = "", **more: str
    ) -> Process:
        return super()._begin(name, command, kind, url, **{**self._environment(), **more})

    def _environment(self) -> dict[str, Any]:
        """Return what every process is told of Kubernetes, as in a deployment."""
        images = {
            name: {"reference": recipe.reference, "binary": binary} for name, (recipe, binary) in image.BINARIES.items()
        }
        return {
            "RUNTAPE_WORKER__PODS": "kubernetes",
            "RUNTAPE_KUBERNETES__KUBECONFIG": str(self._kubernetes.kubeconfig),
            "RUNTAPE_KUBERNETES__NAMESPACE": self.namespace,
            "RUNTAPE_KUBERNETES__IMAGES": json.dumps(images),
            "RUNTAPE_KUBERNETES__PULL_POLICY": "Never",
            "RUNTAPE_KUBERNETES__CPU": CPU,
            "RUNTAPE_KUBERNETES__WARM__LEAST": "0",
            "RUNTAPE_KUBERNETES__WARM__MOST": "0",
            "RUNTAPE_KUBERNETES__WARM__SIZES": json.dumps({"python:3.11": {"least": 1, "most": 2}}),
            **self._settings,
        }


def named(settings: Mapping[str, str]) -> dict[str, Any]:
    """Return settings as variables of an environment."""
    return {f"RUNTAPE_{name.upper()}": value for name, value in settings.items()}


@pytest.fixture(scope="session")
def podded(kubernetes: Kubernetes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodCluster]:
    """A cluster whose programs run in pods, which the whole session shares."""
    with running(PodCluster(tmp_path_factory.mktemp("podded"), kubernetes)) as cluster:
        yield cluster
