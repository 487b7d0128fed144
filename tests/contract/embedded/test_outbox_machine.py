"""Random commits, conflicts, readers and deaths against the unit of work and its log, beside a model of what must come.

The model: documents have versions; a commit that is refused leaves nothing; a message that a group has neither
acknowledged nor handled is delivered in every life, once, in order, and none is delivered that lies before the offset
which was noted last.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtape.adapters.embedded.log import SqliteEventLog
from runtape.domain.events import EXECUTION_EVENTS, POD_COMMANDS
from runtape.domain.ids import ExecutionId
from runtape.ports.errors import VersionConflict
from runtape.ports.stores import Change, Durability, IdempotencyKeyTaken
from tests.application.chaos import InlineDatabase, turns
from tests.builders import an_execution, requested
from tests.clocks import ManualClock
from tests.contract.embedded.basic import quick_place, sqlite_stores
from tests.contract.suites.log import Reader, commands
from tests.contract.suites.stores import Stores
from tests.patience import examples

GROUPS = ("early", "late")
NAMES = ("a", "b", "c")


class OutboxMachine(RuleBasedStateMachine):
    opened: AbstractAsyncContextManager[Stores]
    stores: Stores
    readers: dict[str, Reader]
    handled_now: dict[str, set[str]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.place = quick_place()
        self.path = self.place.__enter__() / "outbox.db"
        self.versions: dict[str, int] = {}
        self.keys: set[str] = set()
        self.published: list[str] = []
        self.done: dict[str, set[str]] = {group: set() for group in GROUPS}
        """What each group has acknowledged, or handled in the commit itself."""
        self.attempts = 0
        self.open()

    def run(self, call: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return await call()

        return self.runner.run(run())

    def open(self) -> None:
        async def opening() -> None:
            self.opened = sqlite_stores(self.path, ManualClock(), InlineDatabase)
            self.stores = await self.opened.__aenter__()
            self.readers = {}

        self.run(opening)
        self.handled_now = {group: set() for group in GROUPS}

    def log(self) -> SqliteEventLog:
        assert isinstance(self.stores.log, SqliteEventLog)
        return self.stores.log

    def settle(self) -> None:
        self.run(lambda: turns(30))

    @rule(group=st.sampled_from(GROUPS))
    def begin_to_read(self, group: str) -> None:
        if group not in self.readers:

            async def begin() -> None:
                self.readers[group] = Reader(self.stores, group, (EXECUTION_EVENTS, POD_COMMANDS))

            self.run(begin)

    @rule(
        name=st.sampled_from(NAMES),
        age=st.integers(0, 1),
        count=st.integers(1, 3),
        groups=st.frozensets(st.sampled_from(GROUPS)),
        beside=st.sampled_from((None, *NAMES)),
        note=st.booleans(),
    )
    def commit(self, name: str, age: int, count: int, groups: frozenset[str], beside: str | None, note: bool) -> None:
        """Write the next version, or one that is stale by `age`; perhaps a first version of another one beside it.

        Offsets may be noted before any group was given the messages.
        """
        expected = self.versions.get(name, 0) - age
        self.attempts += 1
        sent = tuple(
            replace(message, attempt=100 * self.attempts + message.attempt) for message in commands(name, count)
        )
        change = Change(
            document=replace(requested(an_execution(name)), version=expected + 1),
            expected_version=expected,
            messages=sent,
            durability=Durability.PROCESS,
        )
        changes, fine = [change], age == 0
        if beside is not None and beside != name:
            other = replace(change, document=requested(an_execution(beside)), expected_version=0, messages=())
            changes.append(other)
            fine = fine and beside not in self.versions

        async def write() -> None:
            await self.stores.unit_of_work.commit(changes, groups)
            if note:
                self.log()._flush()  # pyright: ignore[reportPrivateUsage]

        try:
            self.run(write)
        except VersionConflict:
            assert not fine
            return
        assert fine
        self.versions[name] = expected + 1
        if len(changes) == 2:
            self.versions[str(beside)] = 1
        for message in sent:
            self.published.append(message.id)
            for group in groups:
                if group in self.readers:  # a group that reads nothing yet is told of everything later
                    self.handled_now[group].add(message.id)
                    self.done[group].add(message.id)

    @rule(key=st.sampled_from(("x", "y")), name=st.sampled_from(NAMES))
    def commit_under_a_key(self, key: str, name: str) -> None:
        if name in self.versions:
            return
        document = requested(an_execution(name, key=key))
        sent = commands(name)
        change = Change(document=document, expected_version=0, messages=sent, durability=Durability.PROCESS)
        try:
            self.run(lambda: self.stores.unit_of_work.commit([change]))
        except IdempotencyKeyTaken:
            assert key in self.keys
            return
        assert key not in self.keys
        self.keys.add(key)
        self.versions[name] = 1
        self.published += [message.id for message in sent]

    @precondition(lambda self: self.readers)
    @rule(group=st.sampled_from(GROUPS), pick=st.integers(0, 100))
    def acknowledge(self, group: str, pick: int) -> None:
        self.settle()
        reader = self.readers.get(group)
        if reader is not None and reader.deliveries:
            delivery = reader.deliveries[pick % len(reader.deliveries)]
            self.run(lambda: _call(lambda: self.stores.log.acknowledge(group, delivery)))
            self.done[group].add(delivery.message.id)

    @rule()
    def acknowledge_everything(self) -> None:
        self.settle()
        for group, reader in self.readers.items():
            for delivery in reader.deliveries:
                self.run(lambda group=group, each=delivery: _call(lambda: self.stores.log.acknowledge(group, each)))
            self.done[group].update(reader.ids())

    @rule()
    def note_offsets(self) -> None:
        self.settle()
        self.run(lambda: _call(self.log()._flush))  # pyright: ignore[reportPrivateUsage]

    @rule(peacefully=st.booleans())
    def die(self, peacefully: bool) -> None:
        self.settle()
        self.close(peacefully)
        self.open()

    def close(self, peacefully: bool) -> None:
        async def closing() -> None:
            for reader in self.readers.values():
                if peacefully:
                    await reader.stop()
                else:
                    reader._task.cancel()  # pyright: ignore[reportPrivateUsage]
            if not peacefully:
                # Killed: what was not noted is not noted now.
                log = self.log()
                if log._flusher is not None:  # pyright: ignore[reportPrivateUsage]
                    log._flusher.cancel()  # pyright: ignore[reportPrivateUsage]
                    log._flusher = None  # pyright: ignore[reportPrivateUsage]
                await log._database.close()  # pyright: ignore[reportPrivateUsage]
                for reader in self.readers.values():
                    with suppress(asyncio.CancelledError):
                        await reader._task  # pyright: ignore[reportPrivateUsage]
            await self.opened.__aexit__(None, None, None)

        self.run(closing)

    @invariant()
    def everything_that_is_due_is_delivered_once_and_in_order(self) -> None:
        self.settle()
        for group, reader in self.readers.items():
            told = reader.ids()
            assert len(set(told)) == len(told), "delivered twice in one life"
            places = [self.published.index(each) for each in told]
            assert places == sorted(places), "out of order"
            missing = [each for each in self.published if each not in self.done[group] and each not in told]
            assert missing == []
            assert not self.handled_now[group].intersection(told)

    @invariant()
    def documents_have_the_versions_that_were_committed(self) -> None:
        for name in map(ExecutionId, NAMES):
            document = self.run(lambda name=name: self.stores.executions.get(name))
            assert (document.version if document is not None else None) == self.versions.get(name)

    def teardown(self) -> None:
        self.close(peacefully=True)
        self.runner.close()
        self.place.__exit__(None, None, None)


async def _call(function: Callable[[], object]) -> None:
    function()


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(max_examples=examples(100), stateful_step_count=25, deadline=None)
