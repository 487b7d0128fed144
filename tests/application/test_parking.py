"""Random messages, failures, retries, discards, deaths: every message of a key is applied or dead, in order (I13)."""

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from structlog.testing import capture_logs

from runtape.application import dead_letters as dead_letters_module
from runtape.domain.dead_letter import LetterStatus, RetryPolicy, Strategy
from runtape.domain.errors import DomainError
from runtape.domain.events import POD_COMMANDS
from runtape.ports.dead_letters import DeadLetterFilter
from runtape.ports.errors import Transient
from runtape.runtime import consumer as consumer_module
from tests.application.dead_letter_office import Item, Office
from tests.contract.embedded.basic import quick_place
from tests.patience import examples

T = TypeVar("T")
KEYS = st.sampled_from("abc")
CHOICE = st.integers(0, 1000)
POLICIES = (
    RetryPolicy(strategy=Strategy.FIXED, max_retries=2, base_delay_s=10, max_delay_s=0),
    RetryPolicy(strategy=Strategy.EXPONENTIAL, max_retries=3, base_delay_s=5, max_delay_s=20),
    RetryPolicy(strategy=Strategy.IMMEDIATE, max_retries=2, base_delay_s=0, max_delay_s=0),
    RetryPolicy(strategy=Strategy.MANUAL, max_retries=0, base_delay_s=0, max_delay_s=0),
)


class ParkingMachine(RuleBasedStateMachine):
    """The model: per key the numbers that were sent, those the handler breaks on, and what it was seen to apply."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(consumer_module, "FIRST_PAUSE_S", 0.0)
        patch.setattr(dead_letters_module, "PAUSE_S", 0.0)
        self.stack.enter_context(capture_logs())
        self.loop = asyncio.new_event_loop()
        self.office = Office(self.stack.enter_context(quick_place()) / "runtape.db")
        self.undecodable: set[Item] = set()
        self.checked = 0
        self.run(self.office.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        try:
            self.run(self.work_everything_off())
        finally:
            self.run(self.office.kill())
            self.loop.close()
            self.stack.close()

    async def work_everything_off(self) -> None:
        """Mend what can be mended, discard what cannot, and see that it all moves again."""
        office = self.office
        office.store.plan = []
        office.broken.clear()
        await office.restart(flush=True)
        while letters := await office.open_letters():
            for letter in letters:
                if office.item(letter) in self.undecodable:
                    await office.dead_letters.discard(letter.id, "rotten", "admin")
            await office.dead_letters.retry_all(DeadLetterFilter(), 1000, "admin")
            await office.let_time_pass(0)
            assert len(await office.open_letters()) < len(letters), "nothing moves"
        await self.everything_is_accounted_for()
        assert office.dead_letters.parked_keys == 0
        for key in list(office.sent):
            assert office.applied[-1:] == [await office.send(key)] or office.applied[-1][0] == key
        assert office.failures == []

    @initialize(policy=st.sampled_from(POLICIES))
    def set_policy(self, policy: RetryPolicy) -> None:
        self.run(self.office.dead_letters.set_policy(POD_COMMANDS, policy))

    @rule(key=KEYS, broken=st.sampled_from((False, False, True)))
    def send(self, key: str, broken: bool) -> None:
        self.run(self.office.send(key, broken=broken))

    @rule(key=KEYS)
    def mend(self, key: str) -> None:
        self.office.broken = {item for item in self.office.broken if item[0] != key}

    @rule(plan=st.lists(st.sampled_from(("", "before", "after")), max_size=4))
    def writes_will_fail(self, plan: list[str]) -> None:
        self.office.store.plan = plan

    @precondition(lambda self: self.run(self.office.open_letters()))
    @rule(which=CHOICE, how_many=st.integers(1, 3))
    def retry(self, which: int, how_many: int) -> None:
        async def work() -> None:
            letters = await self.office.letters()
            letter = letters[which % len(letters)]
            item = self.office.item(letter)
            before = self.office.calls[item]
            asked = [self.office.dead_letters.retry(letter.id, "admin") for _ in range(how_many)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            await self.office.settle()
            for answer in answers:
                assert not isinstance(answer, BaseException) or isinstance(answer, (DomainError, Transient)), answer
            good = item not in self.office.broken and not any(isinstance(each, Transient) for each in answers)
            assert self.office.calls[item] - before <= (1 if good else how_many)

        self.run(work())

    @precondition(lambda self: self.run(self.office.open_letters()))
    @rule(limit=st.integers(1, 5))
    def retry_many(self, limit: int) -> None:
        self.run(self._tolerant(self.office.dead_letters.retry_all(DeadLetterFilter(), limit, "admin")))

    @precondition(lambda self: self.run(self.office.open_letters()))
    @rule(which=CHOICE)
    def discard(self, which: int) -> None:
        async def work() -> None:
            letters = await self.office.open_letters()
            letter = letters[which % len(letters)]
            await self._tolerant(self.office.dead_letters.discard(letter.id, "not wanted", "admin"))

        self.run(work())

    @rule(seconds=st.sampled_from((0, 5, 30)))
    def time_passes(self, seconds: int) -> None:
        self.run(self.office.let_time_pass(seconds))

    @rule(planted=st.lists(KEYS, max_size=2), flush=st.booleans())
    def die_and_come_back(self, planted: list[str], flush: bool) -> None:
        async def work() -> None:
            if not flush:
                for key in planted:
                    self.undecodable.add(await self.office.plant(key))
            await self.office.restart(flush=flush)

        self.run(work())

    async def _tolerant(self, work: Coroutine[Any, Any, object]) -> None:
        with suppress(Transient):
            await work
        await self.office.settle()

    @invariant()
    def holds(self) -> None:
        self.run(self.everything_is_accounted_for())

    async def everything_is_accounted_for(self) -> None:
        office = self.office
        applied = set(office.applied)
        assert len(applied) == len(office.applied), "applied twice"
        statuses: dict[Item, set[LetterStatus]] = {}
        for letter in await office.letters():
            statuses.setdefault(office.item(letter), set()).add(letter.status)
            if letter.open:
                parked = office.consumer._parked  # pyright: ignore[reportPrivateUsage]
                assert letter.message.key in parked, "open, and its key goes on"
        for key, count in office.sent.items():
            for number in range(1, count + 1):
                found = statuses.get((key, number), set())
                assert (key, number) in applied or found & {"pending", "scheduled", "discarded"}, (
                    f"{key} {number} is lost"
                )
                if LetterStatus.RETRIED in found:
                    assert (key, number) in applied, f"{key} {number} counts as retried and was not applied"
        for place, (key, number) in enumerate(office.applied[self.checked :], self.checked):
            earlier = {item for item in office.applied[:place] if item[0] == key}
            for before in range(1, number):
                found = statuses.get((key, before), set())
                assert (key, before) in earlier or LetterStatus.DISCARDED in found, f"{key} {number} before {before}"
        self.checked = len(office.applied)


TestParking = ParkingMachine.TestCase
TestParking.settings = settings(max_examples=examples(60), stateful_step_count=25, deadline=None)
