"""The admission queue in memory."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush, nsmallest
from itertools import chain, count, islice
from typing import TypeVar

from runtape.adapters.embedded.fair_line import FairLine
from runtape.domain.events import Priority
from runtape.domain.ids import ExecutionId, ProjectId
from runtape.ports.admission import Capacity, Entry, Gate, Place, Room, Survey, Waiting
from runtape.ports.clock import Clock

K = TypeVar("K", ProjectId, str)

_ORDER = tuple(Priority)
_SMOOTHING = 0.1
"""Weight of the newest run in the moving average of how long one lasts."""

_STALE = 1000
"""Times of ageing kept for those who wait no more, beside as many as there are of those who do."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """One who waits: in the line of the priority at `level`, as the `number`th to arrive there."""

    entry: Entry
    level: int
    number: int


class InMemoryAdmissionQueue:
    """`AdmissionQueue` for one process.

    There is a `FairLine` per priority, and the next one is the first that has somebody who may run.  Whoever has waited
    long enough in one line goes to the end of the one before it.
    """

    def __init__(self, capacity: Capacity, clock: Clock) -> None:
        self._capacity = capacity
        self._clock = clock
        self._ageing = timedelta(seconds=capacity.ageing_s)
        self._gate = Gate.OPEN
        self._running: dict[ExecutionId, tuple[Entry, float]] = {}
        self._by_project: Counter[ProjectId] = Counter()
        self._by_lang: Counter[str] = Counter()
        self._numbers = count(1)
        turns = count(1)
        self._lines = tuple(FairLine(turns) for _ in _ORDER)
        self._waiting: dict[ExecutionId, _Standing] = {}
        self._waiting_by_project: Counter[ProjectId] = Counter()
        self._ages_at: list[tuple[datetime, int, ExecutionId]] = []
        self._until_drained: list[asyncio.Future[None]] = []
        self._mean_run_s = 1.0

    async def set_gate(self, gate: Gate) -> None:
        self._gate = gate

    async def room(self, project_id: ProjectId) -> Room:
        at_once = not self._waiting and self._gate is Gate.OPEN and self._has_place(project_id)
        in_line = not self._line_is_full() and not self._line_is_full_for(project_id)
        return Room(gate=self._gate, accepts=at_once or in_line, in_s=self._room_in_s(project_id))

    def _room_in_s(self, project_id: ProjectId) -> float:
        capacity = self._capacity
        whole_s = self._mean_run_s / capacity.running if self._line_is_full() else 0.0
        if not self._line_is_full_for(project_id):
            return whole_s
        # As long as it takes until one of its own is admitted: it shares the places with all who wait.
        at_once = min(capacity.running / max(len(self._waiting_by_project), 1), capacity.running_per_project)
        return max(whole_s, self._mean_run_s / at_once)

    async def offer(self, entry: Entry) -> bool:
        if entry.execution_id in self._running:
            return True
        # Somebody who waits and could run goes first; without anybody waiting there is nothing to compare.
        if not self._waiting and self._gate is Gate.OPEN and self._fits(entry):
            self._admit(entry)
            return True
        return False

    async def enqueue(self, entry: Entry) -> None:
        await self.restore((entry,), admitted=False)

    async def rank(self, entry: Entry) -> None:
        standing = self._waiting.get(entry.execution_id)
        if standing is not None:
            self._leave_line(standing)
            self._join_line(entry)

    async def restore(self, entries: Sequence[Entry], *, admitted: bool) -> None:
        for entry in entries:
            if entry.execution_id in self._running or entry.execution_id in self._waiting:
                continue
            if admitted:
                self._admit(entry)
            else:
                self._join_line(entry)

    async def release(self, execution_id: ExecutionId) -> None:
        running = self._running.pop(execution_id, None)
        if running is not None:
            entry, since_s = running
            _less(self._by_project, entry.project_id)
            _less(self._by_lang, entry.lang)
            self._note_load(entry.project_id)
            self._mean_run_s += _SMOOTHING * (self._clock.monotonic_s() - since_s - self._mean_run_s)
            if not self._running:
                self._tell_drained()
        elif (standing := self._waiting.get(execution_id)) is not None:
            self._leave_line(standing)

    async def grant(self) -> Sequence[Entry]:
        granted: list[Entry] = []
        if not self._waiting or self._gate is not Gate.OPEN:
            return granted
        self._age()
        full = {lang for lang, number in self._by_lang.items() if number >= self._capacity.running_per_lang}
        while len(self._running) < self._capacity.running:
            standing = self._next(full)
            if standing is None:
                break
            entry = standing.entry
            self._leave_line(standing)
            self._admit(entry, level=standing.level)
            if self._by_lang[entry.lang] >= self._capacity.running_per_lang:
                full.add(entry.lang)
            granted.append(entry)
        return granted

    async def held(self, longer_than_s: float) -> Sequence[ExecutionId]:
        since_s = self._clock.monotonic_s() - longer_than_s
        return [execution_id for execution_id, (_, at_s) in self._running.items() if at_s < since_s]

    async def place(self, execution_id: ExecutionId) -> Place | None:
        self._age()
        standing = self._waiting.get(execution_id)
        return None if standing is None else self._place(standing)

    async def drained(self) -> None:
        if self._running:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._until_drained.append(future)
            await future

    async def survey(self) -> Survey:
        self._age()
        return Survey(
            gate=self._gate,
            capacity=self._capacity,
            waiting=len(self._waiting),
            running=len(self._running),
            waiting_by_priority={priority: line.size for priority, line in zip(_ORDER, self._lines, strict=True)},
            waiting_by_project=dict(self._waiting_by_project),
            running_by_project=dict(self._by_project),
        )

    async def waiting(self, limit: int, after: ExecutionId | None) -> Sequence[Waiting]:
        self._age()
        chosen = nsmallest(limit, (each for each in self._waiting if after is None or each > after))
        found = [self._waiting[execution_id] for execution_id in chosen]
        return [Waiting(each.entry, _ORDER[each.level], self._place(each)) for each in found]

    async def front(self, count: int) -> Sequence[ExecutionId]:
        in_line = chain.from_iterable(line.in_turn() for line in self._lines)
        return [entry.execution_id for entry in islice(in_line, count)]

    def _has_place(self, project_id: ProjectId) -> bool:
        return (
            len(self._running) < self._capacity.running
            and self._by_project[project_id] < self._capacity.running_per_project
        )

    def _fits(self, entry: Entry) -> bool:
        return self._has_place(entry.project_id) and self._by_lang[entry.lang] < self._capacity.running_per_lang

    def _line_is_full(self) -> bool:
        return len(self._waiting) >= self._capacity.queued

    def _line_is_full_for(self, project_id: ProjectId) -> bool:
        return self._waiting_by_project[project_id] >= self._capacity.queued_per_project

    def _next(self, full: set[str]) -> _Standing | None:
        for line in self._lines:
            entry = line.next(full, self._capacity.running_per_project)
            if entry is not None:
                return self._waiting[entry.execution_id]
        return None

    def _place(self, standing: _Standing) -> Place:
        ahead, own = self._lines[standing.level].before(standing.number, standing.entry)
        ahead += sum(line.size for line in self._lines[: standing.level])
        turns = max((ahead + 1) / self._capacity.running, (own + 1) / self._capacity.running_per_project)
        return Place(position=ahead + 1, estimated_wait_s=round(turns * self._mean_run_s, 3))

    def _admit(self, entry: Entry, level: int | None = None) -> None:
        self._running[entry.execution_id] = (entry, self._clock.monotonic_s())
        self._by_project[entry.project_id] += 1
        self._by_lang[entry.lang] += 1
        self._note_load(entry.project_id, level)

    def _note_load(self, project_id: ProjectId, turn_at: int | None = None) -> None:
        if self._waiting:
            load = self._by_project[project_id]
            for level, line in enumerate(self._lines):
                line.set_load(project_id, load, turn=level == turn_at)

    def _join_line(self, entry: Entry) -> None:
        self._age()  # those whose time has come stand before whoever comes now
        self._stand(entry, _ORDER.index(entry.priority))
        self._waiting_by_project[entry.project_id] += 1

    def _leave_line(self, standing: _Standing) -> None:
        entry = standing.entry
        del self._waiting[entry.execution_id]
        _less(self._waiting_by_project, entry.project_id)
        self._lines[standing.level].remove(standing.number, entry)

    def _stand(self, entry: Entry, level: int) -> None:
        number = next(self._numbers)
        self._waiting[entry.execution_id] = _Standing(entry, level, number)
        self._lines[level].add(number, entry, self._by_project[entry.project_id])
        if level:
            steps = _ORDER.index(entry.priority) - level + 1
            heappush(self._ages_at, (entry.since + steps * self._ageing, number, entry.execution_id))
            if len(self._ages_at) > 2 * len(self._waiting) + _STALE:
                self._ages_at = [each for each in self._ages_at if self._stands(each[2], each[1])]
                heapify(self._ages_at)

    def _stands(self, execution_id: ExecutionId, number: int) -> bool:
        standing = self._waiting.get(execution_id)
        return standing is not None and standing.number == number

    def _age(self) -> None:
        """Let everybody whose time has come go to the line of the next higher priority, in the order of these times."""
        if not self._ages_at:
            return
        now = self._clock.now()
        while self._ages_at and self._ages_at[0][0] <= now:
            _, number, execution_id = heappop(self._ages_at)
            if self._stands(execution_id, number):
                standing = self._waiting[execution_id]
                self._lines[standing.level].remove(number, standing.entry)
                self._stand(standing.entry, standing.level - 1)

    def _tell_drained(self) -> None:
        waiters, self._until_drained = self._until_drained, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _less(counter: "Counter[K]", key: K) -> None:
    """Count one less; nobody is remembered with none."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
