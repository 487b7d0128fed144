"""What every `AdmissionQueue` does."""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtape.domain.events import Priority
from runtape.domain.ids import ExecutionId, ProjectId
from runtape.ports.admission import AdmissionQueue, Capacity, Entry
from runtape.ports.clock import Clock
from tests.clocks import ManualClock

T = TypeVar("T")
ORDER = list(Priority)
NUMBERS = count(1)
"""Ids are in the order of time, as everywhere."""


def an_entry(project: str = "p", lang: str = "python", priority: Priority = Priority.NORMAL) -> Entry:
    return Entry(ExecutionId(f"e{next(NUMBERS):09d}"), ProjectId(project), lang, priority)


def a_capacity(running: int = 2, **others: int) -> Capacity:
    chosen = {"running_per_project": running, "running_per_lang": running, "queued": 100, "queued_per_project": 100}
    return Capacity(running=running, **(chosen | others))


class AdmissionContract(ABC):
    @abstractmethod
    def make(self, capacity: Capacity, clock: Clock) -> AdmissionQueue:
        """Return an empty queue."""

    async def waiting(self, queue: AdmissionQueue, *entries: Entry) -> None:
        for entry in entries:
            assert not await queue.offer(entry)
            await queue.enqueue(entry)

    async def test_whoever_fits_is_admitted_at_once_and_stays_so(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        first = an_entry()
        assert await queue.offer(first)
        assert await queue.offer(first)
        await queue.enqueue(first)
        assert await queue.place(first.execution_id) is None
        assert not await queue.offer(an_entry())
        assert list(await queue.grant()) == []

    async def test_an_offer_that_is_refused_leaves_nothing_behind(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        first, second = an_entry(), an_entry()
        await queue.offer(first)
        assert not await queue.offer(second)
        assert await queue.place(second.execution_id) is None
        await queue.release(first.execution_id)
        assert list(await queue.grant()) == []

    async def test_nobody_passes_those_who_wait(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        first, second = an_entry(), an_entry()
        await queue.offer(first)
        await self.waiting(queue, second)
        await queue.release(first.execution_id)
        assert not await queue.offer(an_entry())
        assert list(await queue.grant()) == [second]

    async def test_releasing_is_idempotent(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        first, second = an_entry(), an_entry()
        await queue.offer(first)
        for _ in range(3):
            await queue.release(first.execution_id)
            await queue.release(ExecutionId("nobody"))
        assert await queue.offer(second)
        assert not await queue.offer(an_entry())

    async def test_the_queue_is_rebuilt_without_admitting_anybody(self) -> None:
        queue = self.make(a_capacity(running=2), ManualClock())
        held = [an_entry() for _ in range(2)]
        line = [an_entry() for _ in range(3)]
        await queue.restore(held, admitted=True)
        await queue.restore(line, admitted=False)
        await queue.restore(line[:1], admitted=True)
        places = [await queue.place(entry.execution_id) for entry in line]
        assert [place and place.position for place in places] == [1, 2, 3]
        assert list(await queue.grant()) == []
        for number, entry in enumerate(held):
            await queue.release(entry.execution_id)
            assert list(await queue.grant()) == [line[number]]

    async def test_what_restarts_smaller_waits_until_its_surplus_has_ended(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        held = [an_entry() for _ in range(3)]
        await queue.restore(held, admitted=True)
        last = an_entry()
        await self.waiting(queue, last)
        for entry in held:
            assert list(await queue.grant()) == []
            await queue.release(entry.execution_id)
        assert list(await queue.grant()) == [last]

    async def test_a_heavy_project_does_not_keep_a_light_one_waiting(self) -> None:
        queue = self.make(a_capacity(running=4), ManualClock())
        heavy = [an_entry("heavy") for _ in range(30)]
        for entry in heavy:
            if not await queue.offer(entry):
                await queue.enqueue(entry)
        light = [an_entry("light") for _ in range(2)]
        await self.waiting(queue, *light)
        await queue.release(heavy[0].execution_id)
        assert list(await queue.grant()) == [light[0]]
        await queue.release(heavy[1].execution_id)
        assert list(await queue.grant()) == [light[1]]

    async def test_a_language_at_its_limit_holds_up_nobody_else(self) -> None:
        queue = self.make(a_capacity(running=3, running_per_lang=1), ManualClock())
        await queue.offer(an_entry(lang="node"))
        node, python = an_entry(lang="node"), an_entry(lang="python")
        await self.waiting(queue, node)
        await queue.enqueue(python)
        assert list(await queue.grant()) == [python]

    async def test_room_is_told_by_project_and_in_whole(self) -> None:
        queue = self.make(a_capacity(running=1, queued=3, queued_per_project=2), ManualClock())
        await queue.offer(an_entry("a"))
        await self.waiting(queue, an_entry("a"), an_entry("a"))
        assert not queue.has_room(ProjectId("a"))
        assert queue.has_room(ProjectId("b"))
        await self.waiting(queue, an_entry("b"))
        assert not queue.has_room(ProjectId("c"))

    async def test_an_installation_without_a_line_accepts_what_can_run_at_once(self) -> None:
        queue = self.make(a_capacity(running=1, queued=0), ManualClock())
        assert queue.has_room(ProjectId("a"))
        await queue.offer(an_entry("a"))
        assert not queue.has_room(ProjectId("a"))

    async def test_an_estimate_follows_how_long_runs_last(self) -> None:
        clock = ManualClock()
        queue = self.make(a_capacity(running=1), clock)
        for _ in range(60):
            entry = an_entry()
            assert await queue.offer(entry)
            clock.advance(8)
            await queue.release(entry.execution_id)
        await queue.offer(an_entry())
        entry = an_entry()
        await self.waiting(queue, an_entry(), entry)
        place = await queue.place(entry.execution_id)
        assert place is not None
        assert place.position == 2
        assert 15 < place.estimated_wait_s < 17

    async def test_the_front_is_those_who_wait(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        await queue.offer(an_entry())
        low, high = an_entry(priority=Priority.LOW), an_entry(priority=Priority.HIGH)
        await self.waiting(queue, low, high)
        assert list(queue.front(5)) == [high.execution_id, low.execution_id]
        assert list(queue.front(1)) == [high.execution_id]


def admission_machine(make: Callable[[Capacity, Clock], AdmissionQueue]) -> Any:
    """Return a test case that plays random calls against a queue and against a model of two lists."""

    class AdmissionMachine(RuleBasedStateMachine):
        @initialize(
            total=st.integers(1, 4), project=st.integers(1, 3), lang=st.integers(1, 3), queued=st.integers(0, 6)
        )
        def begin(self, total: int, project: int, lang: int, queued: int) -> None:
            self.loop = asyncio.new_event_loop()
            self.capacity = a_capacity(
                total, running_per_project=project, running_per_lang=lang, queued=queued, queued_per_project=queued
            )
            self.queue = make(self.capacity, ManualClock())
            self.running: list[Entry] = []
            self.line: list[Entry] = []
            self.ended: list[Entry] = []

        def do(self, call: Coroutine[Any, Any, T]) -> T:
            return self.loop.run_until_complete(call)

        def fits(self, entry: Entry) -> bool:
            projects = Counter(each.project_id for each in self.running)
            langs = Counter(each.lang for each in self.running)
            return (
                len(self.running) < self.capacity.running
                and projects[entry.project_id] < self.capacity.running_per_project
                and langs[entry.lang] < self.capacity.running_per_lang
            )

        def rank(self, entry: Entry) -> tuple[int, int]:
            load = sum(each.project_id == entry.project_id for each in self.running)
            return ORDER.index(entry.priority), load

        @rule(
            project=st.sampled_from("abc"), lang=st.sampled_from(["python", "node"]), priority=st.sampled_from(Priority)
        )
        def arrive(self, project: str, lang: str, priority: Priority) -> None:
            entry = an_entry(project, lang, priority)
            expected = not self.line and self.fits(entry)
            if expected:
                assert self.queue.has_room(entry.project_id)
            assert self.do(self.queue.offer(entry)) == expected
            if expected:
                self.running.append(entry)
            elif self.queue.has_room(entry.project_id):
                self.do(self.queue.enqueue(entry))
                self.line.append(entry)
                assert len(self.line) <= max(self.capacity.queued, 1)

        @precondition(lambda self: self.running or self.line or self.ended)
        @rule(data=st.data())
        def say_it_again(self, data: st.DataObject) -> None:
            entry = data.draw(st.sampled_from(self.running + self.line or self.ended))
            if entry not in self.ended:
                self.do(self.queue.enqueue(entry))
                self.do(self.queue.restore([entry], admitted=entry not in self.running))
            if entry in self.running:
                assert self.do(self.queue.offer(entry))

        @precondition(lambda self: self.running or self.line or self.ended)
        @rule(data=st.data())
        def release(self, data: st.DataObject) -> None:
            entry = data.draw(st.sampled_from(self.running + self.line + self.ended))
            self.do(self.queue.release(entry.execution_id))
            for entries in (self.running, self.line):
                if entry in entries:
                    entries.remove(entry)
                    self.ended.append(entry)

        @rule()
        def grant(self) -> None:
            for entry in self.do(self.queue.grant()):
                assert entry in self.line, "admitted twice, or never asked for"
                assert self.fits(entry), "more than the capacity"
                rivals = [each for each in self.line if self.fits(each)]
                assert self.rank(entry) == min(map(self.rank, rivals)), "priority, then the project that runs the least"
                equals = [
                    each for each in rivals if (each.project_id, each.priority) == (entry.project_id, entry.priority)
                ]
                assert entry is equals[0], "first come, first served"
                self.line.remove(entry)
                self.running.append(entry)
            assert not any(map(self.fits, self.line)), "a place was left free"

        @invariant()
        def everybody_who_waits_has_a_place_and_nobody_else(self) -> None:
            for entry in self.line:
                place = self.do(self.queue.place(entry.execution_id))
                assert place is not None
                assert 1 <= place.position <= len(self.line)
            for entry in self.running + self.ended:
                assert self.do(self.queue.place(entry.execution_id)) is None
            assert set(self.queue.front(99)) == {entry.execution_id for entry in self.line}

        def teardown(self) -> None:
            """Whoever waited is admitted in the end, once, and all places come back."""
            for _ in range(len(self.line) + 1):
                self.grant()
                for entry in list(self.running):
                    self.do(self.queue.release(entry.execution_id))
                    self.running.remove(entry)
            assert not self.line
            fresh = [an_entry(f"fresh-{number}", f"lang-{number}") for number in range(self.capacity.running + 1)]
            assert [self.do(self.queue.offer(entry)) for entry in fresh] == [True] * self.capacity.running + [False]
            self.loop.close()

    case = AdmissionMachine.TestCase
    case.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
    return case
