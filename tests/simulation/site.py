"""The product's services in simulated processes: who runs what, and what lies beneath."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import msgspec

from runtape.adapters.embedded.admission import InMemoryAdmissionQueue
from runtape.adapters.embedded.dead_letters import SqliteDeadLetterStore
from runtape.adapters.embedded.documents import SqliteExecutionStore, SqliteSagaStore, SqliteUnitOfWork
from runtape.adapters.embedded.live_feed import InProcessLiveFeed
from runtape.adapters.embedded.log import SqliteEventLog
from runtape.adapters.embedded.rate_limiter import GcraRateLimiter
from runtape.adapters.embedded.tape import SqliteBlobStore, SqliteTapeStore
from runtape.application import admission, running, storing
from runtape.application.admission import Admission
from runtape.application.announcing import Announcer
from runtape.application.artifacts import ArtifactLibrary
from runtape.application.dead_letters import DeadLetters
from runtape.application.flow import Flow, Tasks
from runtape.application.monitoring import PodMonitor
from runtape.application.queries import Queries
from runtape.application.relaying import Relay, RelayingUnitOfWork
from runtape.application.retention import Retention
from runtape.application.running import Worker
from runtape.application.runtimes import RuntimeCatalogue
from runtape.application.sources import SourceLibrary
from runtape.application.storing import ResultProcessor
from runtape.application.streaming import Streams
from runtape.application.submission import Submissions
from runtape.application.sweeping import Sweeper
from runtape.domain.dead_letter import RawMessage
from runtape.domain.events import (
    MESSAGE_TYPES,
    ExecutionEnded,
    ExecutionRequested,
    Message,
    PodCreate,
    ResultStored,
)
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId, ProjectId
from runtape.domain.limits import LimitPolicy
from runtape.domain.notification import Notification
from runtape.domain.saga import Saga, SagaStep
from runtape.domain.source import PackagePolicy
from runtape.ports.admission import AdmissionQueue
from runtape.ports.dead_letters import DeadLetterStore
from runtape.ports.errors import Transient
from runtape.ports.limits import RateLimiter
from runtape.ports.log import Delivery, EventLog
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import BlobStore, ExecutionStore, SagaStore, TapeStore, UnitOfWork
from runtape.runtime import roles
from runtape.runtime.consumer import Consumer
from runtape.runtime.dispatcher import Dispatcher
from runtape.runtime.roles import Role
from tests.clocks import START
from tests.coroutines import at_once
from tests.seen_keys import ForgetfulKeys
from tests.simulation.broker import Broker, Poison, RemoteLog, decoded, raw_of
from tests.simulation.documents import DocumentServer, RemoteExecutions, RemoteSagas, RemoteUnitOfWork
from tests.simulation.faults import Mode
from tests.simulation.feed import FeedServer, RemoteFeed
from tests.simulation.history import Histories
from tests.simulation.network import Local, Remote
from tests.simulation.pods import PodServer, RemotePods
from tests.simulation.sqlite import SimulatedDatabase, open_memory
from tests.simulation.tape import WRITER_LOST_S, BlobServer, RemoteTape, TapeServer
from tests.simulation.world import Life, SimulatedClock, World

HEARTBEAT_S = 15.0
AT_ONCE = 2
"""Places of a consumer: few, so that one may wait for another's."""

LEAVING_TRACES: dict[str, tuple[type[Message], ...]] = {
    admission.GROUP: (ExecutionRequested, ResultStored),
    running.GROUP: (PodCreate,),
    storing.GROUP: (ExecutionEnded,),
}
"""The messages of each group whose handling shows in a document."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What the application of one process stands on."""

    executions: ExecutionStore
    sagas: SagaStore
    unit_of_work: UnitOfWork
    tape: TapeStore
    blobs: BlobStore
    log: EventLog
    queue: AdmissionQueue
    feed: Any
    limiter: RateLimiter
    dead_letters: DeadLetterStore
    relay: Relay | None = None


class Site:
    """What outlives the processes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.histories = Histories(world)
        self.cluster = world.mix.mode is Mode.CLUSTER
        self.pods = PodServer(world, self._may_start)
        self.documents = DocumentServer(self.histories.observe)
        self.broker = Broker(world, self._acknowledged)
        self._poisoned = 0
        self.poisoned: list[Poison] = []
        """What the log of the embedded profile delivers beside what is in it, to the next group that reads."""
        self.lost: set[tuple[str, int]] = set()
        """What the log of the embedded profile has lost, by group and offset."""
        self._offsets: dict[str, int] = {}
        self.tape = TapeServer(world)
        self.blobs = BlobServer()
        self.feed = FeedServer(world)
        self.queue = InMemoryAdmissionQueue(world.mix.capacity, SimulatedClock(world.loop, 0.0))
        self.limiter = GcraRateLimiter(SimulatedClock(world.loop, 0.0))
        self.seen_keys = ForgetfulKeys(Random(f"keys {world.seed}"))
        self.sqlite: sqlite3.Connection | None = None if self.cluster else open_memory()
        self.office = self.sqlite or open_memory()
        """Where the dead letters are."""
        self.services: list[Service] = []
        """Those that have begun to start and have not died."""
        self._mourners: dict[Life, dict[int, Callable[[], None]]] = {}
        self._mourner_count = 0

    def on_death(self, life: Life, tell: Callable[[], None]) -> Callable[[], None]:
        """Call `tell` when `life` dies; returns what takes that back."""
        mourners = self._mourners.setdefault(life, {})
        self._mourner_count += 1
        number = self._mourner_count
        mourners[number] = tell
        return lambda: mourners.pop(number, None) and None

    def bury(self, service: "Service") -> None:
        """Let everybody know of a death who is connected to it."""
        life, world = service.life, self.world
        self.services.remove(service)
        for tell in list(self._mourners.pop(life, {}).values()):
            world.loop.in_world(world.way_s(), tell)
        self.pods.let_die(life)
        world.loop.in_world(WRITER_LOST_S, self.tape.lost, life)

    async def any_service(self) -> "Service":
        """Return a process that a client may get to; it may be starting, or stand still."""
        while not self.services:  # noqa: ASYNC110  # as a client does that finds nobody
            await asyncio.sleep(0.5)
        return self.services[int(self.world.random.random() * len(self.services))]

    def executions(self) -> list[Execution]:
        """Return every document as it is stored now."""
        if self.sqlite is None:
            return [stored.document for stored in self.documents.executions.values()]
        rows = self.sqlite.execute("select doc, due_at, lease_expires_at, idempotency_key from execution order by id")
        return [decode_row(row) for row in rows.fetchall()]

    def sagas(self) -> list[Saga]:
        """Return every saga as it is stored now."""
        if self.sqlite is None:
            return [stored.document for stored in self.documents.sagas.values()]
        return [decode_saga(doc) for (doc,) in self.sqlite.execute("select doc from saga order by execution_id")]

    def notifications(self) -> list[Notification]:
        """Return everything that users were told."""
        if self.sqlite is None:
            return list(self.documents.notifications.values())
        rows = self.sqlite.execute("select doc from notification").fetchall()
        return [msgspec.json.decode(doc, type=Notification) for (doc,) in rows]

    def messages(self) -> list[Message]:
        """Return what the log holds, in order per document."""
        if self.sqlite is None:
            return [message for messages in self.broker.partitions.values() for message in messages]
        rows = self.sqlite.execute("select type, body from log order by offset").fetchall()
        return [msgspec.json.decode(body, type=MESSAGE_TYPES[name]) for name, body in rows]

    def poison(self) -> None:
        """Put a message into the log that no handler can take, under a key of its own."""
        self._poisoned += 1
        message = Poison(
            execution_id=ExecutionId(f"poison-{self._poisoned}"),
            project_id=ProjectId("nobody"),
            at=START,
            number=self._poisoned,
        )
        self.world.note("world", f"poisons the log: {message.execution_id}")
        if self.cluster:
            self.broker.publish(message)
        else:
            self.poisoned.append(message)

    def observe(self) -> None:
        """Look at every document: its history must go on from what was seen before; and at what is acknowledged."""
        for execution in self.executions():
            self.histories.observe(execution)
        self.look_at_offsets()

    def look_at_offsets(self) -> None:
        """Look at what the groups of the embedded log have noted to be done with."""
        if self.sqlite is None:
            return
        for group, upto in self.sqlite.execute("select consumer_group, offset from consumer_offset").fetchall():
            rows = self.sqlite.execute(
                "select offset, type, body from log where offset > ? and offset <= ?",
                (self._offsets.get(group, 0), upto),
            )
            for offset, name, body in rows.fetchall():
                if (group, offset) not in self.lost:
                    self._acknowledged(group, msgspec.json.decode(body, type=MESSAGE_TYPES[name]))
            self._offsets[group] = max(upto, self._offsets.get(group, 0))

    def execution(self, execution_id: ExecutionId) -> Execution | None:
        """Return the document as it is stored now."""
        if self.sqlite is None:
            return self.documents.get(execution_id)
        query = "select doc, due_at, lease_expires_at, idempotency_key from execution where id = ?"
        row = self.sqlite.execute(query, (execution_id,)).fetchone()
        return decode_row(row) if row else None

    def _saga(self, execution_id: ExecutionId) -> Saga | None:
        if self.sqlite is None:
            return self.documents.saga(execution_id)
        row = self.sqlite.execute("select doc from saga where execution_id = ?", (execution_id,)).fetchone()
        return decode_saga(row[0]) if row else None

    def _acknowledged(self, group: str, message: Message) -> None:
        """Say that an invariant does not hold when a message is acknowledged and was not applied."""
        if not isinstance(message, LEAVING_TRACES.get(group, ())):
            return
        execution = self.execution(message.execution_id)
        if execution is None:
            return
        match group, message:
            case admission.GROUP, ExecutionRequested():
                applied = execution.status.terminal or self._saga(message.execution_id) is not None
            case admission.GROUP, ResultStored():
                saga = self._saga(message.execution_id)
                applied = saga is None or saga.step is SagaStep.DONE
            case running.GROUP, PodCreate():
                applied = execution.attempt >= message.attempt or execution.status.terminal
            case _:
                applied = execution.result is not None
        self.world.require(
            applied or self._is_dead(group, message),
            "I13",
            f"{group} has acknowledged {message.id}, neither applied it nor kept it as a dead letter",
        )

    def _is_dead(self, group: str, message: Message) -> bool:
        query = "select 1 from dead_letter where consumer_group = ? and message_id = ?"
        return self.office.execute(query, (group, message.id)).fetchone() is not None

    def _may_start(self, key: PodKey) -> str | None:
        """Return why the attempt may not start, None when it may: its lease has to be stored."""
        execution = self.execution(key.execution_id)
        if execution is None:
            return "although it was never accepted"
        return None if execution.attempt >= key.attempt else "before its lease is durable"


def decode_row(row: tuple[Any, ...]) -> Execution:
    from runtape.adapters.embedded import documents

    return documents._execution(row)  # pyright: ignore[reportPrivateUsage]


def decode_saga(doc: bytes) -> Saga:
    from runtape.adapters.embedded import documents

    return documents._decode_saga(doc)  # pyright: ignore[reportPrivateUsage]


class Service:
    """The product in one process, from its start to its stop."""

    def __init__(self, site: Site, life: Life, own_roles: Sequence[Role]) -> None:
        world = site.world
        self.site = site
        self.life = life
        self.roles = own_roles
        self.started = False
        self.requests = 0
        """How many have come and are not answered, whether somebody still waits for it or not."""
        self.owner = world.ids.new_id()
        self.tasks = Tasks(self._failed)
        self.event_log: SqliteEventLog | None = None
        self.pods: Any = RemotePods(world, life, site.pods, "pods")
        self.ports = self._cluster() if site.cluster else self._embedded()
        self._build()

    def _failed(self, name: str, error: BaseException) -> None:
        # What a coroutine says that is closed with its world is no failure of its task.
        if not isinstance(error, Transient) and not self.site.world.loop.is_closed():
            self.site.world.violated("no task fails", f"{self.life} {name}: {error!r}")

    def _cluster(self) -> Ports:
        world, life, site = self.site.world, self.life, self.site
        log = RemoteLog(world, life, site.broker)
        outbox: Any = Remote(world, life, site.documents, "outbox")
        relay = Relay(outbox=outbox, publisher=log, tasks=self.tasks)
        unit: Any = RemoteUnitOfWork(world, life, site.documents, "documents")
        executions: Any = RemoteExecutions(world, life, site.documents, "executions")
        sagas: Any = RemoteSagas(world, life, site.documents, "sagas")
        tape: Any = RemoteTape(world, life, site.tape, "tape")
        blobs: Any = Remote(world, life, site.blobs, "blobs")
        queue: Any = Remote(world, life, Inline(site.queue), "queue")
        limiter: Any = Remote(world, life, Inline(site.limiter), "limiter")
        return Ports(
            executions=executions,
            sagas=sagas,
            unit_of_work=RelayingUnitOfWork(unit, relay),
            tape=tape,
            blobs=blobs,
            log=log,
            queue=queue,
            feed=RemoteFeed(site.feed, life),
            limiter=limiter,
            dead_letters=SqliteDeadLetterStore(SimulatedDatabase(world, life, site.office)),
            relay=relay,
        )

    def _embedded(self) -> Ports:
        world, life = self.site.world, self.life
        assert self.site.sqlite is not None
        database = SimulatedDatabase(world, life, self.site.sqlite)
        log = self.event_log = SqliteEventLog(database)
        sagas = SqliteSagaStore(database)
        executions = SqliteExecutionStore(database, sagas)
        unit_of_work: Any = Local(world, life, SqliteUnitOfWork(database, executions, sagas, log), "unit")
        own_tape: Any = Local(
            world, life, SqliteTapeStore(database), "tape", frozenset(("open_tape", "read_stream", "close_tape"))
        )
        own_executions: Any = Local(world, life, executions, "executions", frozenset(("unfinished",)))
        own_sagas: Any = Local(world, life, sagas, "sagas", frozenset(("unfinished",)))
        blobs: Any = Local(world, life, SqliteBlobStore(database, life.clock), "blobs")
        own_log: Any = StutteringLog(self.site, life, log)
        return Ports(
            executions=own_executions,
            sagas=own_sagas,
            unit_of_work=unit_of_work,
            tape=own_tape,
            blobs=blobs,
            log=own_log,
            queue=InMemoryAdmissionQueue(world.mix.capacity, life.clock),
            feed=LossyFeed(world),
            limiter=GcraRateLimiter(life.clock),
            dead_letters=SqliteDeadLetterStore(database),
        )

    def _build(self) -> None:
        ports, clock, mix = self.ports, self.life.clock, self.site.world.mix
        self.announcer = announcer = Announcer(ports.feed)
        self.flow = flow = Flow(
            unit_of_work=ports.unit_of_work,
            executions=ports.executions,
            sagas=ports.sagas,
            announcer=announcer,
            tasks=self.tasks,
            fused=mix.mode is Mode.FUSED,
        )
        library = SourceLibrary(ports.blobs)
        artifacts = ArtifactLibrary(pods=self.pods, blobs=ports.blobs)
        self.queries = Queries(executions=ports.executions, tape=ports.tape, library=artifacts)
        self.catalogue = RuntimeCatalogue()
        self.admission = Admission(queue=ports.queue, sagas=ports.sagas, flow=flow, announcer=announcer, clock=clock)
        self.worker = Worker(
            owner=self.owner,
            pods=self.pods,
            executions=ports.executions,
            tape=ports.tape,
            library=library,
            flow=flow,
            announcer=announcer,
            tasks=self.tasks,
            clock=clock,
        )
        self.monitor = PodMonitor(
            pods=self.pods,
            tape=ports.tape,
            library=artifacts,
            worker=self.worker,
            flow=flow,
            tasks=self.tasks,
            clock=clock,
        )
        self.results = ResultProcessor(tape=ports.tape, announcer=announcer, clock=clock)
        self.sweeper = Sweeper(
            executions=ports.executions,
            sagas=ports.sagas,
            blobs=ports.blobs,
            admission=self.admission,
            monitor=self.monitor,
            results=self.results,
            flow=flow,
            clock=clock,
        )
        self.submissions = Submissions(
            flow=flow,
            executions=ports.executions,
            queries=self.queries,
            seen_keys=self.site.seen_keys,
            queue=ports.queue,
            library=library,
            catalogue=self.catalogue,
            limits=LimitPolicy(),
            packages=PackagePolicy(),
            clock=clock,
            ids=self.site.world.ids,
        )
        self.streams = Streams(
            executions=ports.executions,
            tape=ports.tape,
            feed=ports.feed,
            queue=ports.queue,
            clock=clock,
            heartbeat_s=HEARTBEAT_S,
        )
        parts = roles.parts(
            admission_service=self.admission,
            worker=self.worker,
            monitor=self.monitor,
            results=self.results,
            sweeper=self.sweeper,
            retention=Retention(rules=(), clock=clock),
            events=cast(Any, _Unused()),
            replays=cast(Any, _Unused()),
        )
        self.dead_letters = DeadLetters(store=ports.dead_letters, event_log=ports.log, clock=clock, tasks=self.tasks)
        self.parts = {role: part for role, part in parts.items() if role in self.roles}
        flow.subscribe(roles.subscriptions(list(self.parts.values())))

    async def start(self) -> None:
        """Recover, then consume, as `runtape.runtime.service` does."""
        await self.catalogue.load(self.pods)
        if Role.POD_MONITOR in self.parts:
            for task in self.parts[Role.POD_MONITOR].tasks:
                self.tasks.keep(task, Role.POD_MONITOR)
        if self.ports.relay is not None:
            self.tasks.keep(self.ports.relay.run, "relay")
        if Role.SAGA_ORCHESTRATOR in self.parts:
            await self.sweeper.recover(self.owner, alone=not self.site.cluster)
        await self.dead_letters.restore()
        for role, part in self.parts.items():
            if part.topics:
                consumer = Consumer(
                    group=part.group,
                    topics=part.topics,
                    dispatcher=Dispatcher(self.flow, part.handlers),
                    event_log=self.ports.log,
                    dead_letters=self.dead_letters,
                    tasks=self.tasks,
                    at_once=AT_ONCE,
                )
                self.tasks.keep(consumer.run, f"{part.group}.consume")
            if role is not Role.POD_MONITOR:
                for task in part.tasks:
                    self.tasks.keep(task, role)
        self.tasks.keep(self.dead_letters.run, "dead-letters")
        self.started = True

    async def stop(self) -> None:
        """Stop as `runtape.runtime.service` does."""
        self.ports.feed.close()
        await self.tasks.close()
        await self.pods.close()
        if self.event_log is not None:
            self.event_log.close()


class _Unused:
    """A part whose tasks have nothing to do here."""

    def __getattr__(self, name: str) -> Any:
        async def wait() -> None:
            await asyncio.Event().wait()

        return wait


class Inline:
    """The methods of an object in memory as plain functions: its coroutines never wait."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        def call(*given: Any, **named: Any) -> Any:
            return at_once(method(*given, **named))

        return call


class LossyFeed(InProcessLiveFeed):
    """The product's feed with nudges that never come."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def publish(self, watched_id: Any, nudge: Any) -> None:
        if not self._world.happens(self._world.mix.deaf):
            super().publish(watched_id, nudge)


class StutteringLog:
    """The product's log, delivering some messages again, at once or much later, and losing some."""

    def __init__(self, site: Site, life: Life, inner: SqliteEventLog) -> None:
        self._site = site
        self._world = site.world
        self._life = life
        self._inner = inner
        self.ready = inner.ready

    async def raw(self, delivery: Delivery) -> RawMessage | None:
        return raw_of(delivery.message, 0, delivery.offset)

    async def decode(self, raw: RawMessage) -> Message:
        return decoded(raw)

    def acknowledge(self, group: str, delivery: Delivery) -> None:
        self._inner.acknowledge(group, delivery)

    async def consume(self, group: str, topics: Sequence[str]) -> Any:
        """Yield what the log yields, or less, or more."""
        world = self._world
        delivered: list[Any] = []
        async for delivery in self._inner.consume(group, topics):
            assert isinstance(delivery, Delivery)
            message = delivery.message
            world.note(self._life, f"{group} <- {message.execution_id}:{message.type}/{message.attempt}")
            if world.happens(world.mix.losses):
                world.note(self._life, "  lost")
                self._site.lost.add((group, delivery.offset))
                self._inner.acknowledge(group, delivery)
                continue
            delivered.append(delivery)
            yield delivery
            while self._site.poisoned:
                yield Delivery(self._site.poisoned.pop(), -1)
            while world.happens(world.mix.duplicates):
                again = delivered[int(world.random.random() * len(delivered))]
                world.note(self._life, f"{group} <- again {again.message.execution_id}:{again.message.type}")
                yield again
