"""What the tests of this folder do with the Kubernetes that they share."""

import gc
from collections.abc import AsyncIterator, Iterator

import pytest
from kubernetes_asyncio import client

from runtape.adapters.kubernetes.runtime import Image
from runtape.adapters.sandbox.runtimes import in_image
from tests.kubernetes import image
from tests.kubernetes.pods import a_namespace, connected
from tests.kubernetes.waiting import VERSION
from tests.rig.given import GivenKubernetes
from tests.rig.kubernetes.cluster import Kubernetes


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect connections whose TLS was not shut down when their loop was closed, so that no other test meets them."""
    yield
    gc.collect()


@pytest.fixture
async def api(kubernetes: Kubernetes | GivenKubernetes) -> AsyncIterator[client.CoreV1Api]:
    """The API, as its administrator."""
    async with connected(kubernetes.kubeconfig) as connection:
        yield client.CoreV1Api(connection)


@pytest.fixture
async def namespace(api: client.CoreV1Api, kubernetes: Kubernetes | GivenKubernetes) -> str:
    """A namespace of the test's own."""
    return await a_namespace(api, kubernetes.scope)


@pytest.fixture(scope="session")
def bash(kubernetes: Kubernetes) -> Image:
    """The image, in the cluster."""
    kubernetes.containerd.take(image.archive(image.BASH))
    return Image(image.BASH.reference, in_image("bash", VERSION, "/usr/bin/bash"))
