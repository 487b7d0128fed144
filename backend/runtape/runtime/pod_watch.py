"""The pod_monitor over a cluster's pods: watches all of them, and looks after its share."""

import asyncio
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
        self._reaper = Reaper(
            pods=self._pods, executions=executions, tape=tape, monitor=monitor, clock=clock, concerns=self._is_ours
        )

    async def run(self) -> None:
        """Watch the pods, and reap those of the partitions that are held; runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pods.run())
            group.create_task(self._partitions.run(_hold))
            group.create_task(self._reaper.run())

    async def close(self) -> None:
        """Close the connections."""
        await self._pods.close()
        await self._leases.close()

    def _is_ours(self, execution_id: ExecutionId) -> bool:
        return partition_of(execution_id, PARTITIONS) in self._partitions.held


async def _hold(partition: int) -> None:
    """Be the work of a partition: one reaper looks after all that are held, as it reads documents for all of them."""
    await asyncio.Event().wait()
