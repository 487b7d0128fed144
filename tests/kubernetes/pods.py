"""Pods as a cluster runs programs in, with no right that they can do without, and what tests do with them."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from kubernetes_asyncio import client, config
from kubernetes_asyncio.stream import WsApiClient

C = TypeVar("C", bound=client.ApiClient)

LOOK_AGAIN_S = 0.05
SOON_S = 60.0
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@contextlib.asynccontextmanager
async def connected(kubeconfig: Path, kind: type[C] = client.ApiClient) -> AsyncIterator[C]:
    """Connect as whom the file names."""
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    async with kind(configuration) as connection:
        yield connection


def a_pod(image: str, command: Sequence[str]) -> Any:
    """Return a pod called ``pod`` that runs the command once, and may write to /tmp alone."""
    resources = {"memory": "64Mi", "cpu": "250m"}
    return {
        "metadata": {"name": "pod"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "activeDeadlineSeconds": 120,
            "dnsPolicy": "Default",
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": list(command),
                    "resources": {"limits": resources, "requests": resources},
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65534,
                        "runAsGroup": 65534,
                        "readOnlyRootFilesystem": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}],
        },
    }


async def eventually(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Return what `ask` answers, once that is something; meanwhile the API may refuse, or not be there."""
    deadline = time.monotonic() + SOON_S
    while True:
        trouble: Exception | None = None
        try:
            if answer := await ask():
                return answer
        except (client.ApiException, aiohttp.ClientError, TimeoutError) as error:
            trouble = error
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing came within {SOON_S:g} s") from trouble
        await asyncio.sleep(LOOK_AGAIN_S)


async def a_namespace(api: client.CoreV1Api, scope: str) -> str:
    """Make a namespace for restricted pods, and return its name once pods can be made there."""
    name = f"{scope or 'test'}-{os.urandom(4).hex()}"
    namespace: Any = {"metadata": {"name": name, "labels": RESTRICTED}}

    async def made() -> bool:
        try:
            await api.create_namespace(namespace)
        except client.ApiException as error:
            if error.status != 409:  # an answer may have been lost
                raise
        return True

    await eventually(made)
    await eventually(lambda: api.read_namespaced_service_account("default", name))
    return name


async def started(api: client.CoreV1Api, namespace: str, pod: Any) -> None:
    """Make the pod and return when it runs."""
    await api.create_namespaced_pod(namespace, pod)
    await in_phase(api, namespace, "Running")


async def ended(api: client.CoreV1Api, namespace: str) -> Any:
    """Return the pod when it has ended well."""
    return await in_phase(api, namespace, "Succeeded")


async def in_phase(api: client.CoreV1Api, namespace: str, phase: str) -> Any:
    """Return the pod when it is in that phase.  Raises: AssertionError, when it has ended in another."""

    async def reached() -> Any:
        found = await api.read_namespaced_pod("pod", namespace)
        assert found.status.phase in ("Pending", "Running", phase), found.status
        return found if found.status.phase == phase else None

    return await eventually(reached)


async def log_of(api: client.CoreV1Api, namespace: str) -> bytes:
    """Return what the pod has printed, as bytes: the client would parse what looks like JSON."""
    answer: Any = await api.read_namespaced_pod_log("pod", namespace, _preload_content=False)
    return await answer.read()


async def run_in(kubeconfig: Path, namespace: str, command: Sequence[str]) -> str:
    """Run a command in the pod's container, and return what it has printed."""
    words: Any = list(command)  # each is said by itself; the client's own types know of one
    async with connected(kubeconfig, WsApiClient) as connection:
        return await client.CoreV1Api(connection).connect_get_namespaced_pod_exec(
            "pod", namespace, command=words, stdout=True, stderr=True
        )
