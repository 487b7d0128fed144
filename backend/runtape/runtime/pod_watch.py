"""The pod_monitor over a cluster's pods: watches all of them, and looks after its share."""

import asyncio
from collections.abc import Callable
from typing import Final

from kubernetes_asyncio import client

from runtape.adapters.kubernetes.leases import Leases, Partitions
from runtape.adapters.kubernetes.placed import ClusterPods
from runtape.application.monitoring import PodMonitor
from runtape.application.reaping import Reaper, partition_of
from runtape.domain.ids import ExecutionId
from runtape.ports.clock import Clock
from runtape.ports.stores import ExecutionStore, TapeStore

GROUP: Final = "runtape-monitor"
"""What the Lease objects of the partitions are called, each with its number."""
PARTITIONS: Final = 8
"""Into how many the executions are divided; as many monitors can share them.  All monitors have to agree on it."""


class PodWatch:
    """Reaps the pods of one namespace beside others who do the same; `close` ends its connections."""

    def __init__(
        self,
        configuration: client.Configuration,
        namespace: str,
        *,
        me: str,
        executions: ExecutionStore,
        tape: TapeStore,
        monitor: PodMonitor,
        clock: Clock,
    ) -> None:
        """Prepare; `me` is unique to this process."""
        self._leases = Leases(configuration, namespace)
        self._partitions = Partitions(self._leases, GROUP, PARTITIONS, me)
        self._pods = ClusterPods(configuration, namespace, self._is_ours)
        self._executions = executions
        self._tape = tape
        self._monitor = monitor
        self._clock = clock

    async def run(self) -> None:
        """Watch the pods, and reap those of the partitions that are held; runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pods.run())
            group.create_task(self._partitions.run(self._reap))

    async def close(self) -> None:
        """Close the connections."""
        await self._pods.close()
        await self._leases.close()

    async def _reap(self, partition: int) -> None:
        await self._reaper(lambda execution_id: partition_of(execution_id, PARTITIONS) == partition).run()

    def _reaper(self, concerns: Callable[[ExecutionId], bool]) -> Reaper:
        return Reaper(
            pods=self._pods,
            executions=self._executions,
            tape=self._tape,
            monitor=self._monitor,
            clock=self._clock,
            concerns=concerns,
        )

    def _is_ours(self, execution_id: ExecutionId) -> bool:
        return partition_of(execution_id, PARTITIONS) in self._partitions.held
