"""The relay, against an outbox in memory: in order, exactly what was published, and nothing lost."""

from collections import Counter
from collections.abc import Collection, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runtape.application.flow import Tasks
from runtape.application.relaying import Relay, RelayingUnitOfWork, key_of
from runtape.domain.events import Message, PodCreate
from runtape.domain.ids import EventId, ExecutionId
from runtape.ports.errors import Transient
from runtape.ports.outbox import DocumentKey, DocumentKind, Waiting
from runtape.ports.stores import Change
from tests.builders import EXECUTION, PROJECT, an_execution
from tests.clocks import START
from tests.contract.suites.stores import acceptance, saga_of
from tests.coroutines import at_once
from tests.patience import examples

KEY = DocumentKey(DocumentKind.EXECUTION, EXECUTION)


def message(number: int, execution_id: str = EXECUTION) -> Message:
    return PodCreate(execution_id=ExecutionId(execution_id), project_id=PROJECT, at=START, attempt=number)


class Outboxes:
    """`Outbox` and `Publisher` that fail when they are told to."""

    def __init__(self) -> None:
        self.waiting: dict[DocumentKey, list[Message]] = {}
        self.log: list[Message] = []
        self.refuses: set[EventId] = set()
        self.forgets = False
        self.reads = 0
        self.taken_up: Counter[DocumentKey] = Counter()

    def write(self, key: DocumentKey, *messages: Message) -> None:
        self.waiting.setdefault(key, []).extend(messages)

    async def read(self, document: DocumentKey) -> Sequence[Message]:
        self.reads += 1
        return tuple(self.waiting.get(document, ()))

    async def remove(self, document: DocumentKey, published: Collection[EventId]) -> None:
        if self.forgets:
            raise Transient("the store is busy")
        left = [each for each in self.waiting.pop(document) if each.id not in published]
        if left:
            self.waiting[document] = left

    async def unpublished(self, limit: int) -> Sequence[Waiting]:
        return [Waiting(key, self.taken_up[key]) for key in self.waiting][:limit]

    async def take_up(self, waiting: Waiting) -> bool:
        if self.taken_up[waiting.document] != waiting.mark or waiting.document not in self.waiting:
            return False
        self.taken_up[waiting.document] += 1
        return True

    async def publish(self, message: Message) -> None:
        if message.id in self.refuses:
            raise Transient("the log is busy")
        self.log.append(message)


def a_relay(outboxes: Outboxes) -> tuple[Relay, Tasks]:
    failures: list[BaseException] = []
    tasks = Tasks(lambda name, error: failures.append(error))
    return Relay(outbox=outboxes, publisher=outboxes, tasks=tasks), tasks


async def settled(tasks: Tasks) -> None:
    running = list(tasks._tasks)  # pyright: ignore[reportPrivateUsage]
    for task in running:
        await task


async def test_what_was_published_is_removed_and_what_follows_a_failure_waits() -> None:
    outboxes = Outboxes()
    relay, _ = a_relay(outboxes)
    first, second, third = (message(number) for number in (1, 2, 3))
    outboxes.write(KEY, first, second, third)
    outboxes.refuses = {second.id}
    with pytest.raises(Transient):
        await relay.publish(KEY)
    assert outboxes.log == [first], "the log has nothing before what was told earlier"
    assert outboxes.waiting == {KEY: [second, third]}
    outboxes.refuses.clear()
    await relay.publish(KEY)
    assert outboxes.log == [first, second, third]
    assert outboxes.waiting == {}


async def test_what_is_written_while_it_publishes_is_published_too_and_only_once() -> None:
    outboxes = Outboxes()
    relay, tasks = a_relay(outboxes)
    outboxes.write(KEY, message(1))
    relay.soon(KEY)
    outboxes.write(KEY, message(2))
    relay.soon(KEY)
    await settled(tasks)
    assert [each.attempt for each in outboxes.log] == [1, 2]
    assert outboxes.waiting == {}


async def test_the_sweep_takes_what_was_left_behind_and_not_what_was_just_written() -> None:
    outboxes = Outboxes()
    relay, tasks = a_relay(outboxes)
    left, fresh = DocumentKey(DocumentKind.SAGA, EXECUTION), DocumentKey(DocumentKind.EXECUTION, ExecutionId("fresh"))
    outboxes.write(left, message(1))
    await relay.sweep()
    outboxes.write(fresh, message(1, "fresh"))
    await relay.sweep()
    await settled(tasks)
    assert outboxes.log == [message(1)]
    assert list(outboxes.waiting) == [fresh]


async def test_of_two_that_sweep_one_takes_up_what_was_left_behind() -> None:
    outboxes = Outboxes()
    outboxes.write(KEY, message(1))
    (one, tasks), (other, more) = a_relay(outboxes), a_relay(outboxes)
    for relay in (one, other, one, other):
        await relay.sweep()
    await settled(tasks)
    await settled(more)
    assert outboxes.log == [message(1)]


async def test_a_message_that_could_not_be_removed_is_published_again() -> None:
    outboxes = Outboxes()
    relay, tasks = a_relay(outboxes)
    outboxes.write(KEY, message(1))
    outboxes.forgets = True
    relay.soon(KEY)
    await settled(tasks)
    outboxes.forgets = False
    for _ in range(2):
        await relay.sweep()
    await settled(tasks)
    assert outboxes.log == [message(1), message(1)]
    assert outboxes.waiting == {}


async def test_a_commit_is_published_at_once_document_by_document() -> None:
    outboxes = Outboxes()

    class Storing:
        async def commit(
            self, changes: Sequence[Change], handled_by: frozenset[str] = frozenset()
        ) -> Collection[DocumentKey]:
            behind = {key_of(change.document) for change in changes} & outboxes.waiting.keys()
            for change in changes:
                outboxes.write(key_of(change.document), *change.messages)
            return behind

    relay, tasks = a_relay(outboxes)
    accepted = acceptance(an_execution())
    unit_of_work = RelayingUnitOfWork(Storing(), relay)
    await unit_of_work.commit([accepted])
    await settled(tasks)
    assert outboxes.log == list(accepted.messages)
    assert outboxes.reads == 0, "who wrote it knows what it has to tell"
    assert outboxes.waiting == {}

    left = message(7)
    outboxes.write(KEY, left)
    await unit_of_work.commit([accepted])
    await settled(tasks)
    assert outboxes.log[1:] == [left, *accepted.messages], "what was left behind comes first"
    assert outboxes.waiting == {}
    assert key_of(accepted.document) == KEY
    assert key_of(saga_of(an_execution())) == DocumentKey(DocumentKind.SAGA, EXECUTION)


class OutboxMachine(RuleBasedStateMachine):
    """Two relays over one outbox, which die and fail wherever they can; the model is what was written, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.outboxes = Outboxes()
        self.written: list[Message] = []
        self.relays = [a_relay(self.outboxes)[0] for _ in range(2)]

    @rule(count=st.integers(1, 3))
    def write(self, count: int) -> None:
        for _ in range(count):
            self.written.append(message(len(self.written) + 1))
            self.outboxes.write(KEY, self.written[-1])

    @rule(relay=st.integers(0, 1), refused=st.integers(0, 5), forgets=st.booleans())
    def publish(self, relay: int, refused: int, forgets: bool) -> None:
        self.outboxes.refuses = {each.id for each in self.written[-refused:]} if refused else set()
        self.outboxes.forgets = forgets
        try:
            at_once(self.relays[relay].publish(KEY))
        except Transient:
            assert refused or forgets

    @invariant()
    def each_is_told_first_in_order(self) -> None:
        first = list(dict.fromkeys(each.id for each in self.outboxes.log))
        assert first == [each.id for each in self.written[: len(first)]]

    @invariant()
    def each_is_in_the_log_or_waits(self) -> None:
        there = {each.id for each in (*self.outboxes.log, *self.outboxes.waiting.get(KEY, ()))}
        assert there == {each.id for each in self.written}


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=examples(100), stateful_step_count=20, deadline=None)
