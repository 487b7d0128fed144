"""A worker that dies or stands still at one of its steps; `tests.cluster.mortal` forks it (`tests.e2e.forks`).

Which steps there are is here, and how it is armed with them in `tests.cluster.arming`.  It says ``joined`` when
partitions were given to it.  A worker that is not armed is as any other.

Its programs print record by record, so that a tape can be written in part.

What shows that somebody is gone comes sooner than in the product, so that many cases take minutes: a member is missed
after `SESSION_MS`, sweeps come every `SWEEP_S`, and the pod_monitor looks at a lease for `WATCHED`.  What would hide a
loss is kept away: offsets are committed every `COMMIT_S`, so that little is delivered again; an end without a result
and a saga are not due before `LOOKED_AT`, and an execution that waits to be started is not looked at by itself.
"""

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from aiokafka import TopicPartition
from dishka import Provider, Scope, provide

from runtape.adapters.kafka import log as kafka_log
from runtape.adapters.kafka.producer import Producer
from runtape.adapters.mongo.documents import MongoExecutionStore, MongoUnitOfWork
from runtape.adapters.mongo.events import EventRows
from runtape.adapters.mongo.outbox import MongoOutbox
from runtape.adapters.mongo.tape import MongoTapeStore
from runtape.adapters.redis.admission import RedisAdmissionQueue
from runtape.adapters.simulated import SimulatedPodRuntime
from runtape.application import relaying, running, sweeping
from runtape.application.monitoring import PodMonitor
from runtape.domain import execution, saga
from runtape.domain.execution import Execution
from runtape.domain.tape import Record
from runtape.ports.pod_runtime import PodKey, PodRuntime
from runtape.runtime.cluster_process import run
from runtape.runtime.dispatcher import Dispatcher
from runtape.runtime.roles import Role
from tests.cluster.arming import Given, Step, is_some, listen

SESSION_MS, HEARTBEAT_MS = 3_000, 500
COMMIT_S = 0.2
SWEEP_S = 1.0
WATCHED = timedelta(seconds=1)
LOOKED_AT = timedelta(minutes=5)


def _tells(given: Given, _: Any) -> bool:
    """Whether a commit has messages."""
    return any(change.messages for change in given[0])


def _is_part(given: Given, _: Any) -> bool:
    """Whether an append was the second record of a tape, which has more than that."""
    return given[1][-1].seq == 2


STEPS: Mapping[str, Step] = {
    "fetched": Step(Dispatcher, "dispatch", lingers=True),
    "not-committed": Step(MongoUnitOfWork, "commit", lingers=True),
    "committed": Step(MongoUnitOfWork, "commit", after=True, counts=_tells),
    "recorded": Step(EventRows, "append", after=True, stalls=(Producer, "publish")),
    "published": Step(Producer, "publish", after=True, stalls=(EventRows, "append")),
    "told": Step(MongoOutbox, "remove"),
    "handled": Step(Dispatcher, "dispatch", after=True),
    # saga_orchestrator
    "place-taken": Step(RedisAdmissionQueue, "offer", after=True, counts=is_some),
    "not-in-line": Step(RedisAdmissionQueue, "enqueue"),
    "granted": Step(RedisAdmissionQueue, "grant", after=True, counts=is_some),
    "given-back": Step(RedisAdmissionQueue, "release", after=True),
    # k8s_worker
    "leased": Step(SimulatedPodRuntime, "start"),
    "started": Step(SimulatedPodRuntime, "start", after=True),
    "partly-written": Step(MongoTapeStore, "append", after=True, counts=_is_part),
    "written": Step(MongoTapeStore, "reached", after=True, counts=is_some),
    "end-recorded": Step(PodMonitor, "finish", after=True),
    # pod_monitor, and whoever takes the place of a k8s_worker
    "found": Step(MongoExecutionStore, "due", after=True, counts=is_some),
    "deferred": Step(MongoExecutionStore, "defer", after=True),
    "sealed": Step(MongoTapeStore, "seal", after=True),
}
"""The steps by name.  What is ``recorded`` is in the event store and not in Kafka, ``published`` the other way round;
what is ``told`` is in both, and in the outbox still."""


def hurry(role: Role) -> None:
    """Let it be noticed soon that somebody is gone, and nothing else help."""
    kafka_log.SESSION_MS, kafka_log.HEARTBEAT_MS, kafka_log.COMMIT_S = SESSION_MS, HEARTBEAT_MS, COMMIT_S
    relaying.SWEEP_INTERVAL_S = sweeping.SWEEP_INTERVAL_S = SWEEP_S
    execution.RESULT_DUE = LOOKED_AT
    saga.DEADLINES = {step: replace(deadline, after=LOOKED_AT) for step, deadline in saga.DEADLINES.items()}
    sweeping.Sweeper._request_again = _leave  # pyright: ignore[reportPrivateUsage]
    if role is Role.POD_MONITOR:  # it holds no leases, it looks at them
        running.LEASE_TTL = WATCHED
        sweeping.LEASE_GRACE = timedelta()  # pyright: ignore[reportPrivateImportUsage]  # its own copy


async def _leave(self: sweeping.Sweeper, execution: Execution) -> None:
    """Do not ask again for an execution."""


def tell_when_joined() -> None:
    """Say ``joined`` whenever partitions are given to this process."""
    member = kafka_log._Member  # pyright: ignore[reportPrivateUsage]
    take = member.on_partitions_assigned

    async def told(self: Any, assigned: Collection[TopicPartition]) -> None:
        await take(self, assigned)
        if assigned:
            print("joined", flush=True)

    member.on_partitions_assigned = told


class TricklingPods(SimulatedPodRuntime):
    """Pods that give one record at a time."""

    async def records(self, key: PodKey, after_seq: int = 0) -> AsyncIterator[tuple[Record, ...]]:
        async for batch in super().records(key, after_seq):
            for record in batch:
                yield (record,)


class PodsProvider(Provider):
    scope = Scope.APP

    @provide
    async def pods(self) -> PodRuntime:
        return TricklingPods()


def work(role: Role, steps: Mapping[str, Step], pods: Provider | None) -> int:
    """Work as `role` until a signal; it can be armed with `steps`."""
    hurry(role)
    tell_when_joined()
    listen(steps)
    return run(role, pods)


def main(argument: str) -> int:
    """Work as the role of that name until a signal."""
    role = Role(argument)
    return work(role, STEPS, PodsProvider() if role is Role.K8S_WORKER else None)
