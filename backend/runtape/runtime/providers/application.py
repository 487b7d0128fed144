"""The services of the application, over whatever ports the profile provides."""

from dataclasses import dataclass

import structlog
from dishka import Provider, Scope, provide

from runtape.adapters.otel.spans import OpenTelemetrySpans
from runtape.application.admission import Admission
from runtape.application.admission_control import AdmissionControl
from runtape.application.announcing import Announcer
from runtape.application.artifacts import ArtifactLibrary
from runtape.application.dead_letter_queries import DeadLetterQueries
from runtape.application.events import EventBrowser
from runtape.application.flow import Flow, Tasks
from runtape.application.health import Health
from runtape.application.identity import Identity
from runtape.application.monitoring import PodMonitor
from runtape.application.notifications import Notifications
from runtape.application.queries import Queries
from runtape.application.replay_runner import ReplayRunner
from runtape.application.replay_steps import Steps
from runtape.application.replay_stream import ReplayStreams
from runtape.application.replaying import ExpiredReplaySessions, ReplaySessions
from runtape.application.running import Worker
from runtape.application.runtimes import RuntimeCatalogue
from runtape.application.sagas import Sagas
from runtape.application.sources import SourceLibrary
from runtape.application.storing import ResultProcessor
from runtape.application.streaming import Streams
from runtape.application.submission import Submissions
from runtape.application.sweeping import Sweeper
from runtape.domain.limits import LimitPolicy
from runtape.domain.source import PackagePolicy
from runtape.ports.admission import AdmissionQueue
from runtape.ports.clock import Clock, Ids
from runtape.ports.identity import IdentityStore, PasswordHasher
from runtape.ports.live import LiveFeed
from runtape.ports.log import EventLog
from runtape.ports.pod_runtime import PodRuntime
from runtape.ports.replay import ReplaySessionStore
from runtape.ports.room import NoRooms, Rooms
from runtape.ports.stores import BlobStore, ExecutionStore, SagaStore, TapeStore, UnitOfWork
from runtape.ports.tracing import StepSpans
from runtape.runtime.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """What this process calls itself: the owner of its leases, unique to each start."""

    owner: str


class ApplicationProvider(Provider):
    """One of each service per process."""

    scope = Scope.APP

    announcer = provide(Announcer)
    library = provide(SourceLibrary)
    artifacts = provide(ArtifactLibrary)
    catalogue = provide(RuntimeCatalogue)
    queries = provide(Queries)
    submissions = provide(Submissions)
    admission_control = provide(AdmissionControl)
    sagas = provide(Sagas)
    results = provide(ResultProcessor)
    notifications = provide(Notifications)
    monitor = provide(PodMonitor)
    sweeper = provide(Sweeper)
    events = provide(EventBrowser)
    dead_letter_queries = provide(DeadLetterQueries)
    replay_steps = provide(Steps)
    replay_runner = provide(ReplayRunner)
    replay_sessions = provide(ReplaySessions)
    expired_replays = provide(ExpiredReplaySessions)

    @provide
    def identity(
        self, settings: Settings, store: IdentityStore, hasher: PasswordHasher, clock: Clock, ids: Ids
    ) -> Identity:
        return Identity(store, hasher, clock, ids, shared=settings.profile == "cluster")

    @provide
    def spans(self) -> StepSpans:
        return OpenTelemetrySpans()

    @provide
    def admission(
        self,
        queue: AdmissionQueue,
        sagas: SagaStore,
        flow: Flow,
        announcer: Announcer,
        clock: Clock,
        spans: StepSpans,
    ) -> Admission:
        return Admission(queue=queue, sagas=sagas, flow=flow, announcer=announcer, clock=clock, spans=spans)

    @provide
    def limits(self, settings: Settings) -> LimitPolicy:
        return settings.limit_policy

    @provide
    def rooms(self) -> Rooms:
        return NoRooms()

    @provide
    def packages(self, settings: Settings) -> PackagePolicy:
        return PackagePolicy(enabled=settings.packages.enabled)

    @provide
    def process_identity(self, ids: Ids) -> ProcessIdentity:
        return ProcessIdentity(ids.new_id())

    @provide
    def tasks(self) -> Tasks:
        return Tasks(lambda name, error: log.error("task.failed", task=name, exc_info=error))

    @provide
    def streams(
        self,
        settings: Settings,
        executions: ExecutionStore,
        tape: TapeStore,
        feed: LiveFeed,
        queue: AdmissionQueue,
        clock: Clock,
    ) -> Streams:
        return Streams(
            executions=executions,
            tape=tape,
            feed=feed,
            queue=queue,
            clock=clock,
            heartbeat_s=settings.streams.heartbeat_s,
        )

    @provide
    def replay_streams(self, settings: Settings, store: ReplaySessionStore, feed: LiveFeed) -> ReplayStreams:
        return ReplayStreams(store=store, feed=feed, heartbeat_s=settings.streams.heartbeat_s)

    @provide
    def flow(
        self,
        settings: Settings,
        unit_of_work: UnitOfWork,
        executions: ExecutionStore,
        sagas: SagaStore,
        announcer: Announcer,
        tasks: Tasks,
    ) -> Flow:
        return Flow(
            unit_of_work=unit_of_work,
            executions=executions,
            sagas=sagas,
            announcer=announcer,
            tasks=tasks,
            fused=settings.flow.fused,
        )

    @provide
    def worker(
        self,
        identity: ProcessIdentity,
        pods: PodRuntime,
        executions: ExecutionStore,
        tape: TapeStore,
        library: SourceLibrary,
        flow: Flow,
        announcer: Announcer,
        tasks: Tasks,
        clock: Clock,
    ) -> Worker:
        return Worker(
            owner=identity.owner,
            pods=pods,
            executions=executions,
            tape=tape,
            library=library,
            flow=flow,
            announcer=announcer,
            tasks=tasks,
            clock=clock,
        )

    @provide
    def health(self, blobs: BlobStore, log: EventLog, pods: PodRuntime, clock: Clock, ids: Ids) -> Health:
        probes = {"store": blobs.ready, "log": log.ready, "sandbox": pods.ready}
        return Health(probes, clock.monotonic_s(), ids.new_secret())
