"""The cluster profile: every port but the pods over Kafka, a schema registry, MongoDB and Redis."""

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from dishka import AnyOf, Provider, Scope, provide
from redis.asyncio import Redis

from runtape.adapters.embedded.clock import SystemClock, Uuid7Ids
from runtape.adapters.embedded.live_feed import InProcessLiveFeed
from runtape.adapters.embedded.passwords import Argon2Hasher
from runtape.adapters.embedded.rate_limiter import GcraRateLimiter
from runtape.adapters.kafka.codec import AvroCodec
from runtape.adapters.kafka.dead_letters import KafkaDeadLetterTopic
from runtape.adapters.kafka.log import KafkaEventLog
from runtape.adapters.kafka.producer import Producer
from runtape.adapters.kafka.registry import SchemaRegistryManager
from runtape.adapters.mongo import connection as mongo
from runtape.adapters.mongo.announced import AnnouncedRuntimes
from runtape.adapters.mongo.blobs import MongoBlobStore
from runtape.adapters.mongo.connection import Store
from runtape.adapters.mongo.dead_letters import MongoDeadLetterStore
from runtape.adapters.mongo.documents import MongoExecutionStore, MongoSagaStore, MongoUnitOfWork
from runtape.adapters.mongo.event_source import MongoEventSource
from runtape.adapters.mongo.event_store import MongoEventStore
from runtape.adapters.mongo.events import EventRows, RecordingPublisher
from runtape.adapters.mongo.gate import MongoGateStore
from runtape.adapters.mongo.histories import MongoDocumentHistories
from runtape.adapters.mongo.identity import MongoIdentityStore
from runtape.adapters.mongo.indexes import make_indexes
from runtape.adapters.mongo.notifications import MongoNotificationStore
from runtape.adapters.mongo.outbox import MongoOutbox
from runtape.adapters.mongo.replay import MongoReplayFiles, MongoReplaySessionStore
from runtape.adapters.mongo.retention import ExpiredEvents, ExpiredExecutions, ExpiredTapes
from runtape.adapters.mongo.tape import MongoTapeStore
from runtape.adapters.redis import connection as redis
from runtape.adapters.redis.admission import RedisAdmissionQueue, script_text
from runtape.adapters.redis.bus import SSERedisBus
from runtape.adapters.redis.rate_limiter import RedisRateLimiter
from runtape.adapters.redis.router import PartitionedSSERouter
from runtape.adapters.redis.seen_keys import RedisSeenKeys
from runtape.application.dead_letters import DeadLetters
from runtape.application.flow import Tasks
from runtape.application.limiting import FallbackRateLimiter
from runtape.application.relaying import Relay, RelayingUnitOfWork
from runtape.application.replaying import ExpiredReplaySessions
from runtape.application.retention import Retention
from runtape.application.seen_keys import FallbackSeenKeys
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
from runtape.runtime.providers.application import ProcessIdentity
from runtape.runtime.providers.retention import retention
from runtape.runtime.queue_keeper import QueueKeeper
from runtape.runtime.settings import Settings

DEAD_LETTER_LOOK_S = 2.0
"""How often a process looks at which keys the others have parked."""


@dataclass(frozen=True, slots=True)
class Background:
    """What every process of the cluster keeps running: telling what it wrote, and hearing what others tell."""

    relay: Relay
    router: PartitionedSSERouter


class ClusterProvider(Provider):
    """The ports of the cluster profile, but for the pods."""

    scope = Scope.APP

    clock = provide(SystemClock, provides=Clock)
    ids = provide(Uuid7Ids, provides=Ids)
    events_rows = provide(EventRows)
    executions = provide(MongoExecutionStore, provides=AnyOf[MongoExecutionStore, ExecutionStore])
    sagas = provide(MongoSagaStore, provides=SagaStore)
    tape = provide(MongoTapeStore, provides=TapeStore)
    blobs = provide(MongoBlobStore, provides=BlobStore)
    events = provide(MongoEventStore, provides=EventStore)
    event_source = provide(MongoEventSource, provides=AnyOf[EventSource, EventIndex])
    histories = provide(MongoDocumentHistories, provides=DocumentHistories)
    replay_files = provide(MongoReplayFiles, provides=ReplayFiles)
    identities = provide(MongoIdentityStore, provides=IdentityStore)
    gates = provide(MongoGateStore, provides=GateStore)
    dead_letters = provide(MongoDeadLetterStore, provides=DeadLetterStore)
    notifications = provide(MongoNotificationStore, provides=NotificationStore)
    outbox = provide(MongoOutbox)
    announced = provide(AnnouncedRuntimes)

    @provide
    def hasher(self) -> PasswordHasher:
        return Argon2Hasher()

    @provide
    async def store(self, settings: Settings) -> AsyncIterator[Store]:
        assert settings.mongo.url is not None
        async with mongo.connect(settings.mongo.url.get_secret_value(), **settings.mongo.options()) as client:
            store = await mongo.open_store(client, settings.mongo.database)
            await make_indexes(store)
            yield store

    @provide
    def codec(self, settings: Settings) -> Iterator[AvroCodec]:
        with closing(SchemaRegistryManager(settings.registry.connection(), settings.kafka.prefix)) as registry:
            yield AvroCodec(registry)

    @provide
    async def producer(self, settings: Settings, codec: AvroCodec) -> AsyncIterator[Producer]:
        producer = Producer(settings.kafka.connection(), codec, settings.kafka.prefix)
        yield producer
        await producer.stop()

    @provide
    def event_log(self, settings: Settings, codec: AvroCodec, producer: Producer) -> EventLog:
        return KafkaEventLog(settings.kafka.connection(), codec, producer, settings.kafka.prefix)

    @provide
    def relay(self, outbox: MongoOutbox, producer: Producer, events: EventRows, tasks: Tasks) -> Relay:
        return Relay(outbox=outbox, publisher=RecordingPublisher(producer, events), tasks=tasks)

    @provide
    def unit_of_work(self, store: Store, clock: Clock, relay: Relay) -> UnitOfWork:
        return RelayingUnitOfWork(MongoUnitOfWork(store, clock), relay)

    @provide
    def parked(
        self, store: DeadLetterStore, event_log: EventLog, clock: Clock, tasks: Tasks, producer: Producer
    ) -> DeadLetters:
        return DeadLetters(
            store=store,
            event_log=event_log,
            clock=clock,
            tasks=tasks,
            topic=KafkaDeadLetterTopic(producer),
            look_s=DEAD_LETTER_LOOK_S,
        )

    @provide
    def replay_sessions(self, store: Store, producer: Producer) -> ReplaySessionStore:
        return MongoReplaySessionStore(store, producer)

    @provide
    async def redis_client(self, settings: Settings) -> AsyncIterator[Redis]:
        assert settings.redis.url is not None
        client = redis.connect(settings.redis.url.get_secret_value(), **settings.redis.options())
        yield client
        await client.aclose()

    @provide
    def limiter(self, client: Redis, clock: Clock) -> RateLimiter:
        return FallbackRateLimiter(RedisRateLimiter(client), GcraRateLimiter(clock), clock)

    @provide
    def seen_keys(self, client: Redis, clock: Clock) -> SeenKeys:
        return FallbackSeenKeys(RedisSeenKeys(client), clock)

    @provide
    def keeper(self, client: Redis, ids: Ids) -> QueueKeeper:
        return QueueKeeper(client, ids)

    @provide
    def queue(
        self, settings: Settings, client: Redis, keeper: QueueKeeper
    ) -> AnyOf[RedisAdmissionQueue, AdmissionQueue]:
        script: Any = client.register_script(script_text())
        return RedisAdmissionQueue(script, settings.capacity, on_forgotten=keeper.forgotten)

    @provide
    def router(self, client: Redis, process: ProcessIdentity) -> AnyOf[PartitionedSSERouter, LiveFeed]:
        return PartitionedSSERouter(InProcessLiveFeed(), SSERedisBus(client), process.owner)

    background = provide(Background)

    @provide
    def kept(
        self,
        settings: Settings,
        store: Store,
        executions: MongoExecutionStore,
        rows: EventRows,
        events: EventStore,
        dead_letters: DeadLetters,
        notifications: NotificationStore,
        replays: ExpiredReplaySessions,
        clock: Clock,
    ) -> Retention:
        return retention(
            settings.retention,
            clock,
            executions=ExpiredExecutions(store, executions),
            tapes=ExpiredTapes(store),
            events=ExpiredEvents(store, rows),
            archived_events=events,
            dead_letters=dead_letters,
            notifications=notifications,
            replays=replays,
        )
