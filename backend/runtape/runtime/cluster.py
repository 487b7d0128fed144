"""One process of the cluster profile: the API, or one of the workers, apart from HTTP.

Start: open the parts, wait for those that are not there yet, then consume.  Nothing that was left behind is taken up
at the start, as it is in a process that is alone: leases and due times tell, whoever died.  The API waits for the store
alone: what it accepts is in the outboxes of documents, and is published once the log is reached.

Stop: first nothing new is taken, so that the group hands this process's partitions on; then what runs here may go on
for a while; then the rest is killed, and its lease brings it to another worker.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import NewType

import structlog
from dishka import AsyncContainer, Provider, Scope, make_async_container, provide
from redis.asyncio import Redis

from runtape.adapters.kafka.connection import REFUSED_WAIT_S
from runtape.adapters.kafka.producer import Producer
from runtape.adapters.mongo.announced import ANNOUNCE_INTERVAL_S, AnnouncedRuntimes, NoPods
from runtape.adapters.mongo.events import EventRows
from runtape.adapters.redis.admission import RedisAdmissionQueue
from runtape.adapters.redis.connection import transient
from runtape.application.admission import Admission
from runtape.application.admission_control import AdmissionControl
from runtape.application.dead_letters import DeadLetters
from runtape.application.events import EventBrowser
from runtape.application.flow import Flow, Tasks
from runtape.application.health import Health
from runtape.application.identity import Identity
from runtape.application.monitoring import PodMonitor
from runtape.application.relaying import Relay
from runtape.application.replay_runner import ReplayRunner
from runtape.application.retention import Retention
from runtape.application.retrying import persistently
from runtape.application.running import Worker
from runtape.application.runtimes import RuntimeCatalogue
from runtape.application.storing import ResultProcessor
from runtape.application.sweeping import Sweeper
from runtape.ports.errors import InfrastructureError, Permanent, Transient
from runtape.ports.live import LiveFeed
from runtape.ports.log import EventLog
from runtape.ports.pod_runtime import PodKeeper, PodRuntime
from runtape.runtime import roles
from runtape.runtime.consumer import Consumer
from runtape.runtime.dispatcher import Dispatcher
from runtape.runtime.leading import Leading
from runtape.runtime.providers.application import ApplicationProvider, ProcessIdentity
from runtape.runtime.providers.cluster import Background, ClusterProvider
from runtape.runtime.queue_keeper import QueueKeeper
from runtape.runtime.roles import Role
from runtape.runtime.service import SettingsProvider
from runtape.runtime.settings import Settings
from runtape.runtime.succession import Succession

log = structlog.get_logger(__name__)

INHERIT_TRIES = 3
TOLD_S = 10.0
"""How long the pod_monitor has to record what the pods of a dead worker have told."""

WAIT_S = 1.0
"""The pause between two tries to reach a part that is not there yet."""

LOG_WAIT_S = 2.0
"""How long the API waits for the log before it begins without it: mostly it is there, and what comes first is told at
once."""

LOOK_S = 0.1
FORGOTTEN = timedelta(days=1)
"""How long a worker that is gone is known."""

Run = Callable[[], Coroutine[object, object, None]]


PodTasks = NewType("PodTasks", Mapping[str, Run])
"""What the pod_monitor keeps running beside the sweeper, by name, where pods outlive their worker."""


class NoPodsProvider(Provider):
    """Pods for a process that runs none."""

    scope = Scope.APP

    pods = provide(NoPods, provides=PodRuntime)

    @provide
    def tasks(self) -> PodTasks:
        return PodTasks({})


class ClusterService:
    """The services of one process; `role` is None for the API."""

    def __init__(self, settings: Settings, role: Role | None, pods: Provider) -> None:
        # A step is committed by itself here: what follows from it comes through the log, to whoever is there.
        self.settings = settings.model_copy(update={"flow": settings.flow.model_copy(update={"fused": False})})
        self._role = role
        self._succession = Succession(settings.data)
        self._consuming: list[asyncio.Task[None]] = []
        self._pods: PodRuntime | None = None
        self.container: AsyncContainer = make_async_container(
            ClusterProvider(), ApplicationProvider(), pods, SettingsProvider(self.settings)
        )

    async def start(self) -> None:
        """Open the parts and begin.  Raises: Transient, when one is not there; Permanent, naming what is missing."""
        get = self.container.get
        tasks = await get(Tasks)
        flow = await get(Flow)
        producer = await get(Producer)
        if self._role is not None:
            await producer.start()
        pods = self._pods = await get(PodRuntime)
        catalogue = await get(RuntimeCatalogue)
        await catalogue.load(pods)
        if self._role is None and not catalogue.all():
            raise Transient("no worker has ever said what it can run")
        flow.subscribe({})
        background = await get(Background)
        runs = {"live": background.router.run, **(await self._tasks(pods, catalogue))}
        consumer = await self._consumer(self._role, flow, tasks) if self._role is not None else None
        if self._role is Role.K8S_WORKER:
            me, sweeper = (await get(ProcessIdentity)).owner, await get(Sweeper)
            if before := self._succession.take(me):
                tasks.spawn(self._succeed(me, before, sweeper, pods), "succession")
        if self._role is None:
            await self._reach_log(producer, background.relay, tasks)
        else:
            runs["relay"] = background.relay.run
        # Everything is there: from here on nothing fails, so nothing is begun twice when this is tried again.
        for name, run in runs.items():
            tasks.keep(run, name)
        if consumer is not None:
            tasks.keep((await get(DeadLetters)).run, "dead-letters")
            self._consuming.append(tasks.keep(consumer.run, "consume"))

    async def _reach_log(self, producer: Producer, relay: Relay, tasks: Tasks) -> None:
        """Let `producer` begin now, or in the background for as long as it takes.  Raises: Permanent."""
        begun = False

        async def reach() -> None:
            while True:
                try:
                    await persistently(producer.start, "log")
                    break
                except Permanent as error:
                    if not begun:
                        raise
                    # A person ends that; the runs that were accepted meanwhile are in their outboxes.
                    log.error("log.refused", error=str(error))
                    await asyncio.sleep(REFUSED_WAIT_S)
            # Not before: what a process takes up and cannot tell is kept from those that could.
            tasks.keep(relay.run, "relay")

        health, redis = await self.container.get(Health), await self.container.get(Redis)

        async def shared() -> None:
            with transient():
                await redis.ping()

        health.outlast("log")
        health.outlast("limits", shared)  # each process counts for itself meanwhile
        reaching = tasks.spawn(reach(), "log")
        done, _ = await asyncio.wait({reaching}, timeout=LOG_WAIT_S)
        for each in done:
            each.result()
        begun = True

    async def _succeed(self, me: str, before: Sequence[str], sweeper: Sweeper, pods: PodRuntime) -> None:
        """Have what ran here before run again, once none of it runs any more."""
        if isinstance(pods, PodKeeper):
            try:
                told = await persistently(lambda: pods.inherit(before), "pods.inherit", INHERIT_TRIES)
            except InfrastructureError as error:
                log.warning("succession.left_to_leases", error=str(error))
                self._succession.settled(me)
                return
            await persistently(lambda: sweeper.succeed(before, told), "succession")
            if told:
                await asyncio.sleep(TOLD_S)
        await persistently(lambda: sweeper.succeed(before), "succession")
        self._succession.settled(me)

    async def _tasks(self, pods: PodRuntime, catalogue: RuntimeCatalogue) -> dict[str, Run]:
        """Return what the role keeps running beside its consumer, by name."""
        get = self.container.get
        me = (await get(ProcessIdentity)).owner
        if self._role is None:
            # It consumes nothing: it looks at which keys are parked elsewhere.
            dead_letters = await get(DeadLetters)
            return {"catalogue": lambda: _keep_loaded(catalogue, pods), "dead-letters": dead_letters.run}
        match self._role:
            case Role.K8S_WORKER:
                worker, monitor, announced = await get(Worker), await get(PodMonitor), await get(AnnouncedRuntimes)
                runs: dict[str, Run] = {
                    "watch": monitor.watch,
                    "leases": worker.extend_leases,
                    "tidy": worker.tidy,
                    "announce": lambda: _keep_announcing(announced, me, pods),
                }
                if isinstance(pods, PodKeeper):
                    leading = Leading(await get(Redis), "warm-pods", me)
                    runs["warm-pods"] = lambda: leading.run(pods.keep)
                return runs
            case Role.POD_MONITOR:
                return {"sweep": (await get(Sweeper)).run, **(await get(PodTasks))}
            case Role.SAGA_ORCHESTRATOR:
                keeper, queue = await get(QueueKeeper), await get(RedisAdmissionQueue)
                admission, control = await get(Admission), await get(AdmissionControl)
                redis = await get(Redis)
                retention, replays, events = await get(Retention), await get(ReplayRunner), await get(EventRows)
                return {
                    "admission": lambda: keeper.run(queue, admission, control),
                    "retention": lambda: Leading(redis, "retention", me).run(retention.run),
                    "numbering": lambda: Leading(redis, "numbering", me).run(events.keep_numbering),
                    "replays": lambda: Leading(redis, "replays", me).run(replays.run),
                }
            case _:
                return {}

    async def _consumer(self, role: Role, flow: Flow, tasks: Tasks) -> Consumer | None:
        get = self.container.get
        parts = roles.parts(
            admission_service=await get(Admission),
            worker=await get(Worker),
            monitor=await get(PodMonitor),
            results=await get(ResultProcessor),
            sweeper=await get(Sweeper),
            retention=await get(Retention),
            events=await get(EventBrowser),
            replays=await get(ReplayRunner),
        )
        part = parts[role]
        if not part.topics:
            return None
        dead_letters = await get(DeadLetters)
        await dead_letters.restore()
        return Consumer(
            group=part.group,
            topics=part.topics,
            dispatcher=Dispatcher(flow, part.handlers, part.replays),
            event_log=await get(EventLog),
            dead_letters=dead_letters,
            tasks=tasks,
            at_once=self.settings.flow.at_once,
        )

    async def drain(self, wait_s: float) -> None:
        """Take nothing new, and return once nothing runs here, after `wait_s` at the latest."""
        (await self.container.get(Health)).accepting = False
        for task in self._consuming:
            task.cancel()
        await asyncio.gather(*self._consuming, return_exceptions=True)
        if self._role is Role.K8S_WORKER:
            owner = (await self.container.get(ProcessIdentity)).owner
            try:
                await (await self.container.get(AnnouncedRuntimes)).withdraw(owner)
            except Transient as error:
                log.warning("worker.not_withdrawn", error=str(error))
        worker = await self.container.get(Worker)
        worker.leave()
        try:
            async with asyncio.timeout(wait_s):
                while worker.busy:  # noqa: ASYNC110  # a look at a count, once in the life of a process
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            log.warning("worker.not_drained", runs=worker.busy)

    async def end_streams(self) -> None:
        """Refuse readiness and tell every open stream that the service is shutting down."""
        (await self.container.get(Health)).accepting = False
        (await self.container.get(LiveFeed)).close()

    async def stop(self) -> None:
        """Stop the tasks, kill what runs, and close the connections.  Idempotent."""
        await (await self.container.get(Tasks)).close()
        if self._pods is not None:  # else it would be made now, and wait for the part that `start` has waited for
            await self._pods.close()
        await self.container.close()

    async def identity(self) -> Identity:
        """Return the identity service, for the first start's admin."""
        return await self.container.get(Identity)


async def _keep_announcing(announced: AnnouncedRuntimes, me: str, pods: PodRuntime) -> None:
    while True:
        try:
            await announced.announce(me, await pods.runtimes())
            await announced.forget(FORGOTTEN)
        except Transient as error:
            log.warning("worker.not_announced", error=str(error))
        await asyncio.sleep(ANNOUNCE_INTERVAL_S)


async def _keep_loaded(catalogue: RuntimeCatalogue, pods: PodRuntime) -> None:
    while True:
        await asyncio.sleep(WAIT_S)
        try:
            await catalogue.load(pods)
        except Transient as error:
            log.warning("runtimes.not_read", error=str(error))
