"""A service dies at every point of an execution's life, in turn: what was accepted ends exactly once all the same."""

import asyncio
import hashlib
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtape.domain.errors import AlreadyTerminal
from runtape.domain.events import ENDED_BY_STATUS, ExecutionStarted, ResultStored
from runtape.domain.execution import Execution, OnInterrupt
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import OutcomeKind, Status
from runtape.domain.saga import SagaStep
from runtape.domain.tape import Stream
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import BlobStore, TapeStore
from tests.patience import PATIENT
from tests.process.lives import PATIENCE_S, Installation, Killed, Life, Place

SIDE_BY_SIDE = 4
DEATHS_TWICE = 0.2
"""How many of the services that come after a death die too, at some point of their own."""
WHOLE = "completes"
"""The story that is told without patience too."""
EVERY_STORY = os.environ.get("RUNTAPE_CRASH_POINTS") == "all"

pytestmark = pytest.mark.usefixtures("silence")

ENDED = frozenset(event.type for event in ENDED_BY_STATUS.values())
LONG = "x" * 5000
"""Makes a source so large that it is kept as a blob."""


@dataclass(frozen=True)
class Story:
    """What is done to a service, in a way that can be done again after it died, and how it must end."""

    tell: Callable[[Life], Awaitable[dict[str, ExecutionId]]]
    ends: dict[str, tuple[Status, OutcomeKind]]
    prints: dict[str, tuple[bytes, ...]]
    leaves: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    allowed: tuple[str, ...] = ()
    running: int = 4


async def printed(life: Life, execution_id: ExecutionId, records: int) -> None:
    """Wait until the tape holds that many records."""
    tape: TapeStore = await life.unwatched(TapeStore)

    async def holds() -> bool:
        execution = await life.execution(execution_id)
        key = PodKey(execution_id, execution.attempt)
        return execution.status.terminal or (await tape.summary(key)).last_seq >= records

    await life.points.until(holds)


async def completes(life: Life) -> dict[str, ExecutionId]:
    execution_id = await life.submit(
        f"print a{LONG}\neprint b\nleave f/x kept\nleave f/y kept too\nwait go\nprint c\nexit 3", "completes"
    )
    await printed(life, execution_id, 2)
    life.pods.let("go")
    return {"completes": execution_id}


async def is_cancelled(life: Life) -> dict[str, ExecutionId]:
    execution_id = await life.submit("print a\nwait never", "is_cancelled")
    await printed(life, execution_id, 1)
    with suppress(AlreadyTerminal):
        await life.cancel(execution_id)
    return {"is_cancelled": execution_id}


async def fails_of_ours(life: Life) -> dict[str, ExecutionId]:
    return {"fails": await life.submit("print a\nfail lost", "fails")}


async def is_not_repeated(life: Life) -> dict[str, ExecutionId]:
    script = "print a\nend memory_limit"
    return {"once": await life.submit(script, "once", on_interrupt=OnInterrupt.FAIL)}


async def waits_in_line(life: Life) -> dict[str, ExecutionId]:
    first = await life.submit("print 1\nwait first", "first")
    second = await life.submit("print 2", "second")
    third = await life.submit("print 3", "third")
    with suppress(AlreadyTerminal):
        await life.cancel(third)
    life.pods.let("first")
    return {"first": first, "second": second, "third": third}


COMPLETED = (Status.COMPLETED, OutcomeKind.EXITED)
CANCELLED = (Status.CANCELLED, OutcomeKind.CANCELLED)
STORIES = {
    "completes": Story(
        completes,
        {"completes": COMPLETED},
        {"completes": (b"a" + LONG.encode() + b"\nc\n",)},
        {"completes": {"f/x": b"kept\n", "f/y": b"kept too\n"}},
    ),
    "is cancelled": Story(is_cancelled, {"is_cancelled": CANCELLED}, {}),
    "fails of ours": Story(
        fails_of_ours, {"fails": (Status.FAILED, OutcomeKind.SANDBOX_ERROR)}, {"fails": (b"a\n", b"")}
    ),
    "is not repeated": Story(is_not_repeated, {}, {}),
    "waits in line": Story(
        waits_in_line,
        {"first": COMPLETED, "second": COMPLETED},
        {"first": (b"1\n",), "second": (b"2\n",)},
        allowed=("first",),
        running=1,
    ),
}


async def live(installation: Installation, story: Story, dies_at: Place | None) -> tuple[Life, dict[str, ExecutionId]]:
    """Open a service and tell it the story to its end.  Raises: Killed, when the service died on the way."""
    life = await installation.open(dies_at, story.allowed if installation.lives else ())
    told = asyncio.ensure_future(_to_the_end(life, story))
    dead = asyncio.ensure_future(life.points.death.wait())
    await asyncio.wait((told, dead), return_when=asyncio.FIRST_COMPLETED, timeout=3 * PATIENCE_S)
    dead.cancel()
    life.points.spare()
    if life.points.dead:
        told.cancel()
        await asyncio.gather(told, return_exceptions=True)
        raise Killed
    return life, await told


async def _to_the_end(life: Life, story: Story) -> dict[str, ExecutionId]:
    executions = await story.tell(life)
    for execution_id in executions.values():
        await life.points.until(lambda execution_id=execution_id: _done(life, execution_id))
        await life.read_late(execution_id)
    return executions


async def _done(life: Life, execution_id: ExecutionId) -> bool:
    execution = await life.execution(execution_id)
    saga = await life.saga(execution_id)
    # What was cancelled before its saga began never gets one.
    return execution.result is not None and (saga is None or saga.step is SagaStep.DONE)


async def survive(installation: Installation, story: Story, deaths: Sequence[Place]) -> list[Place]:
    """Live through `deaths`, then to the end; return the points at which it died."""
    places: list[Place] = []
    for dies_at in (*deaths, None):
        try:
            life, executions = await live(installation, story, dies_at)
        except Killed:
            places.append(installation.lives[-1].points.passed[-1])
            await installation.bury()
        else:
            if dies_at is None:
                await check(installation, life, story, executions)
            await installation.bury()
            if dies_at is None:
                check_rows(installation, executions)
    return places


async def check(installation: Installation, life: Life, story: Story, executions: dict[str, ExecutionId]) -> None:
    for name, execution_id in executions.items():
        execution = await life.execution(execution_id)
        check_history(execution)
        if name in story.ends:
            assert execution.outcome is not None
            assert (execution.status, execution.outcome.kind) == story.ends[name]
        await check_tape(life, execution, story.prints.get(name))
        await check_artifacts(life, execution, story.leaves.get(name, {}))
        await check_stream(life, execution)
        started = [key.attempt for key in installation.started if key.execution_id == execution_id]
        leased = [step.attempt for step in execution.history if step.type == ExecutionStarted.type]
        assert started == sorted(set(started)), "user code was started twice in one attempt"
        assert set(started) <= set(leased), "user code was started without a lease"
    assert await story.tell(life) == executions, "the idempotency key gives another execution"
    assert await life.service.idle()
    # Every place was given back: another one runs at once.
    another = await life.submit("print another", "another")
    await life.points.until(lambda: _done(life, another))


def check_history(execution: Execution) -> None:
    history = execution.history
    assert [step.version for step in history] == list(range(1, execution.version + 1))
    types = Counter(step.type for step in history)
    assert sum(types[name] for name in ENDED) == 1, types
    assert types[ResultStored.type] == 1
    assert history[-1].type == ResultStored.type
    assert history[-2].type in ENDED
    attempts = [step.attempt for step in history if step.type == ExecutionStarted.type]
    assert attempts == list(range(1, len(attempts) + 1))
    assert len(attempts) <= 3
    assert execution.attempt == len(attempts)
    assert (execution.lease, execution.due_at) == (None, None)


async def check_tape(life: Life, execution: Execution, wanted: tuple[bytes, ...] | None) -> None:
    tape: TapeStore = await life.unwatched(TapeStore)
    key = PodKey(execution.id, execution.attempt)
    summary = await tape.summary(key)
    assert execution.result is not None
    assert summary.last_seq == execution.last_seq
    assert execution.result.stdout_sha256 == summary.stdout_sha256
    data = b"".join([piece async for piece in tape.read_stream(key, Stream.STDOUT, 0, summary.stdout_bytes)])
    assert hashlib.sha256(data).hexdigest() == summary.stdout_sha256
    if wanted is not None:
        assert data in wanted


async def check_artifacts(life: Life, execution: Execution, left: dict[str, bytes]) -> None:
    blobs: BlobStore = await life.unwatched(BlobStore)
    assert {each.path: await blobs.get(each.sha256) for each in execution.artifacts.kept} == left


async def check_stream(life: Life, execution: Execution) -> None:
    """Check that no record of an attempt is missing or there twice, for a new reader and for one that resumed."""
    whole = await life.read_late(execution.id)
    events = [frame.event for frame in whole]
    assert events.count(None) == len(execution.history)
    assert events[-1] == "end"
    assert "gap" not in events
    records = [(at.attempt, at.seq) for frame in whole if frame.event == "output" and (at := frame.cursor) is not None]
    counts = Counter(attempt for attempt, _ in records)
    assert records == [(attempt, seq) for attempt in sorted(counts) for seq in range(1, counts[attempt] + 1)]

    followed = await life.read_to_the_end(execution.id)
    assert followed[-1].event == "end"
    # How events and records lie between one another may differ, live and afterwards; what and in which order may not.
    for event in (None, "output"):
        there, here = ([frame.body for frame in frames if frame.event == event] for frames in (followed, whole))
        assert there == here, [pair for pair in zip(there, here, strict=False) if pair[0] != pair[1]]
    assert {frame.event for frame in followed} <= {None, "output", "end"}


def check_rows(installation: Installation, executions: dict[str, ExecutionId]) -> None:
    with closing(sqlite3.connect(installation.data / "runtape.db")) as connection:

        def rows(query: str) -> list[tuple[object, ...]]:
            return connection.execute(query).fetchall()

        accepted = {row[0] for row in rows("select id from execution where idempotency_key <> 'another'")}
        assert accepted == set(executions.values())
        assert rows("select id from execution where due_at is not null") == []
        assert rows("select execution_id from saga where unfinished or due_at is not null") == []


def chosen(places: Sequence[Place], draw: random.Random, every: bool) -> list[Place]:
    """Return the places to die at: all, or one of each kind."""
    if every:
        return list(places)
    kinds = dict.fromkeys(kind for kind, _ in places)
    return [draw.choice([place for place in places if place[0] == kind]) for kind in kinds]


def missing(places: Sequence[Place], died_at: set[Place]) -> list[Place]:
    """Return the first place of each kind at which no service has died: lives differ in how often they pass one."""
    found = {kind for kind, _ in died_at}
    return [(kind, 1) for kind in dict.fromkeys(kind for kind, _ in places) if kind not in found]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "fused"),
    [
        pytest.param(name, fused, id=f"{name}-{way}", marks=() if name == WHOLE else pytest.mark.needs("patience"))
        for name in STORIES
        for way, fused in (("fused", True), ("stepwise", False))
    ],
)
async def test_accepted_executions_end_exactly_once_wherever_the_service_dies(
    folder: Path, name: str, fused: bool
) -> None:
    """A life is died through at each kind of point.

    The whole one at every single point with patience, every story at every point with `RUNTAPE_CRASH_POINTS=all`.
    """
    story = STORIES[name]
    undisturbed = Installation(folder / "undisturbed", fused, story.running)
    life, executions = await live(undisturbed, story, None)
    places = list(life.points.passed)
    await check(undisturbed, life, story, executions)
    await undisturbed.bury()
    check_rows(undisturbed, executions)
    kinds = {kind for kind, _ in places}
    assert {"UnitOfWork.commit", "TapeStore.append", "PodRuntime.start", "BlobStore.put", "LiveFeed.publish"} <= {
        kind.partition(" ")[2] for kind in kinds
    } | ({"BlobStore.put"} if name != WHOLE else set())
    if fused:
        # The log hands over only what was committed before its consumers began: in one life something, in the next
        # nothing.
        places = [place for place in places if place[0] != "at EventLog.consume"]
    else:
        assert "at EventLog.consume" in kinds

    draw = random.Random(f"{name} {fused}")
    died_at: set[Place] = set()
    at_once = asyncio.Semaphore(SIDE_BY_SIDE)

    async def die_at(place: Place) -> None:
        deaths = [place, draw.choice(places)] if draw.random() < DEATHS_TWICE else [place]
        async with at_once:
            installation = Installation(folder / "-".join(map(str, place)), fused, story.running)
            try:
                died_at.update(await survive(installation, story, deaths))
            except (AssertionError, TimeoutError) as error:
                past = [life.points.passed[-5:] for life in installation.lives]
                raise AssertionError(f"was to die at {deaths}; the lives ended so: {past}") from error
            finally:
                shutil.rmtree(installation.data)

    wanted = chosen(places, draw, every=(PATIENT and name == WHOLE) or EVERY_STORY)
    await asyncio.gather(*map(die_at, wanted))
    for missed in missing(places, died_at):
        await die_at(missed)
    assert missing(places, died_at) == []


@pytest.mark.timeout(240)
@pytest.mark.needs("patience")
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "stepwise"])
@pytest.mark.parametrize("first", ["after PodRuntime.start", "before TapeStore.reached"])
async def test_accepted_executions_end_exactly_once_wherever_their_recovery_dies(
    folder: Path, fused: bool, first: str
) -> None:
    """The first service dies with a run in it; the second, which takes the run up, dies at each kind of point."""
    story = STORIES[WHOLE]
    recovering = Installation(folder / "recovering", fused, story.running)
    with pytest.raises(Killed):
        await live(recovering, story, (first, 1))
    await recovering.bury()
    life, _ = await live(recovering, story, None)
    places = list(life.points.passed)
    await recovering.bury()
    recovery = {"at SagaStore.unfinished", "at ExecutionStore.unfinished", "after UnitOfWork.commit"}
    assert recovery <= {kind for kind, _ in places}

    wanted = chosen(places, random.Random(first), every=EVERY_STORY)
    died_at: set[Place] = set()
    for number, place in enumerate(wanted):
        installation = Installation(folder / str(number), fused, story.running)
        died_at.update(await survive(installation, story, [(first, 1), place]))
        shutil.rmtree(installation.data)
    for missed in missing(places, died_at):
        died_at.update(
            await survive(Installation(folder / missed[0], fused, story.running), story, [(first, 1), missed])
        )
    assert missing(places, died_at) == []
