"""A cluster over real pods whose workers can be told to die or to stand still at a step."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtape.adapters.kubernetes.manifests import EXECUTION, OWNER
from runtape.domain.outcome import Status
from runtape.runtime.roles import Role
from tests.cluster.mortal import MortalCluster, MortalWorker, until_none
from tests.cluster.processes import Process
from tests.kubernetes import mortal_worker
from tests.kubernetes.plugin import PodCluster, named
from tests.kubernetes.survival import pods_of
from tests.rig.kubernetes.cluster import Kubernetes

PLACES = 10
"""How many runs are carried out at once."""
WARM = 2
"""How many pods wait, whatever the load."""


class MortalPodWorker(MortalWorker):
    """A process of `tests.kubernetes.mortal_worker`."""

    MODULE = mortal_worker.__name__


class MortalPodCluster(PodCluster, MortalCluster):
    """One process of the API, and two of every worker, over the pods of one namespace."""

    def __init__(self, folder: Path, kubernetes: Kubernetes) -> None:
        sizes = json.dumps({"python:3.11": {"least": WARM, "most": WARM}})
        super().__init__(
            folder, kubernetes, apis=1, running=PLACES, kubernetes__cpu="100m", kubernetes__warm__sizes=sizes
        )

    def worker(self, role: Role, **settings: str) -> Process:
        return self._begin(role, [role], kind=MortalPodWorker, **named(settings))

    def told_by(self, worker: MortalWorker) -> Sequence[str]:
        """Return the executions of a dead worker whose pods have ended, once there is one."""
        found: list[str] = []

        def none() -> bool:
            for pod in self.pods(owned_by(worker)):
                if pod["status"].get("phase") == "Succeeded":
                    found.append(pod["metadata"]["labels"][EXECUTION])
            return not found

        until_none(none, f"a pod of {worker.name} ends")
        return found

    def pods(self, selector: str) -> Sequence[Mapping[str, Any]]:
        """Return the pods that a selector finds."""

        async def find() -> Sequence[Mapping[str, Any]]:
            async with pods_of(self) as pods:
                return (await pods.list(selector)).pods

        return asyncio.run(find())

    def delete(self, found: Iterable[Mapping[str, Any]]) -> None:
        """Delete pods, as by hand."""

        async def delete() -> None:
            async with pods_of(self) as pods:
                for pod in found:
                    await pods.delete(pod["metadata"]["name"])

        asyncio.run(delete())

    def until_completed(self, ids: Sequence[str]) -> None:
        """Return once one of these executions has completed in its first attempt."""
        where = {"_id": {"$in": ids}, "status": Status.COMPLETED, "attempt": 1}
        with self.database_view() as view:
            until_none(lambda: not view.executions.count_documents(where), "what a pod has told is known")


def owned_by(worker: MortalWorker) -> str:
    """Return what finds the pods of a worker."""
    return f"{OWNER} in ({','.join(worker.owners)})"
