"""Dead letters at work: lines, retries by hand and by schedule, policies, discarding, restarts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from runtape.application import dead_letters as dead_letters_module
from runtape.application.dead_letter_queries import DeadLetterQueries, Level
from runtape.application.dead_letters import DeadLetters, failure_of, stack_digest
from runtape.domain.dead_letter import DEFAULT_POLICIES, DeadLetter, FailureKind, LetterStatus, RetryPolicy, Strategy
from runtape.domain.errors import DeadLetterBlocked, DeadLetterResolved, NotFound
from runtape.domain.events import EXECUTION_EVENTS, POD_COMMANDS
from runtape.domain.ids import DeadLetterId
from runtape.ports.dead_letters import DeadLetterFilter
from runtape.ports.errors import Transient
from tests.application.dead_letter_office import GROUP, Office
from tests.clocks import START
from tests.contract.embedded.basic import quick_place
from tests.contract.suites.dead_letters import a_letter

FIXED = RetryPolicy(strategy=Strategy.FIXED, max_retries=2, base_delay_s=10, max_delay_s=0, jitter=0)
ANY = DeadLetterFilter()


@pytest.fixture
async def office(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    monkeypatch.setattr(dead_letters_module, "PAUSE_S", 0.0)
    with quick_place() as place, capture_logs():
        office = Office(place / "runtape.db")
        await office.start()
        await office.dead_letters.set_policy(POD_COMMANDS, FIXED)
        yield office
        await office.kill()
        assert office.failures == []


async def a_line(office: Office, *, behind: int = 2) -> list[DeadLetter]:
    """Return the letters of a key whose first message is broken."""
    await office.send("k", broken=True)
    for _ in range(behind):
        await office.send("k")
    return await office.letters()


class TestLines:
    async def test_a_key_waits_behind_what_is_dead_and_other_keys_go_on(self, office: Office) -> None:
        await office.send("k")
        letters = [office.item(each) for each in await a_line(office)]
        await office.send("other")
        assert office.applied == [("k", 1), ("other", 1)]
        assert letters == [("k", 2), ("k", 3), ("k", 4)]

    async def test_a_line_that_is_retried_goes_on_in_order_and_then_the_key_is_free(self, office: Office) -> None:
        first, *_ = await a_line(office)
        office.broken.clear()
        done = await office.dead_letters.retry(first.id, "admin")
        assert (done.status, done.resolved_by, done.attempts, done.retries) == ("retried", "admin", 2, 1)
        assert office.applied == [("k", 1)]
        await office.let_time_pass(0)
        assert office.applied == [("k", 1), ("k", 2), ("k", 3)]
        assert [each.resolved_by for each in await office.letters()] == ["admin", None, None]
        await office.send("k")
        assert office.applied[-1] == ("k", 4)
        assert len(await office.letters()) == 3

    async def test_discarding_the_first_lets_the_others_go(self, office: Office) -> None:
        first, *_ = await a_line(office)
        done = await office.dead_letters.discard(first.id, "broken", "admin")
        assert (done.status, done.resolved_by, done.reason, done.resolved_at) == ("discarded", "admin", "broken", START)
        await office.let_time_pass(0)
        assert office.applied == [("k", 2), ("k", 3)]
        assert await office.open_letters() == []

    async def test_one_behind_may_be_discarded_and_not_retried(self, office: Office) -> None:
        _, second, _ = await a_line(office)
        with pytest.raises(DeadLetterBlocked, match="dead letter 1 of the same key comes first"):
            await office.dead_letters.retry(second.id, "admin")
        assert office.calls["k", 2] == 0
        await office.dead_letters.discard(second.id, "not wanted", "admin")
        office.broken.clear()
        await office.let_time_pass(10)
        assert office.applied == [("k", 1), ("k", 3)]

    async def test_one_that_fails_in_its_turn_holds_up_those_behind_it(self, office: Office) -> None:
        await a_line(office, behind=1)
        await office.send("k", broken=True)
        await office.send("k")
        office.broken.remove(("k", 1))
        await office.let_time_pass(10)
        assert office.applied == [("k", 1), ("k", 2)]
        third, fourth = await office.open_letters()
        assert (third.failure, third.status, third.attempts, third.retries) == ("permanent", "scheduled", 1, 1)
        assert (fourth.failure, fourth.status) == ("parked", "pending")

    async def test_parking_survives_a_restart_and_a_redelivery(self, office: Office) -> None:
        await a_line(office)
        for flush in (False, True):
            await office.restart(flush=flush)
            assert [office.item(each) for each in await office.letters()] == [("k", 1), ("k", 2), ("k", 3)]
            assert office.dead_letters.parked_keys == 1
        await office.send("k")
        assert office.applied == []
        office.broken.clear()
        await office.let_time_pass(10)
        assert office.applied == [("k", number) for number in (1, 2, 3, 4)]

    async def test_what_nobody_can_decode_waits_for_an_administrator(self, office: Office) -> None:
        await office.plant("k")
        await office.restart()
        await office.send("k")
        await office.let_time_pass(10)
        await office.let_time_pass(10)
        dead, behind = await office.letters()
        assert (dead.failure, dead.status, dead.retries, dead.message.body) == ("poison", "pending", 2, b"\xff\x00")
        assert behind.status is LetterStatus.PENDING
        again = await office.dead_letters.retry(dead.id, "admin")
        assert (again.status, again.retries) == ("pending", 3)
        await office.dead_letters.discard(dead.id, "rotten", "admin")
        await office.let_time_pass(0)
        assert office.applied == [("k", 2)]

    async def test_what_was_discarded_parks_nothing_when_it_comes_again(self, office: Office) -> None:
        (first,) = await a_line(office, behind=0)
        await office.dead_letters.discard(first.id, "no", "admin")
        await office.restart()
        assert office.calls["k", 1] == 2
        await office.send("k")
        assert office.applied == [("k", 2)]
        assert len(await office.letters()) == 1

    async def test_a_line_whose_end_was_stored_and_not_told_parks_nothing_for_long(self, office: Office) -> None:
        (first,) = await a_line(office, behind=0)
        office.broken.clear()
        office.store.plan = ["", "after"]  # the retry is counted, and its end stored, and that is not told
        with pytest.raises(Transient):
            await office.dead_letters.retry(first.id, "admin")
        await office.send("k")
        await office.let_time_pass(0)
        assert office.applied == [("k", 1), ("k", 2)]
        await office.send("k")
        assert office.applied[-1] == ("k", 3)
        assert await office.open_letters() == []


class TestRetrying:
    async def test_retrying_twice_has_one_effect(self, office: Office) -> None:
        (first,) = await a_line(office, behind=0)
        office.broken.clear()
        once = await office.dead_letters.retry(first.id, "admin")
        assert await office.dead_letters.retry(first.id, "other") == once
        assert office.calls["k", 1] == 2

    async def test_of_many_who_retry_at_once_one_does_it(self, office: Office) -> None:
        (first,) = await a_line(office, behind=0)
        office.broken.clear()
        office.clock.advance(10)
        gate = asyncio.Event()
        office.gate = gate.wait
        await office.dead_letters.retry_due()
        asked = [asyncio.ensure_future(office.dead_letters.retry(first.id, f"admin-{n}")) for n in range(5)]
        await office.dead_letters.retry_due()
        for _ in range(20):
            await asyncio.sleep(0)
        gate.set()
        assert {each.status for each in await asyncio.gather(*asked)} == {LetterStatus.RETRIED}
        await office.settle()
        assert office.calls["k", 1] == 2

    async def test_the_schedule_does_not_repeat_what_somebody_has_just_tried(self, office: Office) -> None:
        (first,) = await a_line(office, behind=0)
        office.clock.advance(10)
        asked = asyncio.ensure_future(office.dead_letters.retry(first.id, "admin"))
        await office.dead_letters.retry_due()
        assert (await asked).retries == 1
        await office.settle()
        assert office.calls["k", 1] == 2

    async def test_what_is_being_retried_is_not_discarded_under_its_handler(self, office: Office) -> None:
        (first,) = await a_line(office, behind=0)
        office.broken.clear()
        gate = asyncio.Event()
        office.gate = gate.wait
        retrying = asyncio.ensure_future(office.dead_letters.retry(first.id, "admin"))
        await asyncio.sleep(0)
        discarding = asyncio.ensure_future(office.dead_letters.discard(first.id, "no", "admin"))
        for _ in range(10):
            await asyncio.sleep(0)
        gate.set()
        assert (await retrying).status is LetterStatus.RETRIED
        with pytest.raises(DeadLetterResolved):
            await discarding

    async def test_a_retry_is_counted_before_the_handler_runs(self, office: Office) -> None:
        """So a message that kills the process is retried as often as the policy says, and no more."""
        await a_line(office, behind=0)

        async def power_cut() -> None:
            raise asyncio.CancelledError

        office.gate = power_cut
        for _ in range(5):
            office.clock.advance(10)
            await office.dead_letters.retry_due()
            await office.settle()
            await office.restart(flush=True)
        assert office.calls["k", 1] == 1 + FIXED.max_retries
        (letter,) = await office.letters()
        assert (letter.status, letter.retries) == ("pending", 2)

    async def test_a_failing_retry_tells_the_new_cause(self, office: Office) -> None:
        (first,) = await a_line(office, behind=0)

        async def busy() -> None:
            raise Transient("busy now")

        office.gate = busy
        failed = await office.dead_letters.retry(first.id, "admin")
        assert (failed.failure, failed.cause) == ("transient", "runtape.ports.errors.Transient: busy now")
        assert failed.stack_digest != first.stack_digest
        assert failed.next_retry_at == START + timedelta(seconds=10)
        assert await office.dead_letters.get(first.id) == failed

    async def test_what_is_discarded_or_absent_or_unserved_is_not_retried(self, office: Office) -> None:
        (first,) = await a_line(office, behind=0)
        await office.dead_letters.discard(first.id, "no", "admin")
        with pytest.raises(DeadLetterResolved):
            await office.dead_letters.retry(first.id, "admin")
        with pytest.raises(DeadLetterResolved):
            await office.dead_letters.discard(first.id, "no", "admin")
        with pytest.raises(NotFound):
            await office.dead_letters.retry(DeadLetterId("77"), "admin")
        other = await office.inner.append(a_letter(50, group="gone"))
        with pytest.raises(DeadLetterBlocked, match="no consumer of the group gone"):
            await office.dead_letters.retry(other.id, "admin")
        assert (await office.dead_letters.discard(other.id, "no", "admin")).status is LetterStatus.DISCARDED

    async def test_many_are_retried_oldest_first_and_each_is_answered_for(self, office: Office) -> None:
        await a_line(office)
        await office.send("bad", broken=True)
        office.broken.remove(("k", 1))
        outcomes, more = await office.dead_letters.retry_all(DeadLetterFilter(key="k"), 2, "admin")
        assert [(each.id, each.outcome) for each in outcomes] == [("1", "retried"), ("2", "retried")]
        assert more
        outcomes, more = await office.dead_letters.retry_all(ANY, 100, "admin")
        assert [each.outcome for each in outcomes] == ["retried", "retried", "retried", "scheduled"]
        assert outcomes[-1].detail == "runtape.ports.errors.Permanent: ('bad', 1) is broken"
        assert not more
        assert office.applied == [("k", 1), ("k", 2), ("k", 3)]
        await a_line(office, behind=0)
        office.broken.clear()
        where = DeadLetterFilter(failure=FailureKind.PERMANENT)
        outcomes, _ = await office.dead_letters.discard_all(where, 100, "all of them", "admin")
        assert [each.outcome for each in outcomes] == ["dead_letter_resolved", "discarded", "discarded"]


class TestSchedule:
    async def test_it_retries_when_the_policy_says_and_gives_up_when_it_says(self, office: Office) -> None:
        await a_line(office)
        assert await office.dead_letters.retry_due() == 10
        await office.let_time_pass(9)
        assert office.calls["k", 1] == 1
        assert await office.dead_letters.retry_due() == 1
        await office.let_time_pass(1)
        assert office.calls["k", 1] == 2
        await office.let_time_pass(10)
        assert office.calls["k", 1] == 3
        assert await office.dead_letters.retry_due() is None
        first, *behind = await office.letters()
        assert (first.status, first.retries, first.attempts) == ("pending", 2, 3)
        assert {each.status for each in behind} == {LetterStatus.PENDING}

    async def test_it_sleeps_no_longer_than_a_jump_of_the_clock_may_be_late(self, office: Office) -> None:
        await office.dead_letters.set_policy(POD_COMMANDS, replace(FIXED, base_delay_s=3600))
        await a_line(office)
        assert await office.dead_letters.retry_due() == 60

    async def test_what_died_by_a_clock_that_was_ahead_is_retried_once_that_is_right(self, office: Office) -> None:
        office.clock.jump(3600)
        await a_line(office)
        office.clock.jump(-3600)
        await office.let_time_pass(0)
        assert office.calls["k", 1] == 2, "not in an hour"
        await office.let_time_pass(0)
        assert office.calls["k", 1] == 2, "and then as the policy says"
        await office.let_time_pass(10)
        assert office.calls["k", 1] == 3

    async def test_what_a_clock_that_was_ahead_has_tried_again_is_retried_once_that_is_right(
        self, office: Office
    ) -> None:
        await a_line(office)
        office.clock.jump(3600)
        await office.let_time_pass(0)
        office.clock.jump(-3600)
        (first, *_) = await office.letters()
        assert (first.first_at, first.last_at) == (START, START + timedelta(hours=1))
        office.broken.clear()
        await office.let_time_pass(0)
        assert office.applied == [("k", 1), ("k", 2), ("k", 3)]

    async def test_a_policy_may_put_off_a_retry_for_longer_than_clocks_are_ahead(self, office: Office) -> None:
        await office.dead_letters.set_policy(POD_COMMANDS, replace(FIXED, base_delay_s=86_400))
        await a_line(office)
        await office.let_time_pass(3600)
        assert office.calls["k", 1] == 1
        await office.let_time_pass(86_400 - 3600)
        assert office.calls["k", 1] == 2

    async def test_manual_takes_off_what_is_scheduled_and_leaves_lines_moving(self, office: Office) -> None:
        first, *_ = await a_line(office)
        await office.dead_letters.set_policy(POD_COMMANDS, replace(FIXED, strategy=Strategy.MANUAL))
        await office.let_time_pass(10)
        assert office.calls["k", 1] == 1
        assert (await office.dead_letters.get(first.id)).status is LetterStatus.PENDING
        office.broken.clear()
        await office.dead_letters.retry(first.id, "admin")
        await office.let_time_pass(0)
        assert office.applied == [("k", 1), ("k", 2), ("k", 3)]

    async def test_the_loop_retries_by_itself_and_wakes_for_what_is_new(self, office: Office) -> None:
        await office.dead_letters.set_policy(POD_COMMANDS, replace(FIXED, strategy=Strategy.IMMEDIATE, max_retries=3))
        reached = asyncio.Event()

        async def count() -> None:
            if office.calls["k", 1] == 4 or office.calls["k", 2] == 1:
                reached.set()

        office.gate = count
        office.tasks.spawn(office.dead_letters.run(), "schedule")
        await office.send("k", broken=True)
        await asyncio.wait_for(reached.wait(), 5)
        reached.clear()
        await office.settle()
        (letter,) = await office.letters()
        assert (letter.status, letter.retries) == ("pending", 3)
        office.broken.clear()
        await office.send("k")
        await office.dead_letters.retry(letter.id, "admin")
        await asyncio.wait_for(reached.wait(), 5)
        await office.settle()
        assert office.applied == [("k", 1), ("k", 2)]

    async def test_a_retry_that_cannot_be_counted_is_left_alone_for_a_while(
        self, office: Office, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await a_line(office)
        monkeypatch.setattr(dead_letters_module, "PAUSE_S", 3600.0)
        office.store.plan = ["before"] * 1000
        office.clock.advance(10)
        for _ in range(50):
            await office.dead_letters.retry_due()
            await asyncio.sleep(0)
        assert len(office.store.plan) == 999
        assert office.calls["k", 1] == 1

    async def test_defaults_hold_for_topics_without_a_policy(self, office: Office) -> None:
        assert await office.dead_letters.policy(EXECUTION_EVENTS) == DEFAULT_POLICIES[EXECUTION_EVENTS]
        assert (await office.dead_letters.policy("other")).max_retries == 4
        assert await office.dead_letters.policy(POD_COMMANDS) == FIXED


class TestPruning:
    async def test_what_is_too_old_is_discarded_by_name_first_and_removed_later(self, office: Office) -> None:
        first, *_ = await a_line(office)
        office.clock.advance(1000)
        await office.send("young", broken=True)
        assert await office.dead_letters.prune(START + timedelta(seconds=500), 2) == 2
        assert await office.dead_letters.prune(START + timedelta(seconds=500), 2) == 1
        assert await office.dead_letters.prune(START + timedelta(seconds=500), 2) == 0
        kept = await office.dead_letters.get(first.id)
        assert (kept.status, kept.resolved_by, kept.reason) == (
            "discarded",
            None,
            "older than the retention of dead letters",
        )
        await office.send("k")
        assert office.applied == [("k", 4)]
        later = START + timedelta(seconds=2000)
        assert [await office.dead_letters.prune(later, 2) for _ in range(3)] == [3, 2, 0]
        assert await office.letters() == []


class TestQueries:
    async def test_stats_count_what_is_open_and_say_how_alarming_it_is(self, office: Office) -> None:
        queries = DeadLetterQueries(office.inner, office.dead_letters)
        empty = await queries.stats()
        assert (empty.open, empty.level, empty.oldest_open_at, empty.parked_keys) == (0, Level.OK, None, 0)
        assert await queries.topics() == []
        first, *_ = await a_line(office)
        await office.dead_letters.discard(first.id, "no", "admin")
        stats = await queries.stats()
        assert stats.by_status == {"pending": 1, "scheduled": 1, "retried": 0, "discarded": 1}
        assert (stats.open, stats.parked_keys, stats.oldest_open_at) == (2, 1, START)
        assert stats.by_topic == {POD_COMMANDS: 2}
        assert stats.by_group == {GROUP: 2}
        assert stats.by_type == {"pod.create": 2}
        for number in range(98):
            await office.inner.append(a_letter(1000 + number, str(number), topic="t"))
        assert (await queries.stats()).level is Level.WARNING
        (commands, other) = await queries.topics()
        assert (commands.topic, commands.open, commands.policy) == (POD_COMMANDS, 2, FIXED)
        assert (other.topic, other.open, other.by_status[LetterStatus.SCHEDULED]) == ("t", 98, 98)

    async def test_pages_follow_each_other(self, office: Office) -> None:
        letters = [await office.inner.append(a_letter(offset, str(offset))) for offset in range(5)]
        queries = DeadLetterQueries(office.inner, office.dead_letters)
        found: list[DeadLetter] = []
        cursor = None
        while True:
            page, cursor = await queries.page(ANY, 2, cursor)
            found += page
            if cursor is None:
                break
        assert found == letters[::-1]


class TestFailures:
    def test_the_digest_is_that_of_the_way_and_not_of_the_message(self) -> None:
        def fail(name: str) -> None:
            raise KeyError(name)

        def other(name: str) -> None:
            raise KeyError(name)

        def caught(which: Callable[[str], None], name: str) -> Exception:
            try:
                which(name)
            except KeyError as error:
                return error
            raise AssertionError

        digests = [stack_digest(caught(which, name)) for which, name in ((fail, "a"), (fail, "b"), (other, "a"))]
        assert digests[0] == digests[1] != digests[2]
        wrapped = Transient("x")
        wrapped.__cause__ = caught(fail, "a")
        assert stack_digest(wrapped) not in digests

    def test_the_cause_is_text_that_can_be_stored_whatever_was_raised(self) -> None:
        class Silent(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        for error in (ValueError("\ud800"), Silent(), ValueError("x" * 100_000)):
            failure = failure_of(error, 1)
            failure.cause.encode()
            assert 0 < len(failure.cause) <= 2000
            assert failure.kind is FailureKind.POISON


class TestOtherProcesses:
    def other(self, office: Office) -> DeadLetters:
        """Return the dead letters of a process that consumes nothing, over the same store."""
        return DeadLetters(store=office.inner, event_log=office.log, clock=office.clock, tasks=office.tasks, look_s=2.0)

    async def test_what_others_consume_is_put_on_their_schedule(self, office: Office) -> None:
        first, second, _ = await a_line(office)
        office.broken.clear()
        other = self.other(office)
        with pytest.raises(DeadLetterBlocked, match=first.id):
            await other.retry(second.id, "admin")
        asked = await other.retry(first.id, "admin")
        assert (asked.status, asked.next_retry_at, asked.retries) == ("scheduled", START, 0)
        assert office.applied == []
        await office.let_time_pass(0)
        assert office.applied == [("k", 1), ("k", 2), ("k", 3)]
        assert (await other.retry(first.id, "admin")).status == "retried"

    async def test_what_is_asked_for_by_a_clock_that_is_ahead_is_retried_now(self, office: Office) -> None:
        (first,) = await a_line(office, behind=0)
        office.broken.clear()
        office.clock.jump(3600)
        await self.other(office).retry(first.id, "admin")
        office.clock.jump(-3600)
        await office.let_time_pass(0)
        assert office.applied == [("k", 1)]

    async def test_what_is_asked_for_is_tried_although_nothing_is_retried_by_itself(self, office: Office) -> None:
        await office.dead_letters.set_policy(POD_COMMANDS, replace(FIXED, strategy=Strategy.MANUAL))
        (first,) = await a_line(office, behind=0)
        assert first.status is LetterStatus.PENDING
        for calls in (2, 3):
            await self.other(office).retry(first.id, "admin")
            await office.let_time_pass(0)
            assert office.calls["k", 1] == calls
        assert (await office.dead_letters.get(first.id)).status is LetterStatus.PENDING

    async def test_a_process_without_others_says_that_nobody_consumes_it(self, office: Office) -> None:
        first, *_ = await a_line(office)
        alone = DeadLetters(store=office.inner, event_log=office.log, clock=office.clock, tasks=office.tasks)
        with pytest.raises(DeadLetterBlocked, match="no consumer"):
            await alone.retry(first.id, "admin")

    async def test_keys_that_others_park_and_free_are_known_after_a_look(self, office: Office) -> None:
        foreign = await office.inner.append(a_letter(77, "k", group=GROUP))
        await office.dead_letters.restore()
        await office.send("k")
        assert office.applied == [], "it waits behind what died elsewhere"
        for letter in await office.letters():
            await office.inner.resolve(letter.id, LetterStatus.DISCARDED, START, "admin", None)
        assert foreign.open
        await office.dead_letters.restore()
        await office.send("k")
        assert office.applied == [("k", 2)]

    async def test_a_key_that_is_parked_while_others_are_looked_at_stays_so(self, office: Office) -> None:
        parked = office.inner.parked

        async def slowly() -> AsyncIterator[tuple[str, str]]:
            found = [line async for line in parked()]
            await office.send("k", broken=True)
            for line in found:
                yield line

        office.store.parked = slowly
        await office.dead_letters.restore()
        await office.send("k")
        assert office.applied == []
