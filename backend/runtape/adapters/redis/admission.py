"""The admission queue that all processes share, as a script in Redis (``admission.lua``).

Redis carries out one call after another, so a place is given once, whoever asks.  The script follows the queue in
memory step by step: the same orders, the same turns, by the time of the server.

Redis may forget, and it may be gone.  The key ``built`` says that the sagas have been taken over; as long as it is not
there nobody is let through, and `on_forgotten` is called so that somebody makes the queue again.  Whoever asks whether
there is room is told that there is, meanwhile: what is accepted is in the store.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any, Protocol

import structlog
from redis.exceptions import ResponseError

from runtape.adapters.redis.connection import transient
from runtape.domain.events import Priority
from runtape.domain.ids import ExecutionId, ProjectId
from runtape.domain.times import microseconds, moment
from runtape.ports.admission import Capacity, Entry, Gate, Place, Room, Survey, Waiting
from runtape.ports.errors import Transient

log = structlog.get_logger(__name__)

PREFIX = "{runtape:admission}:"
"""The braces keep all keys on one server of a Redis Cluster."""

LOOK_AGAIN_S = 0.2
_ORDER = tuple(Priority)
_UNBUILT = "UNBUILT"


class Script(Protocol):
    """A script that is registered."""

    async def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it.  Raises: RedisError."""
        ...


def script_text() -> str:
    """Return the script."""
    return (files("runtape.adapters.redis") / "admission.lua").read_text()


class RedisAdmissionQueue:
    """`AdmissionQueue` in one Redis; `now` gives the time where it is not the server's."""

    def __init__(
        self,
        script: Script,
        capacity: Capacity,
        *,
        prefix: str = PREFIX,
        on_forgotten: Callable[[], None] | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._script = script
        self._capacity = capacity
        self._prefix = prefix
        self._on_forgotten = on_forgotten
        self._now = now

    async def _call(self, command: str, *given: Any) -> Any:
        """Run one command.  Raises: Transient."""
        capacity = self._capacity
        now_us = 0 if self._now is None else microseconds(self._now())
        limits = capacity.running, capacity.running_per_project, capacity.running_per_lang
        args = [command, now_us, *limits, round(capacity.ageing_s * 1e6), *given]
        try:
            with transient():
                return await self._script(keys=[self._prefix], args=args)
        except Transient as error:
            if isinstance(error.__cause__, ResponseError) and _UNBUILT in str(error.__cause__):
                if self._on_forgotten is not None:
                    self._on_forgotten()
                raise Transient("the admission queue is being made anew", retry_after_s=LOOK_AGAIN_S) from error
            raise

    async def built(self) -> None:
        """Say that the sagas have been taken over: whoever may run is let through from now on."""
        await self._call("built")

    async def set_gate(self, gate: Gate) -> None:
        await self._call("gate", gate.value)

    async def room(self, project_id: ProjectId) -> Room:
        try:
            told = await self._call("room", project_id)
        except Transient as error:
            # What is accepted now waits in the store, and stands in line once there is a queue again.
            log.warning("admission.room_unknown", error=str(error))
            return Room(gate=Gate.OPEN, accepts=True, in_s=0.0)
        gate, waiting, running, own_waiting, own_running, projects, mean_us = told
        capacity = self._capacity
        found = Gate(gate.decode())
        at_once = running < capacity.running and own_running < capacity.running_per_project
        full, full_for_it = waiting >= capacity.queued, own_waiting >= capacity.queued_per_project
        accepts = (not waiting and found is Gate.OPEN and at_once) or not (full or full_for_it)
        mean_s = int(mean_us) / 1e6
        in_s = mean_s / capacity.running if full else 0.0
        if full_for_it:
            # As long as it takes until one of its own is admitted: it shares the places with all who wait.
            in_s = max(in_s, mean_s / min(capacity.running / max(projects, 1), capacity.running_per_project))
        return Room(gate=found, accepts=accepts, in_s=in_s)

    async def offer(self, entry: Entry) -> bool:
        return await self._call("offer", *_fields(entry)) == 1

    async def enqueue(self, entry: Entry) -> None:
        # Not `restore`, which is let through while the queue is being made.
        await self._call("enqueue", 0, *_fields(entry))

    async def rank(self, entry: Entry) -> None:
        await self._call("rank", *_fields(entry))

    async def restore(self, entries: Sequence[Entry], *, admitted: bool) -> None:
        await self._call("restore", int(admitted), *(field for entry in entries for field in _fields(entry)))

    async def release(self, execution_id: ExecutionId) -> None:
        await self._call("release", execution_id)

    async def grant(self) -> Sequence[Entry]:
        return [_entry(found) for found in await self._call("grant")]

    async def held(self, longer_than_s: float) -> Sequence[ExecutionId]:
        found = await self._call("held", round(longer_than_s * 1e6))
        return [ExecutionId(execution_id.decode()) for execution_id in found]

    async def place(self, execution_id: ExecutionId) -> Place | None:
        try:
            found = await self._call("place", execution_id)
        except Transient:
            return None  # nobody stands anywhere just now
        return _place(found) if found else None

    async def drained(self) -> None:
        while (await self.survey()).running:  # noqa: ASYNC110  # whoever runs may be in any process
            await asyncio.sleep(LOOK_AGAIN_S)

    async def survey(self) -> Survey:
        gate, waiting, running, levels, waiting_by_project, running_by_project = await self._call("survey")
        return Survey(
            gate=Gate(gate.decode()),
            capacity=self._capacity,
            waiting=waiting,
            running=running,
            waiting_by_priority=dict(zip(_ORDER, levels, strict=True)),
            waiting_by_project=_counts(waiting_by_project),
            running_by_project=_counts(running_by_project),
        )

    async def waiting(self, limit: int, after: ExecutionId | None) -> Sequence[Waiting]:
        found = await self._call("waiting", limit, after or "")
        return [Waiting(_entry(entry), _ORDER[level], _place(place)) for entry, level, place in found]

    async def front(self, count: int) -> Sequence[ExecutionId]:
        return [ExecutionId(execution_id.decode()) for execution_id in await self._call("front", count)]


def _fields(entry: Entry) -> tuple[str, str, str, int, int]:
    place = _ORDER.index(entry.priority)
    return entry.execution_id, entry.project_id, entry.lang, place, microseconds(entry.since)


def _entry(found: Sequence[Any]) -> Entry:
    execution_id, project_id, lang, place, since_us = found
    return Entry(
        ExecutionId(execution_id.decode()),
        ProjectId(project_id.decode()),
        lang.decode(),
        _ORDER[int(place)],
        moment(int(since_us)),
    )


def _place(found: Sequence[Any]) -> Place:
    position, wait_ms = found
    return Place(position=position, estimated_wait_s=int(wait_ms) / 1000)


def _counts(found: Sequence[bytes]) -> dict[ProjectId, int]:
    return {ProjectId(name.decode()): int(count) for name, count in zip(found[::2], found[1::2], strict=True)}
