"""A worker that dies or stands still at one of its steps; `tests.cluster.mortal` forks it (`tests.e2e.forks`).

Theory of operation
===================
A step is a call of a method of the product's own classes, where it begins or where it has returned.  ``SIGNAL STEP
NTH``, as a line on standard input or in the environment as ``ARMED``, has the calls of that method counted from then
on, and the process sends itself the signal at the NTH of them, from 1: SIGKILL, or SIGSTOP, after which it goes on in
the middle of the step when it is continued.  It says ``armed`` then, ``woken`` when it goes on, and ``joined`` when
partitions were given to it.  A worker that is not armed is as any other.

Its programs print record by record, so that a tape can be written in part.

What shows that somebody is gone comes sooner than in the product, so that many cases take minutes: a member is missed
after `SESSION_MS`, sweeps come every `SWEEP_S`, and the pod_monitor looks at a lease for `WATCHED`.  What would hide a
loss is kept away: offsets are committed every `COMMIT_S`, so that little is delivered again; an end without a result
and a saga are not due before `LOOKED_AT`, and an execution that waits to be started is not looked at by itself.
"""

import asyncio
import itertools
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, replace
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

ARMED = "ARMED"
SESSION_MS, HEARTBEAT_MS = 3_000, 500
COMMIT_S, LINGER_S = 0.2, 0.6
SWEEP_S = 1.0
WATCHED = timedelta(seconds=1)
LOOKED_AT = timedelta(minutes=5)

Given = tuple[Any, ...]


@dataclass(frozen=True)
class Step:
    """A call of `method`, as it begins or, `after` it, as it has returned.

    ``counts`` looks at what the call was given and what it returned, None before it has.  A call of `stalls` does not
    return before the process goes on: so it is sure which of two that go side by side comes first.  One that `lingers`
    lets all else go on for `LINGER_S` before the signal, so that offsets are committed as far as they may be.
    """

    owner: type
    method: str
    after: bool = False
    counts: Callable[[Given, Any], bool] = lambda _given, _answer: True
    stalls: tuple[type, str] | None = None
    lingers: bool = False


def _tells(given: Given, _: Any) -> bool:
    """Whether a commit has messages."""
    return any(change.messages for change in given[0])


def _is_some(_: Given, answer: Any) -> bool:
    """Whether the call has found or got something."""
    return bool(answer)


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
    "place-taken": Step(RedisAdmissionQueue, "offer", after=True, counts=_is_some),
    "not-in-line": Step(RedisAdmissionQueue, "enqueue"),
    "granted": Step(RedisAdmissionQueue, "grant", after=True, counts=_is_some),
    "given-back": Step(RedisAdmissionQueue, "release", after=True),
    # k8s_worker
    "leased": Step(SimulatedPodRuntime, "start"),
    "started": Step(SimulatedPodRuntime, "start", after=True),
    "partly-written": Step(MongoTapeStore, "append", after=True, counts=_is_part),
    "written": Step(MongoTapeStore, "reached", after=True, counts=_is_some),
    "end-recorded": Step(PodMonitor, "finish", after=True),
    # pod_monitor, and whoever takes the place of a k8s_worker
    "found": Step(MongoExecutionStore, "due", after=True, counts=_is_some),
    "deferred": Step(MongoExecutionStore, "defer", after=True),
    "sealed": Step(MongoTapeStore, "seal", after=True),
}
"""The steps by name.  What is ``recorded`` is in the event store and not in Kafka, ``published`` the other way round;
what is ``told`` is in both, and in the outbox still."""


def arm(words: str) -> None:
    """Send the process a signal as ``SIGNAL STEP NTH`` says."""
    number, name, nth = words.split()
    step = STEPS[name]
    numbers = itertools.count(1)
    over = asyncio.Event()
    real = getattr(step.owner, step.method)

    async def passes(given: Given, answer: Any) -> None:
        if step.counts(given, answer) and next(numbers) == int(nth):
            if step.lingers:
                await asyncio.sleep(LINGER_S)
            os.kill(os.getpid(), signal.Signals[number])
            setattr(step.owner, step.method, real)
            over.set()
            print("woken", flush=True)

    async def counted(self: Any, *given: Any, **named: Any) -> Any:
        if not step.after:
            await passes(given, None)
        answer = await real(self, *given, **named)
        if step.after:
            await passes(given, answer)
        return answer

    setattr(step.owner, step.method, counted)
    if step.stalls is not None:
        _stall(*step.stalls, over)
    print("armed", flush=True)


def _stall(owner: type, method: str, over: asyncio.Event) -> None:
    """Hold up the calls of a method until all is `over`."""
    real = getattr(owner, method)

    async def stalled(self: Any, *given: Any, **named: Any) -> Any:
        await over.wait()
        setattr(owner, method, real)
        return await real(self, *given, **named)

    setattr(owner, method, stalled)


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


def listen() -> None:
    """Arm the process as standard input says; returns at its end."""
    rest = b""
    while data := os.read(0, 4096):  # a thread in the midst of `readline` would hold up the end of the process
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            arm(line.decode())


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


def main(argument: str) -> int:
    """Work as the role of that name until a signal."""
    role = Role(argument)
    hurry(role)
    tell_when_joined()
    if words := os.environ.get(ARMED):
        arm(words)
    threading.Thread(target=listen, daemon=True).start()
    return run(role, PodsProvider() if role is Role.K8S_WORKER else None)
