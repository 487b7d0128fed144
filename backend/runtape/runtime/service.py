"""One process's services from start to stop, apart from HTTP.

Start: recover what the processes before left, then consume.  Stop: first whoever could start or end something,
then the sandbox, so that a program that dies of our stopping is not recorded as having ended: its execution is
taken up by the next process, as after a crash.
"""

import structlog
from dishka import AsyncContainer, Provider, Scope, make_async_container
from dishka.provider import BaseProvider

from runtape.adapters.embedded.documents import SqliteExecutionStore
from runtape.adapters.embedded.log import SqliteEventLog
from runtape.application.admission import Admission
from runtape.application.admission_control import AdmissionControl
from runtape.application.dead_letters import DeadLetters
from runtape.application.events import EventBrowser
from runtape.application.flow import Flow, Tasks
from runtape.application.health import Health
from runtape.application.identity import Identity
from runtape.application.monitoring import PodMonitor
from runtape.application.replay_runner import ReplayRunner
from runtape.application.retention import Retention
from runtape.application.running import Worker
from runtape.application.runtimes import RuntimeCatalogue
from runtape.application.storing import ResultProcessor
from runtape.application.sweeping import Sweeper
from runtape.ports.live import LiveFeed
from runtape.ports.log import EventLog
from runtape.ports.pod_runtime import PodRuntime
from runtape.runtime import roles
from runtape.runtime.consumer import Consumer
from runtape.runtime.dispatcher import Dispatcher
from runtape.runtime.providers.application import ApplicationProvider, ProcessIdentity
from runtape.runtime.providers.embedded import EmbeddedProvider
from runtape.runtime.roles import Role
from runtape.runtime.settings import Settings

log = structlog.get_logger(__name__)

CONTROL_PLANE: tuple[BaseProvider, ...] = (EmbeddedProvider(), ApplicationProvider())
"""Everything but the pods."""


class SettingsProvider(Provider):
    """The settings that were read for this process."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.provide(lambda: settings, provides=Settings, scope=Scope.APP)


class Service:
    """The services of the embedded profile over the pods of one provider, running every role."""

    def __init__(self, settings: Settings, pods: Provider) -> None:
        self.settings = settings
        self.container: AsyncContainer = make_async_container(*CONTROL_PLANE, pods, SettingsProvider(settings))

    async def start(self) -> None:
        """Open the parts, take up what was unfinished and begin to consume.

        Raises: Permanent, naming what is missing; nothing runs then.
        """
        get = self.container.get
        flow, tasks = await get(Flow), await get(Tasks)
        pods = await get(PodRuntime)
        await (await get(RuntimeCatalogue)).load(pods)
        sweeper = await get(Sweeper)
        parts = roles.parts(
            admission_service=await get(Admission),
            worker=await get(Worker),
            monitor=await get(PodMonitor),
            results=await get(ResultProcessor),
            sweeper=sweeper,
            retention=await get(Retention),
            events=await get(EventBrowser),
            replays=await get(ReplayRunner),
        )
        flow.subscribe(roles.subscriptions(list(parts.values())))
        event_log = await get(EventLog)
        # The monitor watches before anything is started by the recovery.
        for task in parts[Role.POD_MONITOR].tasks:
            tasks.keep(task, Role.POD_MONITOR)
        await (await get(AdmissionControl)).restore()
        dead_letters = await get(DeadLetters)
        await dead_letters.restore()
        await sweeper.recover((await get(ProcessIdentity)).owner)
        for role, part in parts.items():
            if part.topics:
                consumer = Consumer(
                    group=part.group,
                    topics=part.topics,
                    dispatcher=Dispatcher(flow, part.handlers, part.replays),
                    event_log=event_log,
                    dead_letters=dead_letters,
                    tasks=tasks,
                    at_once=self.settings.flow.at_once,
                )
                tasks.keep(consumer.run, f"{part.group}.consume")
            if role is not Role.POD_MONITOR:
                for task in part.tasks:
                    tasks.keep(task, role)
        tasks.keep(dead_letters.run, "dead-letters")

    async def idle(self) -> bool:
        """Whether nothing is left to do: no unfinished execution."""
        return (await self.container.get(SqliteExecutionStore)).unfinished_count == 0

    async def end_streams(self) -> None:
        """Refuse readiness and tell every open stream that the service is shutting down."""
        (await self.container.get(Health)).accepting = False
        (await self.container.get(LiveFeed)).close()

    async def stop(self) -> None:
        """Stop the tasks, kill what runs, and close the store.  Idempotent."""
        await (await self.container.get(Tasks)).close()
        await (await self.container.get(PodRuntime)).close()
        (await self.container.get(SqliteEventLog)).close()
        await self.container.close()

    async def identity(self) -> Identity:
        """Return the identity service, for the first start's admin and the local key."""
        return await self.container.get(Identity)
