"""The whole application over real pods: workers that can be killed, and monitors that come after them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes_asyncio import client

from runtape.adapters.embedded.clock import SystemClock
from runtape.adapters.kubernetes.manifests import EXECUTION, PodSettings
from runtape.adapters.kubernetes.runtime import Image, KubernetesPods
from runtape.adapters.simulated import SimulatedPodRuntime
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.runtime.pod_watch import PodWatch
from tests.application.world import World, a_world
from tests.kubernetes.pods import LOOK_AGAIN_S

SOON_S = 120.0


class MortalPods(KubernetesPods):
    """Pods of a worker that can be gone from one moment to the next; its pods stay."""

    dead = False

    async def die(self) -> None:
        """Say and hear nothing any more."""
        self.dead = True
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._api.close()

    async def close(self) -> None:
        if not self.dead:
            await super().close()


@dataclass
class Place:
    """A namespace of a cluster, and a folder for the documents."""

    configuration: client.Configuration
    core: client.CoreV1Api
    namespace: str
    folder: Path
    image: Image

    @contextlib.asynccontextmanager
    async def worker(
        self, owner: str = "worker", configuration: Any = None, **settings: Any
    ) -> AsyncIterator["Living"]:
        """Let a process work in which all roles are; leaving it is its sudden death."""
        given = PodSettings(namespace=self.namespace, **{"pull_policy": "Never", "cpu": "250m", **settings})
        pods = MortalPods(configuration or self.configuration, given, [self.image], owner)
        clock: Any = SystemClock()
        await pods.open()

        def wrap(_: SimulatedPodRuntime) -> KubernetesPods:
            return pods

        async with a_world(self.folder, clock=clock, owner=owner, wrap_pods=wrap) as world:
            await world.start(alone=False)
            world.tasks.spawn(world.worker.extend_leases(), "leases")
            world.tasks.spawn(world.worker.tidy(), "tidy")
            try:
                yield Living(self, world, pods)
            finally:
                # It is killed: nobody removes its pods, and it says nothing to anybody.
                await world.tasks.close()
                await pods.die()

    @contextlib.asynccontextmanager
    async def monitor(self, world: World, me: str = "monitor", configuration: Any = None) -> AsyncIterator[PodWatch]:
        """Let a monitor look after the pods, over the documents of `world`."""
        watch = PodWatch(
            configuration or self.configuration,
            self.namespace,
            me=me,
            executions=world.stores.executions,
            tape=world.stores.tape,
            monitor=world.monitor,
            clock=world.clock,
        )
        task = asyncio.create_task(watch.run())
        try:
            yield watch
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await watch.close()

    async def pods(self) -> Sequence[Any]:
        """Return the pods of programs that there are."""
        found = await self.core.list_namespaced_pod(self.namespace, label_selector=EXECUTION)
        return found.items

    async def until(self, holds: Callable[[], Awaitable[bool]], within_s: float = SOON_S) -> float:
        """Return once `holds`, and how long that took."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with asyncio.timeout(within_s):
            while not await holds():  # noqa: ASYNC110
                await asyncio.sleep(LOOK_AGAIN_S)
        return loop.time() - began_s

    async def until_no_pods(self, within_s: float = SOON_S) -> float:
        async def none() -> bool:
            return not await self.pods()

        return await self.until(none, within_s)


@dataclass
class Living:
    """A process that works."""

    place: Place
    world: World
    pods: MortalPods

    async def submit(self, script: str, **changes: Any) -> ExecutionId:
        return await self.world.submit(script, lang="bash", **changes)

    async def until_printed(self, execution_id: ExecutionId, data: bytes, attempt: int = 1) -> None:
        async def printed() -> bool:
            return (await self.world.printed(execution_id, attempt)).startswith(data)

        await self.place.until(printed)

    async def until_stored(self, execution_id: ExecutionId, within_s: float = SOON_S) -> Execution:
        async def stored() -> bool:
            return (await self.world.get(execution_id)).result is not None

        await self.place.until(stored, within_s)
        return await self.world.get(execution_id)

    async def until_attempt(self, execution_id: ExecutionId, attempt: int) -> None:
        async def begun() -> bool:
            return (await self.world.get(execution_id)).attempt >= attempt

        await self.place.until(begun)


def reasons(execution: Execution) -> list[str]:
    """Why there was another attempt, each time."""
    return [each.reason or "" for each in execution.history if each.type == "execution.restarted"]
