"""What every `AdmissionQueue` does."""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtape.domain.events import Priority
from runtape.domain.ids import ExecutionId, ProjectId
from runtape.ports.admission import AdmissionQueue, Capacity, Entry, Gate
from runtape.ports.clock import Clock
from tests.clocks import START, ManualClock
from tests.patience import examples

T = TypeVar("T")
ORDER = list(Priority)
AGEING_S = 60
NUMBERS = count(1)
"""Ids are in the order of time, as everywhere."""


def an_entry(
    project: str = "p", lang: str = "python", priority: Priority = Priority.NORMAL, since: datetime = START
) -> Entry:
    return Entry(ExecutionId(f"e{next(NUMBERS):09d}"), ProjectId(project), lang, priority, since)


def a_capacity(running: int = 2, **others: Any) -> Capacity:
    chosen: dict[str, Any] = {
        "running_per_project": running,
        "running_per_lang": running,
        "queued": 100,
        "queued_per_project": 100,
    }
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

    async def test_who_has_had_a_place_for_long_is_told(self) -> None:
        clock = ManualClock()
        queue = self.make(a_capacity(running=2), clock)
        first, second = an_entry(), an_entry()
        await queue.offer(first)
        clock.advance(10)
        await queue.offer(second)
        await self.waiting(queue, an_entry())
        clock.advance(1)
        assert list(await queue.held(10)) == [first.execution_id]
        assert list(await queue.held(0.5)) == [first.execution_id, second.execution_id]
        await queue.release(first.execution_id)
        assert list(await queue.held(10)) == []

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
        assert not (await queue.room(ProjectId("a"))).accepts
        assert (await queue.room(ProjectId("b"))).accepts
        await self.waiting(queue, an_entry("b"))
        assert not (await queue.room(ProjectId("c"))).accepts

    async def test_an_installation_without_a_line_accepts_what_can_run_at_once(self) -> None:
        queue = self.make(a_capacity(running=1, queued=0), ManualClock())
        assert (await queue.room(ProjectId("a"))).accepts
        await queue.offer(an_entry("a"))
        assert not (await queue.room(ProjectId("a"))).accepts

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

    async def test_an_estimate_knows_the_limit_of_the_project(self) -> None:
        queue = self.make(a_capacity(running=8, running_per_project=1), ManualClock())
        await queue.offer(an_entry("a"))
        line = [an_entry("a") for _ in range(4)]
        await self.waiting(queue, *line)
        places = [await queue.place(entry.execution_id) for entry in line]
        assert [place and place.estimated_wait_s for place in places] == [1.0, 2.0, 3.0, 4.0]

    async def test_projects_stand_in_turn(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        await queue.offer(an_entry("other"))
        heavy = [an_entry("heavy") for _ in range(4)]
        light = [an_entry("light") for _ in range(2)]
        await self.waiting(queue, *heavy, *light)
        places = [await queue.place(entry.execution_id) for entry in (*heavy, *light)]
        assert [place and place.position for place in places] == [1, 3, 5, 6, 2, 4]
        expected = [heavy[0], light[0], heavy[1], light[1], heavy[2], heavy[3]]
        assert list(await queue.front(9)) == [entry.execution_id for entry in expected]
        assert list(await queue.front(3)) == [entry.execution_id for entry in expected[:3]]

    async def test_equals_take_turns_and_a_newcomer_the_last_one(self) -> None:
        """With one place nobody ever runs more than another: only turns can be fair."""
        queue = self.make(a_capacity(running=1), ManualClock())
        current = an_entry("a")
        await queue.offer(current)
        await self.waiting(queue, *[an_entry(project) for project in "aaabbb"])
        turns: list[str] = []
        for number in range(8):
            if number == 1:
                await self.waiting(queue, an_entry("c"), an_entry("c"))
            await queue.release(current.execution_id)
            (current,) = await queue.grant()
            turns.append(current.project_id)
        assert "".join(turns) == "abacbacb"

    async def test_the_front_is_those_who_wait(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        await queue.offer(an_entry())
        low, high = an_entry(priority=Priority.LOW), an_entry(priority=Priority.HIGH)
        await self.waiting(queue, low, high)
        assert list(await queue.front(5)) == [high.execution_id, low.execution_id]
        assert list(await queue.front(1)) == [high.execution_id]

    async def test_whoever_waits_long_stands_with_the_next_higher_priority(self) -> None:
        clock = ManualClock()
        queue = self.make(a_capacity(running=1, ageing_s=60), clock)
        await queue.offer(an_entry())
        low, old = an_entry("a", priority=Priority.LOW), an_entry("b", priority=Priority.BACKGROUND)
        await self.waiting(queue, low, old)
        clock.advance(60)
        normal = an_entry("c", since=clock.now())
        await self.waiting(queue, normal)
        standing = {each.entry.execution_id: each.priority for each in await queue.waiting(9, None)}
        assert list(standing.values()) == [Priority.NORMAL, Priority.LOW, Priority.NORMAL]
        assert list(await queue.front(9)) == [low.execution_id, normal.execution_id, old.execution_id]
        clock.advance(10_000)
        assert {each.priority for each in await queue.waiting(9, None)} == {Priority.CRITICAL}
        again = self.make(a_capacity(running=1, ageing_s=60), clock)
        await again.restore([low, old, normal], admitted=False)
        assert {each.priority for each in await again.waiting(9, None)} == {Priority.CRITICAL}, "a restart costs no age"

    async def test_background_work_is_done_in_the_end_however_much_comes_before_it(self) -> None:
        clock = ManualClock()
        queue = self.make(a_capacity(running=1, ageing_s=60), clock)
        current = an_entry()
        await queue.offer(current)
        last = an_entry("quiet", priority=Priority.BACKGROUND)
        await self.waiting(queue, last)
        for _ in range(60):
            for _ in range(2):  # twice as much as there is room for
                await queue.enqueue(an_entry("flood", priority=Priority.CRITICAL, since=clock.now()))
            clock.advance(5)
            await queue.release(current.execution_id)
            (current,) = await queue.grant()
            if current == last:
                assert 4 * 60 <= (clock.now() - START).total_seconds() <= 4 * 60 + 10
                return
        raise AssertionError("starved")

    async def test_who_is_ranked_anew_stands_there_and_only_who_waits_is(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        running, first, second = an_entry(), an_entry(), an_entry()
        await queue.offer(running)
        await self.waiting(queue, first, second)
        await queue.rank(replace(second, priority=Priority.HIGH))
        assert list(await queue.front(9)) == [second.execution_id, first.execution_id]
        await queue.rank(replace(running, priority=Priority.HIGH))
        await queue.rank(an_entry(priority=Priority.HIGH))
        survey = await queue.survey()
        assert (survey.waiting, survey.running) == (2, 1)
        assert survey.waiting_by_priority[Priority.HIGH] == survey.waiting_by_priority[Priority.NORMAL] == 1
        await queue.release(running.execution_id)
        assert [entry.execution_id for entry in await queue.grant()] == [second.execution_id]

    async def test_a_closed_gate_admits_nobody_and_touches_nobody(self) -> None:
        queue = self.make(a_capacity(running=2, queued=2), ManualClock())
        running = an_entry()
        assert await queue.offer(running)
        for gate in (Gate.PAUSED, Gate.DRAINING):
            await queue.set_gate(gate)
            assert (await queue.room(ProjectId("p"))).gate is gate
            assert await queue.offer(running), "who runs goes on"
            late = an_entry()
            assert not await queue.offer(late)
            assert (await queue.room(late.project_id)).accepts
            await queue.enqueue(late)
            assert list(await queue.grant()) == []
        assert not (await queue.room(late.project_id)).accepts, "the line is full"
        await queue.set_gate(Gate.OPEN)
        assert len(await queue.grant()) == 1

    async def test_it_is_drained_once_nobody_runs(self) -> None:
        queue = self.make(a_capacity(running=2), ManualClock())
        await queue.drained()
        entries = [an_entry(), an_entry()]
        for entry in entries:
            await queue.offer(entry)
        drained = asyncio.ensure_future(queue.drained())
        given_up = asyncio.ensure_future(queue.drained())
        for entry in entries:
            await asyncio.sleep(0)
            assert not drained.done()
            given_up.cancel()
            await queue.release(entry.execution_id)
        async with asyncio.timeout(5):
            await drained

    async def test_room_is_expected_when_a_place_in_the_line_may_be_free(self) -> None:
        clock = ManualClock()
        queue = self.make(a_capacity(running=2, queued=4, queued_per_project=2), clock)
        for _ in range(60):
            entry = an_entry("a")
            await queue.offer(entry)
            clock.advance(10)
            await queue.release(entry.execution_id)
        assert (await queue.room(ProjectId("a"))).in_s == 0
        await queue.offer(an_entry("a"))
        await queue.offer(an_entry("b"))
        await self.waiting(queue, an_entry("a"), an_entry("a"))
        assert 4.9 < (await queue.room(ProjectId("a"))).in_s < 5.1, "one of its own leaves the line with each place"
        assert (await queue.room(ProjectId("b"))).in_s == 0
        await self.waiting(queue, an_entry("b"), an_entry("b"))
        assert 9.9 < (await queue.room(ProjectId("a"))).in_s < 10.1, "with every second place"
        assert 4.9 < (await queue.room(ProjectId("c"))).in_s < 5.1, "whoever is admitted makes room"

    async def test_pages_of_those_who_wait_have_no_gap_and_no_duplicate(self) -> None:
        queue = self.make(a_capacity(running=1), ManualClock())
        await queue.offer(an_entry())
        line = [an_entry(project, priority=priority) for project in "ab" for priority in Priority]
        await self.waiting(queue, *line)
        found: list[Entry] = []
        while page := await queue.waiting(3, found[-1].execution_id if found else None):
            assert len(page) <= 3
            found += [each.entry for each in page]
            for each in page:
                assert each.place == await queue.place(each.entry.execution_id)
        assert found == line


def admission_machine(make: Callable[[Capacity, Clock], AdmissionQueue]) -> Any:
    """Return a test case that plays random calls against a queue and against a model of lists."""

    class AdmissionMachine(RuleBasedStateMachine):
        @initialize(
            total=st.integers(1, 4), project=st.integers(1, 3), lang=st.integers(1, 3), queued=st.integers(0, 6)
        )
        def begin(self, total: int, project: int, lang: int, queued: int) -> None:
            self.loop = asyncio.new_event_loop()
            self.clock = ManualClock()
            self.capacity = a_capacity(
                total,
                running_per_project=project,
                running_per_lang=lang,
                queued=queued,
                queued_per_project=queued,
                ageing_s=AGEING_S,
            )
            self.queue = make(self.capacity, self.clock)
            self.gate = Gate.OPEN
            self.running: list[Entry] = []
            self.line: list[tuple[int, Entry]] = []
            """Those who wait, with the place of their priority, in the order in which they came to stand with it."""
            self.ended: list[Entry] = []

        def do(self, call: Coroutine[Any, Any, T]) -> T:
            return self.loop.run_until_complete(call)

        @property
        def waiting(self) -> list[Entry]:
            return [entry for _, entry in self.line]

        def fits(self, entry: Entry) -> bool:
            projects = Counter(each.project_id for each in self.running)
            langs = Counter(each.lang for each in self.running)
            return (
                len(self.running) < self.capacity.running
                and projects[entry.project_id] < self.capacity.running_per_project
                and langs[entry.lang] < self.capacity.running_per_lang
            )

        def age(self) -> None:
            def next_at(standing: tuple[int, Entry]) -> datetime:
                level, entry = standing
                return entry.since + (ORDER.index(entry.priority) - level + 1) * timedelta(seconds=AGEING_S)

            while late := [each for each in self.line if each[0] and next_at(each) <= self.clock.now()]:
                level, entry = min(late, key=next_at)
                self.line.remove((level, entry))
                self.line.append((level - 1, entry))

        def stand(self, entry: Entry) -> None:
            self.age()
            self.line.append((ORDER.index(entry.priority), entry))
            self.age()

        def leave(self, entry: Entry) -> None:
            self.line = [each for each in self.line if each[1] != entry]

        def rank(self, standing: tuple[int, Entry]) -> tuple[int, int]:
            level, entry = standing
            return level, sum(each.project_id == entry.project_id for each in self.running)

        @rule(
            project=st.sampled_from("abc"), lang=st.sampled_from(["python", "node"]), priority=st.sampled_from(Priority)
        )
        def arrive(self, project: str, lang: str, priority: Priority) -> None:
            entry = an_entry(project, lang, priority, self.clock.now())
            expected = not self.line and self.gate is Gate.OPEN and self.fits(entry)
            if expected:
                assert self.do(self.queue.room(entry.project_id)).accepts
            assert self.do(self.queue.offer(entry)) == expected
            if expected:
                self.running.append(entry)
            elif self.do(self.queue.room(entry.project_id)).accepts:
                self.do(self.queue.enqueue(entry))
                self.stand(entry)
                assert len(self.line) <= max(self.capacity.queued, 1)
            else:
                assert self.do(self.queue.room(entry.project_id)).in_s > 0

        @precondition(lambda self: self.running or self.line or self.ended)
        @rule(data=st.data())
        def say_it_again(self, data: st.DataObject) -> None:
            entry = data.draw(st.sampled_from(self.running + self.waiting or self.ended))
            if entry not in self.ended:
                self.do(self.queue.enqueue(entry))
                self.do(self.queue.restore([entry], admitted=entry not in self.running))
            if entry in self.running:
                assert self.do(self.queue.offer(entry))

        @precondition(lambda self: self.running or self.line or self.ended)
        @rule(data=st.data())
        def release(self, data: st.DataObject) -> None:
            entry = data.draw(st.sampled_from(self.running + self.waiting + self.ended))
            self.do(self.queue.release(entry.execution_id))
            if entry not in self.ended:
                self.ended.append(entry)
            self.running = [each for each in self.running if each != entry]
            self.leave(entry)

        @precondition(lambda self: self.running or self.line or self.ended)
        @rule(data=st.data(), priority=st.sampled_from(Priority))
        def rank_anew(self, data: st.DataObject, priority: Priority) -> None:
            entry = data.draw(st.sampled_from(self.running + self.waiting + self.ended))
            anew = replace(entry, priority=priority, since=self.clock.now())
            self.do(self.queue.rank(anew))
            if entry in self.waiting:
                self.age()
                self.leave(entry)
                self.stand(anew)

        @rule(seconds=st.integers(1, 3 * AGEING_S))
        def wait(self, seconds: int) -> None:
            self.clock.advance(seconds)

        @rule(gate=st.sampled_from(Gate))
        def set_gate(self, gate: Gate) -> None:
            self.do(self.queue.set_gate(gate))
            self.gate = gate

        @rule()
        def begin_anew(self) -> None:
            """What comes from the sagas is in the order of ids, and knows since when it waits."""
            self.queue = make(self.capacity, self.clock)
            self.do(self.queue.set_gate(self.gate))
            self.do(self.queue.restore(self.running, admitted=True))
            line, self.line = sorted(self.waiting, key=lambda entry: entry.execution_id), []
            self.do(self.queue.restore(line, admitted=False))
            for entry in line:
                self.stand(entry)

        @rule()
        def grant(self) -> None:
            granted = self.do(self.queue.grant())
            assert not granted or self.gate is Gate.OPEN
            self.age()
            for entry in granted:
                assert entry in self.waiting, "admitted twice, or never asked for"
                assert self.fits(entry), "more than the capacity"
                rivals = [each for each in self.line if self.fits(each[1])]
                level = next(each[0] for each in self.line if each[1] == entry)
                assert self.rank((level, entry)) == min(map(self.rank, rivals)), "priority, then who runs the least"
                equals = [each for each in rivals if (each[0], each[1].project_id) == (level, entry.project_id)]
                assert entry == equals[0][1], "first come, first served"
                self.leave(entry)
                self.running.append(entry)
            assert self.gate is not Gate.OPEN or not any(map(self.fits, self.waiting)), "a place was left free"

        @invariant()
        def everybody_who_waits_has_a_place_and_nobody_else(self) -> None:
            self.age()
            for level, entry in self.line:
                place = self.do(self.queue.place(entry.execution_id))
                assert place is not None
                before = sum(each[0] < level for each in self.line)
                assert before < place.position <= before + sum(each[0] == level for each in self.line)
            for entry in self.running + self.ended:
                assert self.do(self.queue.place(entry.execution_id)) is None
            assert set(self.do(self.queue.front(99))) == {entry.execution_id for entry in self.waiting}
            assert [each.entry for each in self.do(self.queue.waiting(99, None))] == sorted(
                self.waiting, key=lambda entry: entry.execution_id
            )

        @invariant()
        def it_counts_right(self) -> None:
            survey = self.do(self.queue.survey())
            assert (survey.waiting, survey.running, survey.gate) == (len(self.line), len(self.running), self.gate)
            assert survey.waiting_by_project == Counter(entry.project_id for entry in self.waiting)
            assert survey.running_by_project == Counter(entry.project_id for entry in self.running)
            levels = Counter(level for level, _ in self.line)
            assert list(survey.waiting_by_priority.items()) == [(each, levels[ORDER.index(each)]) for each in Priority]

        def teardown(self) -> None:
            """Whoever waited is admitted in the end, once, and all places come back."""
            self.set_gate(Gate.OPEN)
            for _ in range(len(self.line) + 1):
                self.grant()
                for entry in list(self.running):
                    self.do(self.queue.release(entry.execution_id))
                    self.running.remove(entry)
            assert not self.line
            self.it_counts_right()
            fresh = [an_entry(f"fresh-{number}", f"lang-{number}") for number in range(self.capacity.running + 1)]
            assert [self.do(self.queue.offer(entry)) for entry in fresh] == [True] * self.capacity.running + [False]
            self.loop.close()

    case = AdmissionMachine.TestCase
    case.settings = settings(max_examples=examples(100), stateful_step_count=30, deadline=None)
    return case
