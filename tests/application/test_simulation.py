"""Many small worlds, each from one seed: delays, duplicates, failures and deaths, and what must hold all the same.

A world has a few clients.  Each submits (again with its idempotency key, until it is told that it was accepted),
may cancel, and reads the stream, coming back with its last id.  The process dies at random calls of its ports
and the next one takes over.  The invariants are those of ../../docs: an accepted run ends exactly once (I1, I2), its
history is a path (I3), its code starts once per attempt (I4), a key stands for one run (I5), and what was
streamed over all connections is what is stored, each record once (I6, I7).

A failing seed is reproduced by its number: nothing here depends on time or threads.
"""

import asyncio
import os
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

import pytest

from runtape.adapters.embedded import log as log_module
from runtape.application import admission, retrying, running
from runtape.application.streaming import Cursor, Frame
from runtape.domain.errors import AlreadyTerminal, QueueFull
from runtape.domain.execution import MAX_ATTEMPTS, OnInterrupt
from runtape.domain.ids import ExecutionId
from runtape.domain.saga import SagaStep
from runtape.domain.tape import Stream
from runtape.ports.admission import Capacity
from runtape.ports.errors import Transient
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import ExecutionFilter
from runtape.runtime import consumer
from tests.application.chaos import Chaos, InlineDatabase, WatchedPods, stop, turns
from tests.application.world import ALICE, World, a_submission, a_world, body
from tests.builders import EXITED
from tests.clocks import CountingIds, ManualClock
from tests.contract.embedded.basic import quick_place
from tests.domain.test_execution_machine import NEXT, TERMINAL

SEEDS = range(int(os.environ.get("RUNTAPE_SEEDS", "120")))
TURNS = 60
TICKS = 400
SCRIPTS = (
    "print(1)",
    "print a\neprint b\nprint c\nexit 3",
    "print before\nwait go\nprint after",
    "wait go",
    "bytes ff00\nend time_limit",
    "print x\nfail gone",
    "print y\nwait never",
    "leave a/b first\nleave c second\nomit too_large 3\nprint z",
)


@pytest.fixture(autouse=True)
def _without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (retrying, "FIRST_PAUSE_S"),
        (consumer, "FIRST_PAUSE_S"),
        (running, "FLUSH_INTERVAL_S"),
        (admission, "TELLING_INTERVAL_S"),
        (log_module, "FLUSH_INTERVAL_S"),
    ):
        monkeypatch.setattr(module, name, 0.0)


@dataclass
class Client:
    """What one client knows."""

    number: int
    script: str
    cancels: bool
    on_interrupt: OnInterrupt
    id: ExecutionId | None = None
    at: Cursor = field(default_factory=Cursor)
    frames: list[Frame] = field(default_factory=list[Frame])
    ended: bool = False

    async def live(self, world: World, random: Random) -> None:
        """Do the next thing until the stream has ended; what it knows outlives the connection."""
        while self.id is None:
            await turns(random.randrange(20))
            try:
                self.id = await world.submissions.execute(
                    ALICE,
                    a_submission(self.script, idempotency_key=f"key-{self.number}", on_interrupt=self.on_interrupt),
                )
            except (Transient, QueueFull):
                continue
        if self.cancels or self.script.endswith("never"):
            await turns(random.randrange(200))
            try:
                await world.submissions.cancel(ALICE, self.id, None)
                self.cancels = False
            except (Transient, AlreadyTerminal):
                pass
        while not self.ended:
            stream, subscription = world.streams.open(self.id, self.at)
            try:
                async for batch in stream.batches():
                    for frame in batch:
                        await turns(random.randrange(3))
                        self.frames.append(frame)
                        self.at = frame.cursor or self.at
                        self.ended = frame.event == "end"
            except Transient:
                continue
            finally:
                subscription.close()


async def drive(world: World, clients: list[Client], chaos: Chaos, clock: ManualClock) -> None:
    """Let time pass until every client has seen its end, or the process has died."""
    random = chaos.random
    tasks = [asyncio.ensure_future(client.live(world, random)) for client in clients]
    try:
        starting = asyncio.ensure_future(world.start())
        tasks.append(starting)
        for tick in range(TICKS):
            await turns(TURNS)
            if chaos.dead.is_set() or (starting.done() and all(client.ended for client in clients)):
                return
            if starting.done() and isinstance(starting.exception(), Transient):
                return  # a process that cannot recover ends, and the next one tries
            for task in tasks[:-1]:
                if task.done():
                    task.result()
            clock.advance(random.choice((1, 3, 9)))
            live = list(world.worker._live)  # pyright: ignore[reportPrivateUsage]
            lease = clock.now() + running.LEASE_TTL
            sweep = asyncio.ensure_future(look_after(world, live, lease))
            await turns(TURNS)
            for _ in range(500):
                if sweep.done() or chaos.dead.is_set():
                    break
                await turns(5)
            if not sweep.done():
                await stop(sweep)
            if tick > 20 or random.random() < 0.1:
                world.pods.let("go")
        raise AssertionError(f"no end after {TICKS} ticks: {[client for client in clients if not client.ended]}")
    finally:
        chaos.buried.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        broken = [each for each in world.failures if not isinstance(each, Transient)]
        assert not broken, broken


async def look_after(world: World, live: list[PodKey], lease: datetime) -> None:
    """Do what goes by timers in a real process."""
    try:
        await world.stores.executions.extend_lease(live, world.owner, lease)
        await world.sweeper.sweep()
        await world.dead_letters.retry_due()
    except Transient:
        return


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_happens_every_accepted_run_ends_once_and_is_told_whole(seed: int) -> None:
    random = Random(seed)
    capacity = Capacity(
        running=random.randint(1, 4), running_per_project=4, running_per_lang=4, queued=20, queued_per_project=20
    )
    deaths = [random.randrange(5, 600) for _ in range(random.randrange(5))]
    faults = random.choice((0.0, 0.0, 0.05))
    fused = random.random() < 0.5
    clients = [
        Client(
            number,
            random.choice(SCRIPTS),
            cancels=random.random() < 0.2,
            on_interrupt=random.choice((OnInterrupt.RESTART, OnInterrupt.RESTART, OnInterrupt.FAIL)),
        )
        for number in range(random.randint(2, 7))
    ]
    clock, ids = ManualClock(), CountingIds()
    started: list[PodKey] = []
    with quick_place() as place:
        for life, dies_at in enumerate((*deaths, None)):
            chaos = Chaos(random, dies_at, faults if dies_at else 0.0)
            async with a_world(
                place,
                fused=fused,
                clock=clock,
                ids=ids,
                owner=f"worker-{life}",
                capacity=capacity,
                wrap=chaos.stores,
                make_pods=lambda: WatchedPods(chaos, started),  # noqa: B023  # used in this round alone
                database_type=InlineDatabase,
                expect_failures=bool(dies_at),
            ) as world:
                await drive(world, clients, chaos, clock)
                if not dies_at:
                    await world.until_quiet()
                    await assert_everything_holds(world, clients, started, capacity)


async def assert_everything_holds(
    world: World, clients: list[Client], started: list[PodKey], capacity: Capacity
) -> None:
    assert len({client.id for client in clients}) == len(clients), "two keys stand for one run"
    for client in clients:
        assert client.id is not None
        execution = await world.get(client.id)
        assert execution.result is not None
        before = ""
        for number, step in enumerate(execution.history, 1):
            assert step.version == number
            assert step.type in NEXT[before]
            before = step.type
        assert sum(step.type in TERMINAL for step in execution.history) == 1
        assert execution.attempt <= MAX_ATTEMPTS
        assert execution.outcome is not None
        assert execution.outcome.reason != "output_lost"
        saga = await world.stores.sagas.get(client.id)
        # Whoever is cancelled before the saga began needs none.
        assert saga.step is SagaStep.DONE if saga is not None else execution.attempt == 0
        await assert_told_whole(world, client)
        await assert_artifacts_are_there(world, client)
    everything = [each.id for each in await world.stores.executions.list(ExecutionFilter(), 1000, None)]
    assert sorted(everything) == sorted(client.id for client in clients if client.id), "a key stands for two runs"
    assert set(await world.pods.list()) == set(), "a pod is left"
    again = [await world.submit("wait for-all") for _ in range(capacity.running)]
    for each in again:
        await world.until_started(PodKey(each, 1))
    assert len(started) == len(set(started))


async def assert_artifacts_are_there(world: World, client: Client) -> None:
    assert client.id is not None
    artifacts = (await world.get(client.id)).artifacts
    found = {each.path: await world.stores.blobs.get(each.sha256) for each in artifacts.kept}
    ran = client.script.startswith("leave") and (await world.get(client.id)).outcome == EXITED
    assert found == ({"a/b": b"first\n", "c": b"second\n"} if ran else {})
    assert [each.count for each in artifacts.left_out] == ([3] if ran else [])


async def assert_told_whole(world: World, client: Client) -> None:
    assert client.id is not None
    execution = await world.get(client.id)
    frames = [frame for frame in client.frames if frame.cursor is not None]
    assert not [frame for frame in frames if frame.event == "gap"]
    told = [body(frame)["event_id"] for frame in frames if frame.event is None]
    assert told == [execution.event_id(step.version) for step in execution.history]
    assert [frame.event for frame in frames].count("end") == 1
    for attempt in range(1, execution.attempt + 1):
        tape = await world.stores.tape.read(PodKey(client.id, attempt), 0, 1 << 30)
        streamed = [body(f) for f in frames if f.event == "output" and body(f)["attempt"] == attempt]
        assert [each["seq"] for each in streamed] == [record.seq for record in tape]
        for stream in Stream:
            parts = world.stores.tape.read_stream(PodKey(client.id, attempt), stream, 0, 1 << 30)
            assert b"".join([part async for part in parts]) == b"".join(r.data for r in tape if r.stream is stream)
    again = [frame for frame in await world.frames(client.id) if frame.cursor is not None]
    for event in (None, "output", "end"):
        assert [f.body for f in again if f.event == event] == [f.body for f in frames if f.event == event]
