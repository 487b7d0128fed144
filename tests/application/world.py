"""The whole application in a test: real handlers over the embedded stores and simulated pods, on a standing clock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from runtape.adapters.embedded.admission import InMemoryAdmissionQueue
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.live_feed import InProcessLiveFeed
from runtape.adapters.embedded.log import SqliteEventLog
from runtape.adapters.embedded.seen_keys import NoSeenKeys
from runtape.adapters.simulated import SimulatedPodRuntime
from runtape.application.admission import Admission
from runtape.application.admission_control import AdmissionControl
from runtape.application.announcing import Announcer
from runtape.application.artifacts import ArtifactLibrary
from runtape.application.dead_letters import DeadLetters
from runtape.application.events import EventBrowser
from runtape.application.flow import Flow, Tasks
from runtape.application.monitoring import PodMonitor
from runtape.application.queries import Queries
from runtape.application.replay_runner import ReplayRunner
from runtape.application.replay_steps import Steps
from runtape.application.replaying import ReplaySessions
from runtape.application.retention import Retention
from runtape.application.running import Worker
from runtape.application.runtimes import RuntimeCatalogue
from runtape.application.sources import SourceLibrary
from runtape.application.storing import ResultProcessor
from runtape.application.streaming import Cursor, Frame, Streams
from runtape.application.submission import Submission, Submissions
from runtape.application.sweeping import Sweeper
from runtape.domain.events import EXECUTION_EVENTS, POD_COMMANDS, Message, Priority
from runtape.domain.execution import Execution, OnInterrupt
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import LimitPolicy
from runtape.domain.source import PackagePolicy
from runtape.ports.admission import Capacity
from runtape.ports.clock import Ids
from runtape.ports.idempotency import SeenKeys
from runtape.ports.live import LiveFeed
from runtape.ports.log import Delivery
from runtape.ports.pod_runtime import PodKey
from runtape.ports.tracing import StepSpans
from runtape.runtime import roles
from runtape.runtime.consumer import Consumer
from runtape.runtime.dispatcher import Dispatcher
from runtape.runtime.roles import Role
from tests.builders import a_principal
from tests.clocks import CountingIds, ManualClock
from tests.contract.embedded.basic import sqlite_stores
from tests.contract.suites.stores import Stores

ALICE = a_principal()
PATIENCE_S = 10.0
BEGINNING = Cursor()
CAPACITY = Capacity(running=4, running_per_project=4, running_per_lang=4, queued=50, queued_per_project=50)


def a_submission(script: str = "print(1)", **changes: Any) -> Submission:
    """Return a request to run `script`."""
    submission = Submission(
        lang="python",
        lang_version=None,
        script=script,
        stdin=b"",
        args=(),
        env={},
        files=(),
        limits={},
        priority=Priority.NORMAL,
        timeline=False,
        on_interrupt=OnInterrupt.RESTART,
        idempotency_key=None,
        body_sha256="body",
    )
    return Submission(**{name: changes.get(name, getattr(submission, name)) for name in Submission.__slots__})


@dataclass(frozen=True)
class World:
    """One process's services; `start` makes it live."""

    owner: str
    stores: Stores
    event_log: SqliteEventLog
    clock: ManualClock
    feed: LiveFeed
    pods: SimulatedPodRuntime
    queue: InMemoryAdmissionQueue
    flow: Flow
    tasks: Tasks
    admission: Admission
    control: AdmissionControl
    worker: Worker
    monitor: PodMonitor
    results: ResultProcessor
    sweeper: Sweeper
    events: EventBrowser
    replay_runner: ReplayRunner
    replays: ReplaySessions
    queries: Queries
    submissions: Submissions
    streams: Streams
    announcer: Announcer
    dead_letters: DeadLetters
    failures: list[BaseException]

    async def start(self, *, alone: bool = True) -> None:
        """Recover, then consume, as `runtape.runtime.service` does; nothing that goes by a timer runs."""
        self.tasks.spawn(self.monitor.watch(), "watch")
        await self.dead_letters.restore()
        await self.sweeper.recover(self.owner, alone=alone)
        for part in self.parts().values():
            if part.topics:
                consumer = Consumer(
                    group=part.group,
                    topics=part.topics,
                    dispatcher=Dispatcher(self.flow, part.handlers),
                    event_log=self.stores.log,
                    dead_letters=self.dead_letters,
                    tasks=self.tasks,
                    at_once=2,  # few, so that one may wait for another's place
                )
                self.tasks.spawn(consumer.run(), part.group)

    def parts(self) -> dict[Role, roles.RoleParts]:
        return roles.parts(
            admission_service=self.admission,
            worker=self.worker,
            monitor=self.monitor,
            results=self.results,
            sweeper=self.sweeper,
            retention=Retention(rules=(), clock=self.clock),
            events=self.events,
            replays=self.replay_runner,
        )

    async def submit(self, script: str = "print(1)", **changes: Any) -> ExecutionId:
        return await self.submissions.execute(ALICE, a_submission(script, **changes))

    async def get(self, execution_id: ExecutionId) -> Execution:
        execution = await self.stores.executions.get(execution_id)
        assert execution is not None
        return execution

    async def frames(self, execution_id: ExecutionId, cursor: Cursor = BEGINNING) -> list[Frame]:
        """Read the stream to its end."""
        stream, subscription = self.streams.open(execution_id, cursor)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return [frame async for batch in stream.batches() for frame in batch]
        finally:
            subscription.close()

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Let everything run until `holds`; each turn waits for the store, so nothing spins."""
        async with asyncio.timeout(PATIENCE_S):
            while not await holds():
                await self.stores.blobs.ready()

    async def until_status(self, execution_id: ExecutionId, status: str) -> Execution:
        async def reached() -> bool:
            return (await self.get(execution_id)).status == status

        await self.until(reached)
        return await self.get(execution_id)

    async def until_stored(self, execution_id: ExecutionId) -> Execution:
        async def is_stored() -> bool:
            return (await self.get(execution_id)).result is not None

        await self.until(is_stored)
        return await self.get(execution_id)

    async def until_started(self, key: PodKey) -> None:
        async def is_there() -> bool:
            return key in await self.pods.list()

        await self.until(is_there)

    async def until_quiet(self) -> None:
        """Wait until the log is read and nothing is being done but the recording of programs that run."""

        async def quiet() -> bool:
            groups = self.event_log._groups  # pyright: ignore[reportPrivateUsage]
            ours = [groups[part.group] for part in self.parts().values() if part.group in groups]
            if any(group.behind or group.waiting or group.in_flight for group in ours):
                return False
            names = [task.get_name() for task in asyncio.all_tasks()]
            busy = [name for name in names if name in ("effect", "finish") or name.endswith(".handle")]
            return len(busy) == len(self.worker._live)  # pyright: ignore[reportPrivateUsage]

        await self.until(quiet)

    async def printed(self, execution_id: ExecutionId, attempt: int = 1) -> bytes:
        found = await self.stores.tape.read(PodKey(execution_id, attempt), 0, 1 << 30)
        return b"".join(record.data for record in found)

    async def messages(self, *topics: str) -> list[Message]:
        """Return everything that the log holds."""
        found: list[Message] = []
        marker = await self.submit("print end")
        await self.until_stored(marker)
        await self.until_quiet()
        async for delivery in self.stores.log.consume(f"test-{marker}", topics or (EXECUTION_EVENTS, POD_COMMANDS)):
            assert isinstance(delivery, Delivery)
            if delivery.message.execution_id == marker:
                return found
            found.append(delivery.message)
        raise AssertionError("the log never ends")


@asynccontextmanager
async def a_world(
    folder: Path,
    *,
    fused: bool = True,
    clock: ManualClock | None = None,
    ids: Ids | None = None,
    owner: str = "worker-1",
    capacity: Capacity = CAPACITY,
    wrap: Callable[[Stores], Stores] = lambda stores: stores,
    wrap_pods: Callable[[SimulatedPodRuntime], Any] = lambda pods: pods,
    limits: LimitPolicy | None = None,
    packages: PackagePolicy | None = None,
    spans: StepSpans | None = None,
    expect_failures: bool = False,
    database_type: type[Database] = Database,
    seen_keys: SeenKeys | None = None,
) -> AsyncIterator[World]:
    """Make a process over the files in `folder`; leaving it is its sudden death."""
    clock = clock or ManualClock()
    ids = ids or CountingIds()
    async with sqlite_stores(folder / "runtape.db", clock, database_type) as inner:
        assert isinstance(inner.log, SqliteEventLog)
        stores = wrap(inner)
        failures: list[BaseException] = []
        tasks = Tasks(lambda name, error: failures.append(error))
        feed, queue, pods = InProcessLiveFeed(), InMemoryAdmissionQueue(capacity, clock), SimulatedPodRuntime()
        runtime = wrap_pods(pods)
        announcer = Announcer(feed)
        flow = Flow(
            unit_of_work=stores.unit_of_work,
            executions=stores.executions,
            sagas=stores.sagas,
            announcer=announcer,
            tasks=tasks,
            fused=fused,
        )
        library = SourceLibrary(stores.blobs)
        artifacts = ArtifactLibrary(pods=runtime, blobs=stores.blobs)
        queries = Queries(executions=stores.executions, tape=stores.tape, library=artifacts)
        catalogue = RuntimeCatalogue()
        await catalogue.load(pods)
        admission = Admission(queue=queue, sagas=stores.sagas, flow=flow, announcer=announcer, clock=clock, spans=spans)
        worker = Worker(
            owner=owner,
            pods=runtime,
            executions=stores.executions,
            tape=stores.tape,
            library=library,
            flow=flow,
            announcer=announcer,
            tasks=tasks,
            clock=clock,
        )
        monitor = PodMonitor(
            pods=runtime, tape=stores.tape, library=artifacts, worker=worker, flow=flow, tasks=tasks, clock=clock
        )
        results = ResultProcessor(tape=stores.tape, announcer=announcer, clock=clock)
        sweeper = Sweeper(
            executions=stores.executions,
            sagas=stores.sagas,
            blobs=stores.blobs,
            admission=admission,
            monitor=monitor,
            results=results,
            flow=flow,
            clock=clock,
        )
        steps = Steps(
            source=stores.replay.source,
            index=stores.replay.index,
            histories=stores.replay.histories,
            files=stores.replay.files,
            clock=clock,
        )
        replay_runner = ReplayRunner(sessions=stores.replay.sessions, steps=steps, feed=feed, clock=clock, tasks=tasks)
        world = World(
            owner=owner,
            stores=stores,
            event_log=inner.log,
            clock=clock,
            feed=feed,
            pods=pods,
            queue=queue,
            flow=flow,
            tasks=tasks,
            admission=admission,
            control=AdmissionControl(
                queue=queue, gates=stores.gates, executions=stores.executions, admission=admission
            ),
            worker=worker,
            monitor=monitor,
            results=results,
            sweeper=sweeper,
            events=EventBrowser(store=stores.events, executions=stores.executions, clock=clock),
            replay_runner=replay_runner,
            replays=ReplaySessions(
                store=stores.replay.sessions,
                source=stores.replay.source,
                index=stores.replay.index,
                histories=stores.replay.histories,
                files=stores.replay.files,
                runner=replay_runner,
                clock=clock,
                ids=ids,
            ),
            queries=queries,
            submissions=Submissions(
                flow=flow,
                executions=stores.executions,
                queries=queries,
                seen_keys=seen_keys or NoSeenKeys(),
                queue=queue,
                library=library,
                catalogue=catalogue,
                limits=limits or LimitPolicy(),
                packages=packages or PackagePolicy(),
                clock=clock,
                ids=ids,
            ),
            streams=Streams(executions=stores.executions, tape=stores.tape, feed=feed, queue=queue, clock=clock),
            announcer=announcer,
            dead_letters=DeadLetters(store=stores.dead_letters, event_log=stores.log, clock=clock, tasks=tasks),
            failures=failures,
        )
        flow.subscribe(roles.subscriptions(list(world.parts().values())))
        try:
            yield world
        finally:
            await tasks.close()
            if not expect_failures:
                assert not failures, failures


def body(frame: Frame) -> dict[str, Any]:
    return msgspec.json.decode(frame.body)


def event_types(frames: Sequence[Frame]) -> list[str]:
    """Return the lifecycle of a stream, with ``output`` for a run of records."""
    found: list[str] = []
    for frame in frames:
        name = frame.event or body(frame)["event_type"]
        if not (name == "output" and found and found[-1] == "output"):
            found.append(name)
    return found
