"""The embedded profile: every port in this process, over one SQLite file and the local sandbox."""

from collections.abc import AsyncIterator

from dishka import AnyOf, Provider, Scope, provide

from runtape.adapters.embedded import identity_store, schema
from runtape.adapters.embedded.admission import InMemoryAdmissionQueue
from runtape.adapters.embedded.clock import SystemClock, Uuid7Ids
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.dead_letters import SqliteDeadLetterStore
from runtape.adapters.embedded.documents import SqliteExecutionStore, SqliteSagaStore, SqliteUnitOfWork
from runtape.adapters.embedded.event_source import SqliteEventSource
from runtape.adapters.embedded.event_store import SqliteEventStore
from runtape.adapters.embedded.gate_store import SqliteGateStore
from runtape.adapters.embedded.histories import SqliteDocumentHistories
from runtape.adapters.embedded.identity_store import SqliteIdentityStore
from runtape.adapters.embedded.live_feed import InProcessLiveFeed
from runtape.adapters.embedded.log import SqliteEventLog
from runtape.adapters.embedded.notifications import SqliteNotificationStore
from runtape.adapters.embedded.passwords import Argon2Hasher
from runtape.adapters.embedded.rate_limiter import GcraRateLimiter
from runtape.adapters.embedded.replay_files import FolderReplayFiles
from runtape.adapters.embedded.replay_store import SqliteReplaySessionStore
from runtape.adapters.embedded.retention import ExpiredEvents, ExpiredExecutions, ExpiredTapes
from runtape.adapters.embedded.seen_keys import NoSeenKeys
from runtape.adapters.embedded.tape import SqliteBlobStore, SqliteTapeStore
from runtape.application.dead_letters import DeadLetters
from runtape.application.flow import Tasks
from runtape.application.replaying import ExpiredReplaySessions
from runtape.application.retention import Retention
from runtape.ports.admission import AdmissionQueue, GateStore
from runtape.ports.clock import Clock, Ids
from runtape.ports.dead_letters import DeadLetterStore
from runtape.ports.events import EventStore
from runtape.ports.idempotency import SeenKeys
from runtape.ports.identity import IdentityStore, PasswordHasher
from runtape.ports.limits import RateLimiter
from runtape.ports.live import LiveFeed
from runtape.ports.log import EventLog
from runtape.ports.notifications import NotificationStore
from runtape.ports.replay import DocumentHistories, EventIndex, EventSource, ReplayFiles, ReplaySessionStore
from runtape.ports.stores import BlobStore, ExecutionStore, SagaStore, TapeStore, UnitOfWork
from runtape.runtime.providers.retention import retention
from runtape.runtime.settings import Settings

DATABASE_FILE = "runtape.db"
REPLAYS_FOLDER = "replays"


class EmbeddedProvider(Provider):
    """The ports of the embedded profile, but for the pods."""

    scope = Scope.APP

    clock = provide(SystemClock, provides=Clock)
    ids = provide(Uuid7Ids, provides=Ids)
    feed = provide(InProcessLiveFeed, provides=LiveFeed)
    executions = provide(SqliteExecutionStore)
    sagas = provide(SqliteSagaStore)
    event_log = provide(SqliteEventLog)
    tape = provide(SqliteTapeStore, provides=TapeStore)
    blobs = provide(SqliteBlobStore, provides=BlobStore)
    events = provide(SqliteEventStore, provides=EventStore)
    event_source = provide(SqliteEventSource, provides=AnyOf[EventSource, EventIndex])
    histories = provide(SqliteDocumentHistories, provides=DocumentHistories)
    replay_sessions = provide(SqliteReplaySessionStore, provides=ReplaySessionStore)
    identities = provide(SqliteIdentityStore, provides=IdentityStore)
    gates = provide(SqliteGateStore, provides=GateStore)
    dead_letters = provide(SqliteDeadLetterStore, provides=DeadLetterStore)
    notifications = provide(SqliteNotificationStore, provides=NotificationStore)
    seen_keys = provide(NoSeenKeys, provides=SeenKeys)
    unit_of_work = provide(SqliteUnitOfWork, provides=UnitOfWork)

    @provide
    def hasher(self) -> PasswordHasher:
        return Argon2Hasher()

    @provide
    def replay_files(self, settings: Settings) -> ReplayFiles:
        return FolderReplayFiles(settings.data / REPLAYS_FOLDER)

    @provide
    def limiter(self, clock: Clock) -> RateLimiter:
        return GcraRateLimiter(clock)

    @provide
    async def database(self, settings: Settings) -> AsyncIterator[Database]:
        database = Database(settings.data / DATABASE_FILE, (*schema.STORE_SCHEMA, *identity_store.SCHEMA))
        await database.open()
        yield database
        await database.close()

    @provide
    def execution_store(self, store: SqliteExecutionStore) -> ExecutionStore:
        return store

    @provide
    def saga_store(self, store: SqliteSagaStore) -> SagaStore:
        return store

    @provide
    def log(self, event_log: SqliteEventLog) -> EventLog:
        return event_log

    @provide
    def parked(self, store: DeadLetterStore, event_log: EventLog, clock: Clock, tasks: Tasks) -> DeadLetters:
        return DeadLetters(store=store, event_log=event_log, clock=clock, tasks=tasks)

    @provide
    def kept(
        self,
        settings: Settings,
        database: Database,
        executions: SqliteExecutionStore,
        events: EventStore,
        dead_letters: DeadLetters,
        notifications: NotificationStore,
        replays: ExpiredReplaySessions,
        clock: Clock,
    ) -> Retention:
        return retention(
            settings.retention,
            clock,
            executions=ExpiredExecutions(database, executions),
            tapes=ExpiredTapes(database),
            events=ExpiredEvents(database),
            archived_events=events,
            dead_letters=dead_letters,
            notifications=notifications,
            replays=replays,
        )

    @provide
    def queue(self, settings: Settings, clock: Clock) -> AdmissionQueue:
        return InMemoryAdmissionQueue(settings.capacity, clock)
