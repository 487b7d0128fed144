"""Clients over connections that break: they submit until they are told, cancel, read the stream and resume it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

import msgspec

from runtape.application.streaming import Cursor, Frame
from runtape.application.submission import Submission
from runtape.domain.errors import AlreadyTerminal, IdempotencyConflict, QueueFull
from runtape.domain.events import Priority
from runtape.domain.execution import OnInterrupt
from runtape.domain.identity import Principal
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import OutcomeKind
from runtape.ports.errors import InfrastructureError
from runtape.ports.limits import Allowance
from tests.builders import a_principal
from tests.simulation.site import Service, Site
from tests.simulation.world import World

T = TypeVar("T")

USERS = tuple(a_principal(name) for name in ("alice", "bob"))
ANSWER_S = 60.0
"""How long a patient client waits for an answer."""

NEVER = "print begun\nsleep 1000\n"
SCRIPTS = (
    "print hello\n",
    "print a\neprint b\nprint c\nexit 3\n",
    "print before\nsleep 3\nprint after\n",
    "print 1\nsleep 0.02\nprint 2\nsleep 0.02\nprint 3\nsleep 0.05\nprint 4\n",
    "sleep 25\nprint late\nsleep 20\nprint later\n",
    "bytes ff00\nend time_limit\n",
    "print x\nfail gone\n",
    "print y\nsleep 2\nfail gone\n",
    "print z\nsleep 6\nfail gone\n",
    "leave a/b first\nleave c second\nprint z\n",
    "print w\nsleep 300\n",
    "print slow\nsleep 50\nprint done\n",
    NEVER,
)


class Disconnected(Exception):
    """The connection broke, or nobody answered in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a client is going to do."""

    number: int
    user: Principal
    script: str
    key: str | None
    cancels: bool
    priority: Priority
    on_interrupt: OnInterrupt
    begins_s: float
    wall_s: float


def draw_plan(random: Random, number: int, chaos_s: float) -> Plan:
    """Draw the plan of one client."""
    script = random.choice(SCRIPTS)
    if random.random() < 0.15:
        script += "#" * 5000  # too large for its document
    return Plan(
        number=number,
        user=random.choice(USERS),
        script=script,
        key=f"key-{number}" if random.random() < 0.8 else None,
        cancels=script.startswith(NEVER) or random.random() < 0.2,
        priority=random.choice(tuple(Priority)),
        on_interrupt=OnInterrupt.FAIL if random.random() < 0.2 else OnInterrupt.RESTART,
        begins_s=random.uniform(0, chaos_s * 0.7),
        wall_s=random.choice((60.0, 60.0, 20.0)),
    )


def says(plan: Plan) -> OutcomeKind:
    """Return how the program of `plan` ends when nothing else ends it."""
    left_s = plan.wall_s
    for line in plan.script.splitlines():
        word, _, rest = line.partition(" ")
        if word == "sleep":
            left_s -= float(rest)
            if left_s <= 0:
                return OutcomeKind.WALL_LIMIT
        elif word == "end":
            return OutcomeKind(rest)
        elif word == "fail":
            return OutcomeKind.SANDBOX_ERROR
    return OutcomeKind.EXITED


def a_submission(plan: Plan, body: str = "body") -> Submission:
    """Return the request of `plan`."""
    return Submission(
        lang="python",
        lang_version=None,
        script=plan.script,
        stdin=b"",
        args=(),
        env={},
        files=(),
        limits={"wall_s": plan.wall_s},
        priority=plan.priority,
        timeline=False,
        on_interrupt=plan.on_interrupt,
        idempotency_key=plan.key,
        body_sha256=body,
    )


async def request(site: Site, service: Service, ask: Callable[[Service], Awaitable[T]], patience_s: float) -> T:
    """Ask a process for something.  Raises: Disconnected; what the process answers."""
    world, life = site.world, service.life
    answer: asyncio.Future[T] = world.loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(error)

    async def serve() -> None:
        try:
            value = await ask(service)
        except Exception as error:
            world.loop.in_world(world.way_s(), settle, None, error)
        else:
            world.loop.in_world(world.way_s(), settle, value, None)
        finally:
            service.requests -= 1

    def arrive() -> None:
        if life.alive and service.started:
            service.requests += 1
            world.loop.create_task(serve(), name="request", context=life.context)
        else:
            settle(None, Disconnected("nobody listens"))

    world.loop.in_world(world.way_s(), arrive)
    watch = site.on_death(life, lambda: settle(None, Disconnected("the connection broke")))
    try:
        return await asyncio.wait_for(asyncio.shield(answer), patience_s)
    except TimeoutError:
        raise Disconnected("no answer") from None
    finally:
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        watch()


@dataclass
class Client:
    """One client and what it knows, which outlives its connections."""

    site: Site
    plan: Plan
    id: ExecutionId | None = None
    told: bool = False
    """Whether somebody answered with the id."""
    at: Cursor = field(default_factory=Cursor)
    frames: list[Frame] = field(default_factory=list[Frame])
    ended: bool = False
    cancelled: bool = False

    @property
    def _world(self) -> World:
        return self.site.world

    def _note(self, what: str) -> None:
        self._world.note(f"client-{self.plan.number}", what)

    def _patience_s(self) -> float:
        return self._world.random.uniform(0.01, 3.0) if self._world.happens(self._world.mix.impatience) else ANSWER_S

    async def _ask(self, ask: Callable[[Service], Awaitable[T]]) -> T:
        return await request(self.site, await self.site.any_service(), ask, self._patience_s())

    async def live(self) -> None:
        """Submit, cancel if that is the plan, and read to the end."""
        await asyncio.sleep(self.plan.begins_s)
        await self._submit()
        if self.plan.cancels:
            cancelling = self._world.loop.create_task(self._cancel())
            await self._read()
            await cancelling
        else:
            await self._read()

    async def _submit(self) -> None:
        random = self._world.random
        while self.id is None or (self.plan.key is not None and self._world.happens(0.2)):
            try:
                found = await self._ask(self._execute)
            except (Disconnected, InfrastructureError, QueueFull) as error:
                self._note(f"submit -> {type(error).__name__}")
                await asyncio.sleep(random.uniform(0.01, 4.0))
                continue
            if found is None:
                await asyncio.sleep(random.uniform(1.0, 4.0))
                continue
            self._note(f"submit -> {found}")
            self._world.require(self.id in (None, found), "I5", f"{self.plan.key} stands for {self.id} and {found}")
            self.id = found
        if self.plan.key is not None and self._world.random.random() < 0.3:
            await self._misuse_key()

    async def _execute(self, service: Service, body: str = "body") -> ExecutionId | None:
        allowance = Allowance(self._world.mix.allowance, 10.0)
        decision = await service.ports.limiter.take(self.plan.user.user_id, allowance)
        if not decision.allowed:
            return None
        return await service.submissions.execute(self.plan.user, a_submission(self.plan, body))

    async def _misuse_key(self) -> None:
        try:
            other = await self._ask(lambda service: self._execute(service, "another body"))
        except IdempotencyConflict:
            return
        except (Disconnected, InfrastructureError, QueueFull):
            return
        self._world.require(other is None, "I5", f"another body under {self.plan.key} was taken as {other}")

    async def _cancel(self) -> None:
        random, execution_id = self._world.random, self.id
        assert execution_id is not None
        await asyncio.sleep(random.choice((0.0, 0.1, 2.0, 10.0)) * random.random())
        while not self.ended:
            try:
                await self._ask(lambda service: service.submissions.cancel(self.plan.user, execution_id, None))
                self._note("cancelled")
                self.cancelled = True
                return
            except AlreadyTerminal:
                return
            except (Disconnected, InfrastructureError) as error:
                self._note(f"cancel -> {type(error).__name__}")
                await asyncio.sleep(random.uniform(0.01, 3.0))

    async def _read(self) -> None:
        assert self.id is not None
        while not self.ended:
            service = await self.site.any_service()
            connection = Connection(self.site, service, self.id, self.at)
            self._note(f"reads {service.life} from {self.at}")
            try:
                while (frame := await connection.receive()) is not None:
                    self._take(frame)
                    if self.ended or self._world.happens(self._world.mix.drops):
                        break
            finally:
                connection.drop()
            if not self.ended:
                await asyncio.sleep(self._world.random.choice((0.0, 0.5, 5.0)))

    def _take(self, frame: Frame) -> None:
        if frame.cursor is None:
            return
        world, number = self._world, self.plan.number
        word = frame.event or msgspec.json.decode(frame.body)["event_type"]
        self._note(f"<- {word} {frame.cursor}")
        if frame.event == "end":
            self.ended = True
        else:
            world.require(frame.cursor > self.at, "I7", f"client-{number}: {word} {frame.cursor} after {self.at}")
            if frame.event == "output":
                expected = self.at.seq + 1 if frame.cursor.attempt == self.at.attempt else 1
                world.require(
                    frame.cursor.seq == expected, "I7", f"client-{number}: record {frame.cursor}, not {expected}"
                )
        self.frames.append(frame)
        self.at = frame.cursor


class Connection:
    """A stream over a connection that breaks with its process; frames on their way are then lost."""

    def __init__(self, site: Site, service: Service, execution_id: ExecutionId, cursor: Cursor) -> None:
        self._world = site.world
        self._life = service.life
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._arrives_s = 0.0
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._forget = site.on_death(self._life, self._break)
        self._world.loop.in_world(self._world.way_s(), self._open, service, execution_id, cursor)

    def _open(self, service: Service, execution_id: ExecutionId, cursor: Cursor) -> None:
        if not self._life.alive or not service.started:
            self._break()
        elif not self._closed:
            serving = self._serve(service, execution_id, cursor)
            self._task = self._world.loop.create_task(serving, name="stream", context=self._life.context)

    async def _serve(self, service: Service, execution_id: ExecutionId, cursor: Cursor) -> None:
        stream, subscription = service.streams.open(execution_id, cursor)
        try:
            async for batch in stream.batches():
                for frame in batch:
                    self._send(frame)
        except InfrastructureError:
            pass
        finally:
            subscription.close()
            self._send(None)

    def _send(self, frame: Frame | None) -> None:
        self._arrives_s = max(self._arrives_s, self._world.loop.time() + self._world.way_s())
        self._world.loop.call_at(self._arrives_s, self._arrive, frame, context=self._world.loop.world_context)

    def _arrive(self, frame: Frame | None) -> None:
        if not self._closed:
            self._frames.put_nowait(frame)

    def _break(self) -> None:
        self._arrive(None)
        self._closed = True

    async def receive(self) -> Frame | None:
        """Return the next frame; None when the connection is gone."""
        try:
            return await asyncio.wait_for(self._frames.get(), ANSWER_S)
        except TimeoutError:
            return None

    def drop(self) -> None:
        """Close the connection; the process notices."""
        self._closed = True
        self._forget()
        if self._task is not None and not self._task.done():
            self._world.loop.call_soon(self._task.cancel, context=self._life.context)
