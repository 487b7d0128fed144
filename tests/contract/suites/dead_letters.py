"""What every `DeadLetterStore` does."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runtape.domain.dead_letter import (
    OPEN,
    PARKED,
    DeadLetter,
    Failure,
    FailureKind,
    LetterStatus,
    RetryPolicy,
    Strategy,
    bury,
    failed_again,
    try_again,
)
from runtape.domain.ids import DeadLetterId, EventId
from runtape.ports.dead_letters import DeadLetterFilter, DeadLetterStore
from tests.builders import a_raw_message
from tests.clocks import START
from tests.contract.suites.stores import Stores, StoresBasic

BROKEN = Failure(kind=FailureKind.POISON, cause="KeyError: 'x'\n\u2028\x00", stack_digest="d", attempts=3)
BUSY = Failure(kind=FailureKind.TRANSIENT, cause="busy", attempts=10)
POLICY = RetryPolicy(strategy=Strategy.FIXED, max_retries=2, base_delay_s=10, max_delay_s=0, jitter=0)
RETRIED, DISCARDED = LetterStatus.RETRIED, LetterStatus.DISCARDED


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def a_letter(
    offset: int = 1,
    key: str = "k",
    *,
    group: str = "g",
    failure: Failure = BROKEN,
    message_id: str | None = None,
    at: float = 0,
    **raw: Any,
) -> DeadLetter:
    message = a_raw_message(offset, key, **raw)
    return bury(message, EventId(message_id) if message_id else None, group, failure, POLICY, START + seconds(at))


async def append(store: DeadLetterStore, *letters: DeadLetter) -> list[DeadLetter]:
    return [await store.append(letter) for letter in letters]


def behind(offset: int, key: str = "k", **more: Any) -> DeadLetter:
    """Return a letter that waits behind another one."""
    return a_letter(offset, key, failure=PARKED, **more)


async def parked(store: DeadLetterStore) -> list[tuple[str, str]]:
    return sorted([line async for line in store.parked()])


class DeadLetterStoreContract(StoresBasic):
    @pytest.fixture
    def store(self, stores: Stores) -> DeadLetterStore:
        return stores.dead_letters

    async def test_a_letter_is_read_as_it_was_written_by_the_next_process_too(self) -> None:
        headers = {"correlation_id": "c", "traceparent": "t"}
        strange = a_letter(7, "", message_id="e.1", body=bytes(range(256)), headers=headers, type="\n", partition=3)
        async with self.open() as stores:
            kept, empty = await append(stores.dead_letters, strange, a_letter(8, body=b"", at=0.123456))
            assert replace(kept, id=strange.id) == strange
        async with self.open() as stores:
            for letter in (kept, empty):
                assert await stores.dead_letters.get(letter.id) == letter
                assert await stores.dead_letters.first("g", letter.message.key) == letter

    async def test_ids_are_ordered_as_letters_are_appended_and_never_given_twice(self, store: DeadLetterStore) -> None:
        letters = await append(store, *(a_letter(offset, str(offset), at=-offset) for offset in range(1, 12)))
        assert [each.id for each in await store.oldest(DeadLetterFilter(), 100)] == [each.id for each in letters]
        assert [each.id for each in await store.list(DeadLetterFilter(), 100, None)] == [e.id for e in letters[::-1]]
        await store.resolve(letters[-1].id, RETRIED, START, None, None)
        assert await store.prune(START + seconds(1), 10) == 1
        again = await store.append(a_letter(99))
        assert again.id not in {each.id for each in letters}
        assert (await store.list(DeadLetterFilter(), 1, None))[0] == again

    async def test_the_same_place_of_the_log_has_one_letter_in_each_group(self, store: DeadLetterStore) -> None:
        kept = await store.append(a_letter(1))
        assert await store.append(a_letter(1, failure=BUSY, at=5)) == kept
        others = [a_letter(1, group="other"), a_letter(1, topic="other"), a_letter(1, partition=1), a_letter(2)]
        ids = {each.id for each in await append(store, *others)}
        assert len(ids) == 4
        assert kept.id not in ids
        await store.resolve(kept.id, DISCARDED, START, "admin", "why")
        assert (await store.append(a_letter(1))).status is DISCARDED

    async def test_a_message_that_is_published_twice_has_one_open_letter(self, store: DeadLetterStore) -> None:
        kept = await store.append(a_letter(1, message_id="e.1"))
        assert await store.append(behind(2, message_id="e.1")) == kept
        others = [behind(3, message_id="e.2"), a_letter(4, "other", message_id="e.1"), behind(5)]
        assert len({each.id for each in await append(store, *others)} - {kept.id}) == 3
        await store.resolve(kept.id, RETRIED, START, None, None)
        assert (await store.append(behind(6, message_id="e.1"))).id != kept.id

    async def test_what_is_parked_into_an_empty_line_is_scheduled_at_once(self, store: DeadLetterStore) -> None:
        first, second = await append(store, behind(1, at=3), behind(2, at=4))
        assert (first.status, first.next_retry_at) == (LetterStatus.SCHEDULED, START + seconds(3))
        assert (second.status, second.next_retry_at) == (LetterStatus.PENDING, None)

    async def test_there_is_nothing_under_an_id_that_was_never_given(self, store: DeadLetterStore) -> None:
        await store.append(a_letter())
        for strange in ("", "0", "99", "-1", "x", "1 ", "1\n", "\u0661", "9" * 40, "\ud800"):
            assert await store.get(DeadLetterId(strange)) is None
        ids = frozenset(map(DeadLetterId, ("x", "99")))
        assert await store.oldest(DeadLetterFilter(ids=ids), 10) == []

    async def test_only_one_of_two_changes_takes_place(self, store: DeadLetterStore) -> None:
        letter = await store.append(a_letter())
        tried = try_again(letter, POLICY, START + seconds(10))
        assert await store.replace(letter, tried)
        assert not await store.replace(letter, try_again(letter, POLICY, START + seconds(11)))
        assert await store.get(letter.id) == tried
        failed = failed_again(tried, BUSY)
        assert await store.replace(tried, failed)
        assert await store.get(letter.id) == failed
        await store.resolve(letter.id, RETRIED, START, None, None)
        assert not await store.replace(failed, try_again(failed, POLICY, START))

    async def test_a_line_is_worked_off_from_its_front(self, store: DeadLetterStore) -> None:
        letters = await append(store, a_letter(1), a_letter(10, "other"), *(behind(offset) for offset in (2, 3)))
        first, other, second, third = letters
        at = START + seconds(20)
        assert await store.first("g", "k") == first
        assert await store.resolve(first.id, RETRIED, at, None, None) == 2
        closed = await store.get(first.id)
        assert closed is not None
        assert (closed.status, closed.resolved_at, closed.next_retry_at, closed.open) == (RETRIED, at, None, False)
        assert await store.resolve(first.id, DISCARDED, at, "admin", "again") is None
        now_first = await store.first("g", "k")
        assert now_first == replace(second, status=LetterStatus.SCHEDULED, next_retry_at=second.first_at)
        assert await store.resolve(second.id, DISCARDED, at, "admin", "why") == 1
        discarded = await store.get(second.id)
        assert discarded is not None
        assert (discarded.resolved_by, discarded.reason) == ("admin", "why")
        assert await store.resolve(third.id, RETRIED, at, "admin", None) == 0
        assert await store.first("g", "k") is None
        assert await store.first("g", "other") == other

    async def test_the_front_of_a_line_keeps_its_schedule_when_one_behind_it_is_discarded(
        self, store: DeadLetterStore
    ) -> None:
        first, second, third = await append(store, a_letter(1), behind(2), behind(3))
        assert await store.resolve(second.id, DISCARDED, START, "admin", "why") == 2
        assert await store.first("g", "k") == first
        assert await store.get(third.id) == third

    async def test_one_that_has_failed_is_not_scheduled_by_the_end_of_another(self, store: DeadLetterStore) -> None:
        first, second = await append(store, a_letter(1), behind(2))
        manual = replace(POLICY, strategy=Strategy.MANUAL)
        await store.replace(second, failed_again(try_again(second, manual, START), BUSY))
        await store.resolve(first.id, RETRIED, START, None, None)
        left = await store.first("g", "k")
        assert left is not None
        assert (left.id, left.status, left.next_retry_at) == (second.id, LetterStatus.PENDING, None)

    async def test_open_letters_say_which_keys_are_parked(self) -> None:
        async with self.open() as stores:
            store = stores.dead_letters
            letters = await append(store, *(a_letter(offset, f"k{offset}") for offset in range(600)))
            await append(store, behind(1000, "k0"), a_letter(1001, "k0", group="other"))
            for letter in letters[1:590]:
                await store.resolve(letter.id, RETRIED, START, None, None)
        async with self.open() as stores:
            expected = [("g", "k0"), *(("g", f"k{offset}") for offset in range(590, 600)), ("other", "k0")]
            assert await parked(stores.dead_letters) == expected

    async def test_due_letters_come_longest_overdue_first_and_only_of_these_groups(
        self, store: DeadLetterStore
    ) -> None:
        letters = await append(
            store,
            *(a_letter(offset, str(offset), at=-offset) for offset in range(5)),
            a_letter(9, "9", group="h", at=-9),
        )
        await append(store, behind(20, "0"))
        now = START + seconds(10)
        assert await store.due(["g"], now - seconds(5), 10) == []
        assert [each.message.offset for each in await store.due(["g"], now, 10)] == [4, 3, 2, 1, 0]
        assert [each.message.offset for each in await store.due(["g", "h"], now, 2)] == [9, 4]
        assert await store.due([], now, 10) == []
        assert await store.next_retry_at(["g"], START) == START + seconds(6)
        assert await store.next_retry_at(["g"], START + seconds(6)) == START + seconds(7)
        assert await store.next_retry_at(["g", "h"], START) == START + seconds(1)
        assert await store.next_retry_at(["g"], now) is None
        assert await store.next_retry_at([], START) is None
        await store.resolve(letters[4].id, RETRIED, START, None, None)
        assert await store.next_retry_at(["g"], START) == START + seconds(7)

    async def test_what_was_tried_too_late_to_be_right_is_due_last(self, store: DeadLetterStore) -> None:
        days = replace(POLICY, base_delay_s=2 * 86_400)
        slow, ahead, overdue, tried, *_ = await append(
            store,
            a_letter(1, "1", at=30),
            a_letter(2, "2", at=9000),
            a_letter(3, "3", at=-20),
            a_letter(4, "4", at=-60),
            a_letter(5, "5", group="h", at=9000),
        )
        assert await store.replace(slow, try_again(slow, days, START + seconds(60)))
        assert await store.replace(tried, try_again(tried, POLICY, START + seconds(8000)))
        now, beyond = START, START + seconds(60)
        assert [each.id for each in await store.due(["g"], now, 10, beyond)] == [overdue.id, tried.id, ahead.id]
        assert [each.id for each in await store.due(["g"], now, 2, beyond)] == [overdue.id, tried.id]
        assert [each.id for each in await store.due(["g"], now, 10)] == [overdue.id]
        await store.resolve(ahead.id, RETRIED, START, None, None)
        assert [each.id for each in await store.due(["g"], now, 10, beyond)] == [overdue.id, tried.id]

    async def test_who_is_next_is_due_even_if_a_clock_that_was_ahead_made_room(self, store: DeadLetterStore) -> None:
        first, second = await append(store, a_letter(1), behind(2, at=1))
        assert await store.resolve(first.id, RETRIED, START + seconds(9000), None, None) == 1
        assert [each.id for each in await store.due(["g"], START + seconds(1), 10)] == [second.id]

    async def test_conditions_of_a_filter_hold_together(self, store: DeadLetterStore) -> None:
        letters = await append(
            store,
            a_letter(1, "a", topic="t1", at=0),
            behind(2, "a", topic="t1", at=1),
            a_letter(3, "b", topic="t2", at=2, type="pod.kill"),
            a_letter(4, "b", topic="t2", at=3, group="h", failure=BUSY),
        )
        await store.resolve(letters[2].id, RETRIED, START, None, None)

        async def found(**where: Any) -> list[int]:
            asked = DeadLetterFilter(**where)
            newest = [each.message.offset for each in await store.list(asked, 10, None)]
            assert [each.message.offset for each in await store.oldest(asked, 10)] == newest[::-1]
            return newest

        assert await found() == [4, 3, 2, 1]
        assert await found(topic="t1") == [2, 1]
        assert await found(type="pod.kill") == [3]
        assert await found(group="h") == [4]
        assert await found(key="a", failure=FailureKind.PARKED) == [2]
        assert await found(stack_digest="d") == [3, 1]
        assert await found(statuses=OPEN) == [4, 2, 1]
        assert await found(statuses=frozenset({LetterStatus.PENDING})) == [2]
        assert await found(statuses=frozenset[LetterStatus]()) == []
        assert await found(from_=START + seconds(1), before=START + seconds(3)) == [3, 2]
        assert await found(ids=frozenset({letters[0].id, letters[3].id})) == [4, 1]
        assert await found(ids=frozenset({letters[0].id}), topic="t2") == []
        assert await found(topic="t' or 1 or '") == []

    async def test_pages_have_no_gap_while_letters_come_and_go(self, store: DeadLetterStore) -> None:
        letters = await append(store, *(a_letter(offset, str(offset)) for offset in range(10)))
        page = await store.list(DeadLetterFilter(), 4, None)
        await append(store, a_letter(100))
        await store.resolve(page[-1].id, DISCARDED, START, None, None)
        assert await store.prune(START + seconds(1), 10) == 1
        rest = await store.list(DeadLetterFilter(), 100, page[-1].id)
        assert [*page, *rest] == letters[::-1]
        assert await store.oldest(DeadLetterFilter(), 2) == letters[:2]

    async def test_letters_are_counted_by_what_they_have_in_common(self, store: DeadLetterStore) -> None:
        assert await store.counts() == []
        letters = await append(
            store, a_letter(1, at=1), a_letter(2, "l", at=5), behind(3), a_letter(4, group="h"), a_letter(5, topic="t")
        )
        await store.resolve(letters[3].id, RETRIED, START, None, None)
        counts = {
            (each.topic, each.group, each.status): (each.type, each.count, each.oldest_at, each.newest_at)
            for each in await store.counts()
        }
        topic = letters[0].message.topic
        assert counts == {
            (topic, "g", "scheduled"): ("pod.create", 2, START + seconds(1), START + seconds(5)),
            (topic, "g", "pending"): ("pod.create", 1, START, START),
            (topic, "h", "retried"): ("pod.create", 1, START, START),
            ("t", "g", "scheduled"): ("pod.create", 1, START, START),
        }

    async def test_a_policy_holds_until_another_is_set_and_outlives_the_process(self) -> None:
        async with self.open() as stores:
            assert await stores.dead_letters.policy("t") is None
            await stores.dead_letters.put_policy("t", POLICY)
            await stores.dead_letters.put_policy("t", replace(POLICY, max_retries=7))
        async with self.open() as stores:
            assert await stores.dead_letters.policy("t") == replace(POLICY, max_retries=7)
            assert await stores.dead_letters.policy("u") is None

    async def test_pruning_takes_resolved_letters_alone_the_oldest_first(self, store: DeadLetterStore) -> None:
        letters = await append(store, *(a_letter(offset, str(offset), at=-1000) for offset in range(6)))
        for number in (3, 1, 4):
            await store.resolve(letters[number].id, RETRIED, START + seconds(-number), None, None)
        assert await store.prune(START - seconds(1), 1) == 1
        assert await store.get(letters[4].id) is None
        assert await store.prune(START - seconds(1), 10) == 1
        left = [each.message.offset for each in await store.oldest(DeadLetterFilter(), 10)]
        assert left == [0, 1, 2, 5], "the bound itself is kept, and what is open"
