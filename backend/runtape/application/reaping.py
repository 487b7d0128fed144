"""Pods that nobody looks after any more, and executions whose pod is gone.

Theory of operation.  A worker tells the end of each of its pods and removes it, mostly at once.  The reaper looks at
what stays as it is for longer than that takes: pods that have ended, cannot begin or are being deleted after `GRACE_S`,
running ones every `LOOK_S`, and executions whose attempt is live without a pod.

* An attempt that is over needs no pod: it is deleted, and by force when that does not end.
* The end that a pod has told is recorded for its worker if nothing is missing: then it makes no difference who does.
* Else the worker may be bringing it home, and its lease tells whether it lives.  A lease counts as left alone once it
  has run out by the wall clock and was seen unchanged meanwhile by this process's own monotonic one: for half of its
  time, in which an extension should have come, where the pod has ended, and so nothing of it runs; for as long as a
  lease lasts, with its grace, where a program may run, which is dead then, wherever its node is.

Nothing is lost when two processes do this at once: each write is conditional.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from typing import Final

import structlog

from runtape.application.monitoring import PodMonitor
from runtape.domain.events import Lease
from runtape.domain.execution import LEASE_GRACE, Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import OUTPUT_LOST, Outcome, OutcomeKind, Status
from runtape.ports.clock import Clock
from runtape.ports.errors import Transient
from runtape.ports.placed_pods import PlacedPod, PlacedPods, PodState, Told
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import ExecutionFilter, ExecutionStore, TapeStore

log = structlog.get_logger(__name__)

ROUND_S: Final = 2.0
GRACE_S: Final = 3.0
LOOK_S: Final = 30.0
LIST_S: Final = 15.0
"""How often live executions are looked at for those without a pod."""
STUCK_S: Final = 20.0
"""How long a pod may take to go once it was told to, before it is forgotten by force."""
PAGE: Final = 200
AT_ONCE: Final = 16

POD_LOST: Final = Outcome(
    kind=OutcomeKind.SANDBOX_ERROR,
    reason="pod_lost",
    message="the pod was gone, and its worker too, before the program's end was told",
)
_OUTPUT_LOST: Final = replace(POD_LOST, reason=OUTPUT_LOST, message="the pod was gone before all output was taken")
_WORKER_LOST: Final = replace(
    POD_LOST, reason="worker_lost", message="the program had ended, and its worker was gone before all was taken"
)


class Verdict(Enum):
    """What is to be done about a pod, or about an attempt that has none."""

    LEAVE = "leave"
    DELETE = "delete"
    FINISH = "finish"
    LOSE = "lose"


@dataclass(slots=True)
class Notice:
    """Since when a pod, or an attempt without one, is as it is; all times are monotonic."""

    key: PodKey
    since_s: float
    look_at_s: float
    pod: PlacedPod | None = None
    leaving_since_s: float | None = None
    lease: Lease | None = None
    lease_since_s: float = 0.0
    over: bool = False


def partition_of(execution_id: ExecutionId, count: int) -> int:
    """Return which of `count` partitions an execution is in."""
    return zlib.crc32(execution_id.encode()) % count


def judge(
    pod: PlacedPod | None,
    key: PodKey,
    execution: Execution | None,
    *,
    complete: bool,
    still: timedelta,
    overdue: bool,
    lease_ttl: timedelta,
) -> Verdict:
    """Return what is to be done about the pod of an attempt; None: it has none.

    `complete` says that its end was told and nothing is missing, `still` for how long the attempt's lease was seen as
    it is, and `overdue` that it has run out by the wall clock.
    """
    if is_over(execution, key):
        return Verdict.LEAVE if pod is None else Verdict.DELETE
    if execution is None or execution.attempt != key.attempt:
        return Verdict.LEAVE  # somebody is ahead of what is stored
    if complete:
        return Verdict.FINISH
    if pod is not None and _may_go_on(pod):
        return Verdict.LEAVE
    nothing_runs = pod is not None and pod.state is PodState.ENDED
    alone_after = lease_ttl / 2 if nothing_runs else lease_ttl + LEASE_GRACE
    return Verdict.LOSE if overdue and still >= alone_after else Verdict.LEAVE


def is_over(execution: Execution | None, key: PodKey) -> bool:
    """Whether an attempt needs no pod any more."""
    if execution is None or execution.attempt > key.attempt:
        return True
    return execution.attempt == key.attempt and not execution.live


class Reaper:
    """Looks after the executions for which `concerns` holds at that time, and their pods."""

    def __init__(
        self,
        *,
        pods: PlacedPods,
        executions: ExecutionStore,
        tape: TapeStore,
        monitor: PodMonitor,
        clock: Clock,
        concerns: Callable[[ExecutionId], bool],
    ) -> None:
        self._pods = pods
        self._executions = executions
        self._tape = tape
        self._monitor = monitor
        self._clock = clock
        self._concerns = concerns
        self._notices: dict[str, Notice] = {}
        """By the pod's name."""
        self._without: dict[PodKey, Notice] = {}
        """Live attempts without a pod."""
        self._list_at_s = 0.0

    async def run(self) -> None:
        """Go round from time to time; runs until cancelled."""
        while True:
            try:
                await self.round()
            except Transient as error:
                log.warning("pods.not_reaped", error=str(error))
            await asyncio.sleep(ROUND_S)

    async def round(self) -> None:
        """Look at everything that has been as it is for long enough.  Raises: Transient."""
        pods = self._pods.seen()
        if pods is None:
            return
        now_s = self._clock.monotonic_s()
        self._take_notice([pod for pod in pods if self._concerns(pod.key.execution_id)], now_s)
        self._without = {key: each for key, each in self._without.items() if self._concerns(key.execution_id)}
        if now_s >= self._list_at_s:
            self._list_at_s = now_s + LIST_S
            await self._list(now_s)
        await self._look_at(notice for notice in self._notices.values() if now_s >= notice.look_at_s)
        await self._look_at(notice for notice in self._without.values() if now_s >= notice.look_at_s)

    def _take_notice(self, pods: Iterable[PlacedPod], now_s: float) -> None:
        before, self._notices = self._notices, {}
        for pod in pods:
            notice = before.pop(pod.name, None)
            if notice is None or notice.pod is None or _kind(notice.pod) != _kind(pod):
                look_at_s = now_s + (LOOK_S if _may_go_on(pod) else GRACE_S)
                notice = Notice(pod.key, now_s, look_at_s)
            notice.pod = pod
            if pod.leaving and notice.leaving_since_s is None:
                notice.leaving_since_s = now_s
            self._notices[pod.name] = notice
            self._without.pop(pod.key, None)

    async def _list(self, now_s: float) -> None:
        """Find live attempts that have no pod."""
        keys = {notice.key for notice in self._notices.values()}
        where = ExecutionFilter(status=Status.RUNNING)
        last: ExecutionId | None = None
        while page := await self._executions.list(where, PAGE, last):
            last = page[-1].id
            for execution in page:
                key = PodKey(execution.id, execution.attempt)
                if key not in keys and self._concerns(execution.id) and key not in self._without:
                    self._without[key] = Notice(key, now_s, now_s)

    async def _look_at(self, notices: Iterable[Notice]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def look(notice: Notice) -> None:
            async with room:
                try:
                    await self._look(notice)
                except Transient as error:
                    log.info("pod.not_reaped", attempt=notice.key.attempt, error=str(error))
                except Exception as error:  # one pod must not keep the others from being looked after
                    log.error("pod.not_reaped", attempt=notice.key.attempt, exc_info=error)

        await asyncio.gather(*map(look, [*notices]))

    async def _look(self, notice: Notice) -> None:
        pod, key = notice.pod, notice.key
        now_s = self._clock.monotonic_s()
        execution = await self._executions.get(key.execution_id)
        notice.over = is_over(execution, key)
        lease = execution.lease if execution is not None and not notice.over else None
        if lease != notice.lease:
            notice.lease, notice.lease_since_s = lease, now_s
        told = pod.told(execution.spec.limits) if pod is not None and pod.told and execution is not None else None
        reached = told is not None and not notice.over and await self._tape.reached(key, told.ended.last_seq)
        verdict = judge(
            pod,
            key,
            execution,
            complete=reached and execution is not None and told is not None and not _is_missing(execution, told),
            still=timedelta(seconds=now_s - notice.lease_since_s),
            overdue=lease is not None and self._clock.now() >= lease.expires_at + LEASE_GRACE,
            lease_ttl=self._monitor.lease_ttl,
        )
        if pod is not None and verdict is Verdict.LEAVE and _may_go_on(pod):
            notice.look_at_s = now_s + LOOK_S
        match verdict:
            case Verdict.DELETE if pod is not None:
                await self._delete(notice, pod, now_s)
            case Verdict.FINISH if told is not None:
                log.warning("pod.finished", pod=pod.name if pod else None, kind=told.ended.outcome.kind)
                await self._monitor.finish(told.ended)
            case Verdict.LOSE if lease is not None:
                await self._lose(key, lease, pod, _why(told, reached, pod))
            case _ if pod is None and notice.over:
                self._without.pop(key, None)
            case _:
                pass

    async def _delete(self, notice: Notice, pod: PlacedPod, now_s: float) -> None:
        if now_s - notice.since_s < GRACE_S:
            return
        force = notice.leaving_since_s is not None and now_s - notice.leaving_since_s >= STUCK_S
        if pod.leaving and not force:
            return
        log.warning("pod.deleted", pod=pod.name, force=force)
        await self._pods.delete(pod, force=force)

    async def _lose(self, key: PodKey, lease: Lease, pod: PlacedPod | None, outcome: Outcome) -> None:
        if pod is None and await self._pods.find(key):
            return  # it was not seen yet
        log.warning("pod.lost", pod=pod.name if pod is not None else None, reason=outcome.reason)
        await self._monitor.lose(key.execution_id, lease, outcome, ran=pod is None or pod.ran)


def _may_go_on(pod: PlacedPod) -> bool:
    """Whether a pod is on the way of every program."""
    return pod.state is not PodState.ENDED and pod.outcome is None and not pod.leaving


def _kind(pod: PlacedPod) -> tuple[object, ...]:
    """Return what makes a pod another one to look at."""
    return pod.state, pod.leaving, pod.outcome is not None, pod.told is not None


def _is_missing(execution: Execution, told: Told) -> bool:
    """Whether there was something for the worker to fetch."""
    return execution.spec.timeline or (told.left_files and execution.spec.limits.artifacts > 0)


def _why(told: Told | None, reached: bool, pod: PlacedPod | None) -> Outcome:
    if told is not None:
        if told.ended.outcome.kind is OutcomeKind.SANDBOX_ERROR:
            return told.ended.outcome
        return _WORKER_LOST if reached else _OUTPUT_LOST
    return pod.outcome if pod is not None and pod.outcome is not None else POD_LOST
