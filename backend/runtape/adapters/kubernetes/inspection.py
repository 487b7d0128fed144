"""What the API says of pods and nodes, for whoever looks from outside and changes nothing."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp
import msgspec
from kubernetes_asyncio import client

from runtape.adapters.kubernetes import manifests
from runtape.adapters.kubernetes.api import Forbidden
from runtape.ports.errors import Transient, Unavailable

_TIMEOUT_S: Final = 10.0
_FORBIDDEN: Final = (401, 403)
_KINDS: Final = ("pods", "secrets", "configmaps", "persistentvolumeclaims")
"""What could be made for a program, and so be left."""


class Inspection:
    """Reads of one namespace and of the nodes; `close` ends its connections.

    All reads raise Transient when the API does not answer them, and Forbidden.
    """

    def __init__(self, configuration: client.Configuration, namespace: str) -> None:
        self.server = str(configuration.host)
        self._namespace = namespace
        self._client = client.ApiClient(configuration)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def pod_of(self, execution_id: str) -> Mapping[str, Any] | None:
        """Return the manifest, with its status, of the pod of an execution; None when it has none."""
        found = await self._list("pods", f"{manifests.EXECUTION}={execution_id}")
        return found[0] if found else None

    async def owned(self, owner: str) -> list[str]:
        """Return everything that was made for the programs of `owner` and is there, each as ``pod exec-1-1``."""
        found: list[str] = []
        for kind in _KINDS:
            listed = await self._list(kind, f"{manifests.OWNER}={owner}")
            found += [f"{kind.removesuffix('s')} {each['metadata']['name']}" for each in listed]
        return found

    async def executions(self, owner: str) -> dict[str, str]:
        """Return the pods of `owner` by the execution that they are for."""
        listed = await self._list("pods", f"{manifests.OWNER}={owner}")
        return {each["metadata"]["labels"].get(manifests.EXECUTION, ""): each["metadata"]["name"] for each in listed}

    async def policies(self) -> int:
        """Return how many network policies the namespace has."""
        return len(
            (await self._get(f"/apis/networking.k8s.io/v1/namespaces/{self._namespace}/networkpolicies"))["items"]
        )

    async def version(self) -> str:
        """Return the version of Kubernetes."""
        return (await self._get("/version"))["gitVersion"]

    async def node(self, name: str) -> Mapping[str, Any]:
        """Return a node."""
        return await self._get(f"/api/v1/nodes/{name}")

    async def running_on(self, node: str) -> list[str]:
        """Return the pods of the namespace that have containers on a node, whatever the API knows of them.

        The kubelet answers, through the API, out of its container runtime.
        """
        listed = await self._get(f"/api/v1/nodes/{node}/proxy/runningpods/")
        names = [each["metadata"] for each in listed["items"] or ()]
        return [each["name"] for each in names if each["namespace"] == self._namespace]

    async def service_address(self) -> str:
        """Return the address at which pods are told to find the API."""
        return (await self._get("/api/v1/namespaces/default/services/kubernetes"))["spec"]["clusterIP"]

    async def _list(self, kind: str, selector: str) -> Sequence[Mapping[str, Any]]:
        listed = await self._get(f"/api/v1/namespaces/{self._namespace}/{kind}", labelSelector=selector)
        return listed["items"]

    async def _get(self, path: str, **query: str) -> Any:
        call: Any = self._client.call_api(
            path, "GET", query_params=[*query.items()], auth_settings=["BearerToken"], _preload_content=False
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                async with await call as answer:
                    said = await answer.read()
                    status: int = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"Kubernetes does not answer: {error or type(error).__name__}") from error
        if status in _FORBIDDEN:
            raise Forbidden(f"GET {path} answers {status}")
        if status >= 300:
            raise Transient(f"GET {path} answers {status}: {said[:200].decode(errors='replace')}")
        return msgspec.json.decode(said)
