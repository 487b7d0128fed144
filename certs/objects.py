"""Objects of Kubernetes as files describe them, and the one way in which they get to a cluster: server-side apply."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml
from kubernetes_asyncio import client

MANIFESTS: Final = Path(__file__).parents[1] / "deploy" / "kubernetes"
PROGRAMS: Final = "runtape-programs"
"""The namespace of programs, as the files name it."""
SERVICE: Final = "runtape"
"""The namespace of the service, as the files name it."""
TIMEOUT_S: Final = 30.0
_OWNER: Final = "runtape"
"""Of the fields that are applied."""
_KUSTOMIZATION: Final = "kustomization.yaml"
_PLACES: Final = {
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ConfigMap": "api/v1/namespaces/{namespace}/configmaps",
    "DaemonSet": "apis/apps/v1/namespaces/{namespace}/daemonsets",
    "Deployment": "apis/apps/v1/namespaces/{namespace}/deployments",
    "Job": "apis/batch/v1/namespaces/{namespace}/jobs",
    "LimitRange": "api/v1/namespaces/{namespace}/limitranges",
    "Namespace": "api/v1/namespaces",
    "NetworkPolicy": "apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    "PodDisruptionBudget": "apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "PriorityClass": "apis/scheduling.k8s.io/v1/priorityclasses",
    "ResourceQuota": "api/v1/namespaces/{namespace}/resourcequotas",
    "Role": "apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "RuntimeClass": "apis/node.k8s.io/v1/runtimeclasses",
    "Service": "api/v1/namespaces/{namespace}/services",
    "ServiceAccount": "api/v1/namespaces/{namespace}/serviceaccounts",
}


class Refused(Exception):
    """The cluster does not do what it was asked, or does not answer; the message says why."""


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization and of those that it takes in, in its order.

    What else a kustomization says (names of images) is left to kustomize.
    """
    found: list[dict[str, Any]] = []
    for name in yaml.safe_load((folder / _KUSTOMIZATION).read_text())["resources"]:
        path = (folder / name).resolve()
        found += read(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    return found


def of_kinds(objects: Iterable[dict[str, Any]], kinds: Iterable[str]) -> list[dict[str, Any]]:
    """Return those of `objects` that are of one of the `kinds`."""
    wanted = set(kinds)
    return [each for each in objects if each["kind"] in wanted]


def renamed(objects: Iterable[dict[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the objects in other namespaces: `names` maps those of the files to those of an installation."""

    def put(value: Any, key: str | None = None) -> Any:
        if isinstance(value, dict):
            is_namespace = value.get("kind") == "Namespace"
            return {
                name: {**put(each), "name": names.get(each["name"], each["name"])}
                if is_namespace and name == "metadata"
                else put(each, name)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [put(each) for each in value]
        return names.get(value, value) if key == "namespace" else value

    return [put(each) for each in objects]


def path_of(thing: Mapping[str, Any]) -> str:
    """Return the path of an object in the API.  Raises: KeyError, when it is of a kind that no file here has."""
    place = _PLACES[thing["kind"]].format(namespace=thing["metadata"].get("namespace", ""))
    return f"/{place}/{thing['metadata']['name']}"


async def asked(api: client.ApiClient, method: str, path: str, body: Any = None, **query: str) -> dict[str, Any]:
    """Return what the cluster answers.  Raises: Refused."""
    kind = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
    call: Any = api.call_api(
        path,
        method,
        query_params=[*query.items()],
        header_params={"Content-Type": kind, "Accept": "application/json"},
        body=body,
        auth_settings=["BearerToken"],
        _preload_content=False,
        _request_timeout=TIMEOUT_S,
    )
    try:
        async with await call as answer:
            words = await answer.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Refused(f"{api.configuration.host} does not answer: {error or type(error).__name__}") from error
    try:
        said = json.loads(words)
    except ValueError:
        said = {"message": words[:200].decode(errors="replace")}
    if answer.status >= 300:
        raise Refused(f"{method} {path}: {answer.status} {said.get('message', '')}")
    return said


async def apply(api: client.ApiClient, thing: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
    """Make the object as it is described, or change it to that; return what is there now, or would be.

    Fields that no API knows are refused.  Raises: Refused; KeyError.
    """
    query = {"fieldManager": _OWNER, "force": "true", "fieldValidation": "Strict"}
    if dry_run:
        query["dryRun"] = "All"
    return await asked(api, "PATCH", path_of(thing), thing, **query)
