"""The admission queue in memory."""

from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice

from runtape.domain.events import Priority
from runtape.domain.ids import ExecutionId, ProjectId
from runtape.ports.admission import Capacity, Entry, Place
from runtape.ports.clock import Clock

_ORDER = tuple(Priority)
_SMOOTHING = 0.1
"""Weight of the newest run in the moving average of how long one lasts."""


class InMemoryAdmissionQueue:
    """`AdmissionQueue` for one process.

    Waiting entries stand in one line per priority and project.  The next one is the first admissible entry of
    the project that runs the least, over the priorities in order; a project whose line begins with a language
    at its limit is looked at further down its line.
    """

    def __init__(self, capacity: Capacity, clock: Clock) -> None:
        self._capacity = capacity
        self._clock = clock
        self._running: dict[ExecutionId, tuple[Entry, float]] = {}
        self._by_project: Counter[ProjectId] = Counter()
        self._by_lang: Counter[str] = Counter()
        self._lines: dict[Priority, dict[ProjectId, deque[Entry]]] = {priority: {} for priority in _ORDER}
        self._waiting: dict[ExecutionId, Entry] = {}
        self._waiting_by_project: Counter[ProjectId] = Counter()
        self._mean_run_s = 1.0

    def has_room(self, project_id: ProjectId) -> bool:
        if not self._waiting and self._has_place(project_id):
            return True
        if len(self._waiting) >= self._capacity.queued:
            return False
        return self._waiting_by_project[project_id] < self._capacity.queued_per_project

    async def offer(self, entry: Entry) -> bool:
        if entry.execution_id in self._running:
            return True
        # Somebody who waits and could run goes first; without anybody waiting there is nothing to compare.
        if not self._waiting and self._fits(entry):
            self._admit(entry)
            return True
        return False

    async def enqueue(self, entry: Entry) -> None:
        await self.restore((entry,), admitted=False)

    async def restore(self, entries: Sequence[Entry], *, admitted: bool) -> None:
        for entry in entries:
            if entry.execution_id in self._running or entry.execution_id in self._waiting:
                continue
            if admitted:
                self._admit(entry)
            else:
                self._enqueue(entry)

    async def release(self, execution_id: ExecutionId) -> None:
        running = self._running.pop(execution_id, None)
        if running is not None:
            entry, since = running
            self._by_project[entry.project_id] -= 1
            self._by_lang[entry.lang] -= 1
            if not self._by_project[entry.project_id]:
                del self._by_project[entry.project_id]
            self._mean_run_s += _SMOOTHING * (self._clock.monotonic_s() - since - self._mean_run_s)
        elif execution_id in self._waiting:
            self._leave_line(self._waiting[execution_id])

    async def grant(self) -> Sequence[Entry]:
        granted: list[Entry] = []
        while self._waiting and len(self._running) < self._capacity.running:
            entry = self._next()
            if entry is None:
                break
            self._leave_line(entry)
            self._admit(entry)
            granted.append(entry)
        return granted

    async def place(self, execution_id: ExecutionId) -> Place | None:
        entry = self._waiting.get(execution_id)
        if entry is None:
            return None
        ahead = 0
        for priority in _ORDER:
            lines = self._lines[priority]
            if priority is not entry.priority:
                ahead += sum(map(len, lines.values()))
                continue
            # Fair share takes the projects in turn: before the nth of one line stand up to n of each other one.
            own = lines[entry.project_id].index(entry)
            ahead += own + sum(min(len(line), own) for project, line in lines.items() if project != entry.project_id)
            break
        wait_s = (ahead + 1) * self._mean_run_s / self._capacity.running
        return Place(position=ahead + 1, estimated_wait_s=round(wait_s, 3))

    def front(self, count: int) -> Sequence[ExecutionId]:
        in_line = (
            entry.execution_id for priority in _ORDER for line in self._lines[priority].values() for entry in line
        )
        return list(islice(in_line, count))

    def _has_place(self, project_id: ProjectId) -> bool:
        return (
            len(self._running) < self._capacity.running
            and self._by_project[project_id] < self._capacity.running_per_project
        )

    def _fits(self, entry: Entry) -> bool:
        return self._has_place(entry.project_id) and self._by_lang[entry.lang] < self._capacity.running_per_lang

    def _next(self) -> Entry | None:
        for priority in _ORDER:
            lines = self._lines[priority]
            # Least running first; among equals the one whose first entry has waited longest (ids are in time order).
            for project in sorted(lines, key=lambda p: (self._by_project[p], lines[p][0].execution_id)):
                if not self._has_place(project):
                    continue
                for entry in lines[project]:
                    if self._fits(entry):
                        return entry
        return None

    def _admit(self, entry: Entry) -> None:
        self._running[entry.execution_id] = (entry, self._clock.monotonic_s())
        self._by_project[entry.project_id] += 1
        self._by_lang[entry.lang] += 1

    def _enqueue(self, entry: Entry) -> None:
        self._waiting[entry.execution_id] = entry
        self._waiting_by_project[entry.project_id] += 1
        self._lines[entry.priority].setdefault(entry.project_id, deque()).append(entry)

    def _leave_line(self, entry: Entry) -> None:
        del self._waiting[entry.execution_id]
        self._waiting_by_project[entry.project_id] -= 1
        if not self._waiting_by_project[entry.project_id]:
            del self._waiting_by_project[entry.project_id]
        line = self._lines[entry.priority][entry.project_id]
        line.remove(entry)
        if not line:
            del self._lines[entry.priority][entry.project_id]
