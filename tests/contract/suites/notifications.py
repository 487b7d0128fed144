"""What every `NotificationStore` does, and what a `UnitOfWork` does with the notifications of a change."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from runtape.domain.ids import ExecutionId, NotificationId, UserId
from runtape.domain.notification import Notification, Severity
from runtape.ports.errors import VersionConflict
from runtape.ports.notifications import COUNTED, NotificationFilter, NotificationPosition, NotificationStore
from tests.builders import ALICE, an_execution, requested, started
from tests.clocks import START
from tests.contract.suites.retention import DAY, of_day
from tests.contract.suites.stores import ARCHIVAL, Stores, StoresBasic, change, over, stored

BOB = UserId("user-bob")
EVERYTHING = NotificationFilter()
_numbers = iter(range(1_000_000))


def a_notification(name: str = "n", minutes: float = 0, **changes: object) -> Notification:
    notification = Notification(
        id=NotificationId(name),
        user_id=ALICE,
        severity=Severity.HIGH,
        subject="python 3.11 run failed",
        body="The program was ended by signal 9 \u2028 \x00",
        tags=("execution", "failed"),
        created_at=START + timedelta(minutes=minutes),
    )
    return replace(notification, **changes)


async def told(stores: Stores, *notifications: Notification) -> None:
    """Store notifications the only way there is: with a change."""
    document = requested(an_execution(f"teller-{next(_numbers)}"))
    await stores.unit_of_work.commit([replace(change(document, 0), notifications=notifications)])


async def names(
    store: NotificationStore, where: NotificationFilter = EVERYTHING, user_id: UserId = ALICE
) -> Sequence[str]:
    return [each.id for each in await store.list(user_id, where, 100, None)]


class NotificationStoreContract(StoresBasic):
    @pytest.fixture
    def store(self, stores: Stores) -> NotificationStore:
        return stores.notifications

    async def test_it_is_read_as_it_was_written_by_the_next_process_too(self) -> None:
        whole = a_notification("a", execution_id=ExecutionId("execution-9"), read_at=START + timedelta(microseconds=1))
        plain = a_notification("b", -1, tags=(), severity=Severity.MEDIUM)
        async with self.open() as stores:
            await told(stores, plain, whole)
        async with self.open() as stores:
            assert await stores.notifications.list(ALICE, EVERYTHING, 10, None) == [whole, plain]

    async def test_one_that_is_there_stays_as_it_is(self, stores: Stores, store: NotificationStore) -> None:
        await told(stores, a_notification())
        await store.mark_read(ALICE, a_notification().id, START)
        await told(stores, a_notification(subject="told again", user_id=BOB))
        assert await store.list(ALICE, EVERYTHING, 10, None) == [a_notification(read_at=START)]
        assert await names(store, user_id=BOB) == []

    async def test_the_newest_comes_first_and_pages_follow_one_another(
        self, stores: Stores, store: NotificationStore
    ) -> None:
        # Of one moment, the greater id comes first.
        for name, minutes in (("c", 1), ("a", 3), ("b", 1), ("d", 1), ("e", 0), ("f", 2)):
            await told(stores, a_notification(name, minutes))
        expected = ["a", "f", "d", "c", "b", "e"]
        assert await names(store) == expected
        for limit in (1, 2, 4):
            found: list[str] = []
            after: NotificationPosition | None = None
            while page := await store.list(ALICE, EVERYTHING, limit, after):
                assert len(page) <= limit
                found += [each.id for each in page]
                assert len(found) <= len(expected)
                after = NotificationPosition(page[-1].created_at, page[-1].id)
            assert found == expected

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            (NotificationFilter(read=True), ["two"]),
            (NotificationFilter(read=False), ["three", "one"]),
            (NotificationFilter(include_tags=frozenset({"failed"})), ["three", "one"]),
            (NotificationFilter(include_tags=frozenset({"timeout", "failed"})), ["three", "two", "one"]),
            (NotificationFilter(include_tags=frozenset({"fail"})), []),
            (NotificationFilter(exclude_tags=frozenset({"exec:1", "exec:3"})), ["two"]),
            (NotificationFilter(tag_prefix="exec:"), ["three", "two", "one"]),
            (NotificationFilter(tag_prefix="exec:1"), ["one"]),
            (NotificationFilter(tag_prefix="xec"), []),
            (NotificationFilter(tag_prefix="."), []),
            (NotificationFilter(tag_prefix="%"), []),
            (NotificationFilter(tag_prefix="\x00"), []),
            (NotificationFilter(include_tags=frozenset({"' or 1 --", "$ne"})), []),
            (
                NotificationFilter(
                    read=False,
                    include_tags=frozenset({"failed"}),
                    exclude_tags=frozenset({"exec:3"}),
                    tag_prefix="exec:",
                ),
                ["one"],
            ),
        ],
    )
    async def test_all_conditions_hold(
        self, stores: Stores, store: NotificationStore, where: NotificationFilter, expected: list[str]
    ) -> None:
        await told(
            stores,
            a_notification("one", 1, tags=("failed", "exec:1")),
            a_notification("two", 2, tags=("timeout", "exec:2"), read_at=START),
            a_notification("three", 3, tags=("exec:3", "failed")),
            a_notification("none", 4, tags=("failed", "exec:1"), user_id=BOB),
        )
        assert await names(store, where) == expected

    async def test_each_is_its_users_alone(self, stores: Stores, store: NotificationStore) -> None:
        await told(stores, a_notification("mine"), a_notification("his", user_id=BOB))
        assert not await store.mark_read(ALICE, NotificationId("his"), START)
        assert not await store.remove(ALICE, NotificationId("his"))
        await store.mark_all_read(ALICE, START)
        assert await names(store) == ["mine"]
        assert await store.unread_count(BOB) == 1
        assert await names(store, NotificationFilter(read=False), BOB) == ["his"]

    async def test_reading_is_noted_once(self, stores: Stores, store: NotificationStore) -> None:
        await told(stores, a_notification("a"), a_notification("b"))
        assert await store.unread_count(ALICE) == 2
        for later in range(2):
            assert await store.mark_read(ALICE, NotificationId("a"), START + timedelta(hours=later))
        assert not await store.mark_read(ALICE, NotificationId("nobody"), START)
        assert await store.unread_count(ALICE) == 1
        await store.mark_all_read(ALICE, START + timedelta(hours=5))
        assert await store.unread_count(ALICE) == 0
        found = await store.list(ALICE, NotificationFilter(read=True), 10, None)
        assert [(each.id, each.read_at) for each in found] == [("b", START + timedelta(hours=5)), ("a", START)]

    async def test_any_number_is_read_at_once_and_counted_up_to_a_bound(
        self, stores: Stores, store: NotificationStore
    ) -> None:
        await told(stores, *(a_notification(f"n{number}") for number in range(COUNTED + 1)))
        assert await store.unread_count(ALICE) == COUNTED
        await store.mark_all_read(ALICE, START)
        assert await store.unread_count(ALICE) == 0
        assert await store.list(ALICE, NotificationFilter(read=False), 10, None) == []

    async def test_what_is_removed_is_gone(self, stores: Stores, store: NotificationStore) -> None:
        await told(stores, a_notification("a"), a_notification("b"))
        assert await store.remove(ALICE, NotificationId("a"))
        assert not await store.remove(ALICE, NotificationId("a"))
        assert await names(store) == ["b"]

    async def test_the_oldest_go_first_read_or_not_and_a_few_at_a_time(
        self, stores: Stores, store: NotificationStore
    ) -> None:
        for day in (3, 0, 4, 1, 2):
            made_at, read_at = START + day * DAY, START + 9 * DAY if day % 2 else None
            await told(stores, a_notification(f"day-{day}", created_at=made_at, read_at=read_at))
        assert await store.prune(START, 100) == 0, "not older"
        assert await store.prune(START + 3 * DAY, 2) == 2
        assert await names(store) == ["day-4", "day-3", "day-2"]
        assert await store.prune(START + 3 * DAY, 2) == 1
        assert await store.prune(START + 3 * DAY, 2) == 0
        assert await names(store) == ["day-4", "day-3"]

    async def test_an_execution_takes_its_own_with_it(self, stores: Stores, store: NotificationStore) -> None:
        deleted, old, stays = (of_day(number, over(requested(an_execution()))) for number in (1, 0, 2))
        await stored(stores, deleted, old, stays)
        await told(stores, a_notification("about nothing"))
        for execution in (deleted, old, stays):
            await told(stores, a_notification(f"of {execution.id}", execution_id=execution.id))
        await stores.executions.delete(deleted.id, ARCHIVAL)
        assert await names(store) == [f"of {stays.id}", f"of {old.id}", "about nothing"]
        assert await stores.expirable["executions"].prune(START + DAY, 100) == 1
        assert await names(store) == [f"of {stays.id}", "about nothing"]

    async def test_successive_changes_of_one_document_tell_all(self, stores: Stores, store: NotificationStore) -> None:
        first, second = requested(), started()
        changes = [
            replace(change(first, 0), notifications=(a_notification("a"),)),
            replace(change(second, first.version), notifications=(a_notification("b"),)),
        ]
        await stores.unit_of_work.commit(changes)
        assert sorted(await names(store)) == ["a", "b"]


class AtomicNotificationContract(StoresBasic):
    """What a `UnitOfWork` does that can write a document and its notifications in one step."""

    async def test_a_change_that_is_refused_tells_nothing(self, stores: Stores) -> None:
        await stored(stores, requested())
        with pytest.raises(VersionConflict):
            await stores.unit_of_work.commit([replace(change(started(), 7), notifications=(a_notification(),))])
        assert await names(stores.notifications) == []


class NotificationFirstContract(StoresBasic):
    """What a `UnitOfWork` does that writes the two one after another: who dies in between does both again."""

    async def test_it_is_there_before_the_document_is(self, stores: Stores) -> None:
        await stored(stores, requested())
        with pytest.raises(VersionConflict):
            await stores.unit_of_work.commit([replace(change(started(), 7), notifications=(a_notification(),))])
        assert await names(stores.notifications) == [a_notification().id]
        again = a_notification(subject="made again")
        await stores.unit_of_work.commit([replace(change(started(), 1), notifications=(again,))])
        assert await stores.notifications.list(ALICE, EVERYTHING, 10, None) == [a_notification()]
