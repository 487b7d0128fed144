"""Pods keep the contract of the port, on a real cluster."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from kubernetes_asyncio import client, config

from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.runtime import Image, KubernetesPods
from runtape.ports.pod_runtime import PodRuntime
from tests.contract import test_pod_runtime as suite
from tests.contract.test_pod_runtime import PodRuntimeContract, Program
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
VERSION = "5.2"


class TestKubernetesPods(PodRuntimeContract):
    """Each program in a pod that is made for it."""

    soon_s = 4.0

    @pytest.fixture(autouse=True)
    def _place(self, kubernetes: Kubernetes, namespace: str, bash: Image) -> None:
        self._kubeconfig = kubernetes.kubeconfig
        self._settings = PodSettings(namespace=namespace, pull_policy="Never", cpu="250m")
        self._image = bash

    def make(self, tmp_path: Path) -> AbstractAsyncContextManager[PodRuntime]:
        @asynccontextmanager
        async def made() -> AsyncIterator[PodRuntime]:
            configuration = client.Configuration()
            await config.load_kube_config(str(self._kubeconfig), client_configuration=configuration)
            async with KubernetesPods(configuration, self._settings, [self._image], "worker") as pods:
                yield pods

        return made()

    def program(self, kind: Program) -> tuple[str, str, str]:
        return "bash", VERSION, suite.TestLocalSandbox.SCRIPTS[kind]
