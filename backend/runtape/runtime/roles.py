"""Roles: what each part of the service subscribes to, and the tasks that it keeps running.

A worker process is one role run alone; the embedded server runs all of them, through the same handlers.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum

from runtape.application import admission, running, storing
from runtape.application.admission import Admission
from runtape.application.events import EventBrowser
from runtape.application.flow import Handler, Subscription, Subscriptions
from runtape.application.monitoring import PodMonitor
from runtape.application.replay_runner import ReplayRunner
from runtape.application.retention import Retention
from runtape.application.running import Worker
from runtape.application.storing import ResultProcessor
from runtape.application.sweeping import Sweeper
from runtape.domain.events import (
    EXECUTION_EVENTS,
    POD_COMMANDS,
    ExecutionCancelled,
    ExecutionCompleted,
    ExecutionFailed,
    ExecutionRequested,
    ExecutionRestarted,
    ExecutionStarted,
    ExecutionTimeout,
    PodCreate,
    PodKill,
    ResultStored,
)

_ENDED = (ExecutionCompleted.type, ExecutionFailed.type, ExecutionTimeout.type, ExecutionCancelled.type)


class Role(StrEnum):
    """A part of the service that can run as a process of its own."""

    SAGA_ORCHESTRATOR = "saga_orchestrator"
    K8S_WORKER = "k8s_worker"
    POD_MONITOR = "pod_monitor"
    RESULT_PROCESSOR = "result_processor"
    EVENT_STORE = "event_store"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class RoleParts:
    """What a role consists of.  `handlers` by message type; `tasks` run until they are cancelled.

    `replays` are the types whose handler may have messages that are replayed: it does what twice is the same.
    """

    group: str
    topics: tuple[str, ...]
    handlers: dict[str, Handler]
    tasks: tuple[Callable[[], Coroutine[object, object, None]], ...] = ()
    replays: frozenset[str] = frozenset()


def parts(
    *,
    admission_service: Admission,
    worker: Worker,
    monitor: PodMonitor,
    results: ResultProcessor,
    sweeper: Sweeper,
    retention: Retention,
    events: EventBrowser,
    replays: ReplayRunner,
) -> dict[Role, RoleParts]:
    """Return the parts of every role.

    The order matters to a fused chain: the result is stored before the saga is told that it was.
    """
    return {
        Role.RESULT_PROCESSOR: RoleParts(storing.GROUP, (EXECUTION_EVENTS,), dict.fromkeys(_ENDED, results.on_ended)),
        Role.SAGA_ORCHESTRATOR: RoleParts(
            admission.GROUP,
            (EXECUTION_EVENTS,),
            {
                ExecutionRequested.type: admission_service.on_requested,
                **dict.fromkeys(
                    (ExecutionStarted.type, ExecutionRestarted.type, *_ENDED, ResultStored.type),
                    admission_service.on_event,
                ),
            },
            (sweeper.run, retention.run),
        ),
        Role.K8S_WORKER: RoleParts(
            running.GROUP,
            (POD_COMMANDS, EXECUTION_EVENTS),
            {
                PodCreate.type: worker.on_create,
                PodKill.type: worker.on_kill,
                ExecutionRestarted.type: worker.on_over,
                ResultStored.type: worker.on_over,
            },
            (worker.extend_leases, worker.tidy),
        ),
        Role.POD_MONITOR: RoleParts("pod-monitor", (), {}, (monitor.watch,)),
        Role.EVENT_STORE: RoleParts("event-store", (), {}, (events.keep_index,)),
        Role.REPLAY: RoleParts("replay", (), {}, (replays.run,)),
    }


def subscriptions(roles: Sequence[RoleParts]) -> Subscriptions:
    """Return the handlers by message type, for a flow that runs these roles in one process."""
    by_type: dict[str, list[Subscription]] = {}
    for role in roles:
        for name, handler in role.handlers.items():
            by_type.setdefault(name, []).append(Subscription(role.group, handler))
    return by_type
