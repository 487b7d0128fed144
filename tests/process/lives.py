"""The lives of one installation: a data folder, over which one service after another is opened, and dies.

Theory of operation.  Every port of a service is wrapped; each call passes *points*, before it and after it, and one
per item where it yields.  A service that is told to die at its nth point does so there: from that point on no call
of any port is carried out, all its tasks are thrown away, and only what the store had been given by then is there
for the next service.  That is what SIGKILL leaves, and it can be had at every single point.

The pods die with their service, as boxes do with the process that holds them.
"""

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dishka import Provider, Scope, decorate, provide

from runtape.adapters.embedded import identity_store, schema
from runtape.adapters.embedded.database import Database
from runtape.adapters.simulated import SimulatedPodRuntime
from runtape.application.flow import Tasks
from runtape.application.streaming import Cursor, Frame, Streams
from runtape.application.submission import Submission, Submissions
from runtape.domain.events import Priority
from runtape.domain.execution import Execution, OnInterrupt
from runtape.domain.ids import ExecutionId
from runtape.domain.saga import Saga
from runtape.ports.clock import Clock
from runtape.ports.live import LiveFeed
from runtape.ports.log import EventLog
from runtape.ports.pod_runtime import PodKey, PodRuntime
from runtape.ports.stores import BlobStore, ExecutionStore, SagaStore, TapeStore, UnitOfWork
from runtape.runtime.providers.embedded import DATABASE_FILE
from runtape.runtime.service import Service
from runtape.runtime.settings import AdmissionSettings, FlowSettings, Settings
from tests.builders import a_principal

PATIENCE_S = 10.0
ALICE = a_principal("alice")


class Killed(BaseException):
    """What a call of a dead service's port ends in; no handler may catch it."""


Place = tuple[str, int]
"""A kind of point, and which of this kind, from 1."""


class Points:
    """The points that a service has passed, by kind, in order; it dies at `dies_at`."""

    def __init__(self, dies_at: Place | None = None) -> None:
        self.passed: list[Place] = []
        self.dead = False
        self.death = asyncio.Event()
        self._dies_at = dies_at
        self._counts: Counter[str] = Counter()
        self._moved = asyncio.Event()

    def count(self, kind: str) -> None:
        """Pass a point.  Raises: Killed, there and ever after."""
        if not self.dead:
            self._counts[kind] += 1
            place = kind, self._counts[kind]
            self.passed.append(place)
            self._moved.set()
            if place == self._dies_at:
                self.dead = True
                self.death.set()
        if self.dead:
            raise Killed(kind)

    def spare(self) -> None:
        """Let the service live on."""
        self._dies_at = None

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until `holds` after some point.  Raises: Killed, when the service dies; TimeoutError."""
        async with asyncio.timeout(PATIENCE_S):
            while not await holds():
                await self._moved.wait()
                self._moved.clear()
                if self.dead:
                    raise Killed


QUIET = frozenset({"watched", "subscribe", "acknowledge"})
"""Calls that touch nothing but memory, at which a death is the same as at the points around them."""


class Watched:
    """`port`, whose every call passes points."""

    def __init__(self, port: Any, name: str, points: Points) -> None:
        self.port = port
        self._name = name
        self._points = points

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self.port, attribute)
        name = f"{self._name}.{attribute}"
        if not callable(value) or attribute in QUIET:
            return value
        if inspect.isasyncgenfunction(value):
            return self._yielding(value, name)
        if inspect.iscoroutinefunction(value):
            return self._awaited(value, name)
        return self._called(value, name)

    def _awaited(self, call: Callable[..., Awaitable[Any]], name: str) -> Any:
        async def watched(*arguments: Any, **named: Any) -> Any:
            self._points.count(f"before {name}")
            answer = await call(*arguments, **named)
            self._points.count(f"after {name}")
            return answer

        return watched

    def _called(self, call: Callable[..., Any], name: str) -> Any:
        def watched(*arguments: Any, **named: Any) -> Any:
            self._points.count(f"before {name}")
            return call(*arguments, **named)

        return watched

    def _yielding(self, call: Callable[..., AsyncIterator[Any]], name: str) -> Any:
        async def watched(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
            self._points.count(f"before {name}")
            async for item in call(*arguments, **named):
                self._points.count(f"at {name}")
                yield item

        return watched


class Ports(Provider):
    """The ports of one life, watched."""

    scope = Scope.APP

    def __init__(self, points: Points, pods: PodRuntime, clock: Clock | None) -> None:
        super().__init__()
        self._points = points
        self._pods = pods
        if clock is not None:
            self.provide(lambda: clock, provides=Clock, scope=Scope.APP)

    def _watched(self, port: Any, name: str) -> Any:
        return Watched(port, name, self._points)

    @provide
    async def database(self, settings: Settings) -> AsyncIterator[Database]:
        tables = (*schema.STORE_SCHEMA, *identity_store.SCHEMA)
        # A log that is grown in advance is for speed; it would cost each of a thousand openings 20 ms.
        database = Database(settings.data / DATABASE_FILE, tables, wal_bytes=1 << 16)
        await database.open()
        yield database
        await database.close()

    @provide
    def pods(self) -> PodRuntime:
        return self._watched(self._pods, "PodRuntime")

    @decorate
    def unit_of_work(self, port: UnitOfWork) -> UnitOfWork:
        return self._watched(port, "UnitOfWork")

    @decorate
    def executions(self, port: ExecutionStore) -> ExecutionStore:
        return self._watched(port, "ExecutionStore")

    @decorate
    def sagas(self, port: SagaStore) -> SagaStore:
        return self._watched(port, "SagaStore")

    @decorate
    def tape(self, port: TapeStore) -> TapeStore:
        return self._watched(port, "TapeStore")

    @decorate
    def blobs(self, port: BlobStore) -> BlobStore:
        return self._watched(port, "BlobStore")

    @decorate
    def feed(self, port: LiveFeed) -> LiveFeed:
        return self._watched(port, "LiveFeed")

    @decorate
    def event_log(self, port: EventLog) -> EventLog:
        return self._watched(port, "EventLog")


@dataclass
class Life:
    """One service from its opening to its end."""

    service: Service
    points: Points
    pods: SimulatedPodRuntime
    seen: dict[ExecutionId, list[Frame]]
    readers: dict[ExecutionId, "asyncio.Task[None]"] = field(default_factory=dict[ExecutionId, "asyncio.Task[None]"])

    async def get(self, kind: type[Any]) -> Any:
        return await self.service.container.get(kind)

    async def unwatched(self, kind: type[Any]) -> Any:
        """Return a port for the test's own looking, which passes no points."""
        watched: Watched = await self.get(kind)
        return watched.port

    async def submit(self, script: str, key: str, **changes: Any) -> ExecutionId:
        """Submit, and follow the stream from where the lives before have left it."""
        submissions: Submissions = await self.get(Submissions)
        execution_id = await submissions.execute(ALICE, a_submission(script, key, **changes))
        if execution_id not in self.readers:
            reader = self.readers[execution_id] = asyncio.create_task(self._read(execution_id))
            # Else what it ended with is told by the garbage collector, in the midst of anything.
            reader.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return execution_id

    async def _read(self, execution_id: ExecutionId) -> None:
        seen = self.seen.setdefault(execution_id, [])
        streams: Streams = await self.get(Streams)
        at = seen[-1].cursor if seen else None
        stream, subscription = streams.open(execution_id, at or Cursor())
        try:
            async for batch in stream.batches():
                seen += [frame for frame in batch if frame.cursor is not None]
        finally:
            subscription.close()

    async def read_to_the_end(self, execution_id: ExecutionId) -> list[Frame]:
        """Return what the streams of all lives have carried, once the last of them has ended."""
        await asyncio.wait_for(self.readers[execution_id], PATIENCE_S)
        return self.seen[execution_id]

    async def read_late(self, execution_id: ExecutionId) -> list[Frame]:
        """Return what a new reader of an ended execution gets: document and tape are read, whoever else was quicker."""
        streams: Streams = await self.get(Streams)
        stream, subscription = streams.open(execution_id, Cursor())
        try:
            async with asyncio.timeout(PATIENCE_S):
                return [frame async for batch in stream.batches() for frame in batch]
        finally:
            subscription.close()

    async def cancel(self, execution_id: ExecutionId) -> Execution:
        submissions: Submissions = await self.get(Submissions)
        return await submissions.cancel(ALICE, execution_id, "enough")

    async def execution(self, execution_id: ExecutionId) -> Execution:
        executions: ExecutionStore = await self.unwatched(ExecutionStore)
        execution = await executions.get(execution_id)
        assert execution is not None
        return execution

    async def saga(self, execution_id: ExecutionId) -> Saga | None:
        sagas: SagaStore = await self.unwatched(SagaStore)
        return await sagas.get(execution_id)


@dataclass
class Installation:
    """A data folder, and every program that was ever started over it, in order."""

    data: Path
    fused: bool
    running: int = 4
    clock: Clock | None = None
    started: list[PodKey] = field(default_factory=list[PodKey])
    lives: list[Life] = field(default_factory=list[Life])
    seen: dict[ExecutionId, list[Frame]] = field(default_factory=dict[ExecutionId, list[Frame]])
    """What the client of each execution has received, over all lives."""

    async def open(self, dies_at: Place | None, allowed: Sequence[str] = ()) -> Life:
        """Open a service over the folder; programs that wait for one of `allowed` go on.  Raises: Killed."""
        points = Points(dies_at)
        pods = SimulatedPodRuntime()
        pods.started = self.started
        for name in allowed:
            pods.let(name)
        settings = Settings(
            data=self.data,
            flow=FlowSettings(fused=self.fused),
            admission=AdmissionSettings(running=self.running),
        )
        life = Life(Service(settings, Ports(points, pods, self.clock)), points, pods, self.seen)
        self.lives.append(life)
        await life.service.start()
        return life

    async def bury(self) -> None:
        """Throw the last life away, whether it has died or has done its work, without any leave-taking."""
        life = self.lives[-1]
        life.points.dead = True
        for reader in life.readers.values():
            reader.cancel()
        await asyncio.gather(*life.readers.values(), return_exceptions=True)
        await (await life.get(Tasks)).close()
        await (await life.get(Database)).close()


def a_submission(script: str, key: str, **changes: Any) -> Submission:
    """Return a request with an idempotency key."""
    given: dict[str, Any] = {
        "lang": "python",
        "lang_version": None,
        "script": script,
        "stdin": b"",
        "args": (),
        "env": {},
        "files": (),
        "limits": {},
        "priority": Priority.NORMAL,
        "on_interrupt": OnInterrupt.RESTART,
        "timeline": False,
        "idempotency_key": key,
        "body_sha256": f"digest of {key}",
    }
    return Submission(**{**given, **changes})
