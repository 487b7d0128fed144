"""Random requests under few keys against a model of ten lines; the process dies between them and in their midst.

Who remembers which keys have been used is often wrong.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from random import Random
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runtape.application.submission import IDEMPOTENCY_TTL
from runtape.domain.errors import IdempotencyConflict
from runtape.domain.ids import ExecutionId
from tests.application.chaos import Chaos, InlineDatabase, turns
from tests.application.world import ALICE, World, a_world
from tests.clocks import CountingIds, ManualClock
from tests.contract.embedded.basic import quick_place
from tests.patience import examples
from tests.seen_keys import ForgetfulKeys

KEYS = st.sampled_from(("x", "y"))
BODIES = st.sampled_from(("print 1", "print 2"))


class IdempotencyMachine(RuleBasedStateMachine):
    """The model: a key stands for one execution and one body, until a day after the execution was accepted."""

    opened: AbstractAsyncContextManager[World]
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.place = quick_place()
        self.folder = self.place.__enter__()
        self.clock, self.ids = ManualClock(), CountingIds()
        self.known: dict[str, tuple[ExecutionId, str, datetime]] = {}
        self.given: set[ExecutionId] = set()
        self.open()

    def run(self, call: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return await call()

        return self.runner.run(run())

    def open(self) -> None:
        async def opening() -> None:
            self.opened = a_world(
                self.folder,
                clock=self.clock,
                ids=self.ids,
                database_type=InlineDatabase,
                expect_failures=True,
                seen_keys=ForgetfulKeys(Random(len(self.given))),
                wrap=Chaos(Random(len(self.given)), None, 0.0).stores,  # so that requests get in each other's way
            )
            self.world = await self.opened.__aenter__()

        self.run(opening)

    def close(self) -> None:
        self.run(lambda: self.opened.__aexit__(None, None, None))

    def holder(self, key: str) -> tuple[ExecutionId, str] | None:
        """Return what the key stands for now, by the model."""
        known = self.known.get(key)
        if known is None or known[2] + IDEMPOTENCY_TTL <= self.clock.now():
            return None
        return known[:2]

    def submit(self, key: str, script: str) -> Any:
        return self.world.submit(script, idempotency_key=key, body_sha256=script)

    def accepted(self, key: str, script: str, execution_id: ExecutionId) -> None:
        assert execution_id not in self.given
        self.given.add(execution_id)
        self.known[key] = execution_id, script, self.clock.now()

    @rule(key=KEYS, script=BODIES, times=st.integers(1, 3))
    def request(self, key: str, script: str, times: int) -> None:
        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*(self.submit(key, script) for _ in range(times)), return_exceptions=True)

        answers = self.run(all_at_once)
        holder = self.holder(key)
        if holder is None:
            assert len(set(answers)) == 1, answers
            self.accepted(key, script, answers[0])
        elif holder[1] == script:
            assert set(answers) == {holder[0]}
        else:
            assert all(isinstance(answer, IdempotencyConflict) for answer in answers), answers

    @rule(key=KEYS)
    def two_bodies_at_once(self, key: str) -> None:
        async def both() -> list[Any]:
            return await asyncio.gather(
                self.submit(key, "print 1"), self.submit(key, "print 2"), return_exceptions=True
            )

        answers = self.run(both)
        holder = self.holder(key)
        won = [answer for answer in answers if isinstance(answer, str)]
        assert len(won) == 1, answers
        assert sum(isinstance(answer, IdempotencyConflict) for answer in answers) == 1
        script = ("print 1", "print 2")[answers.index(won[0])]
        if holder is None:
            self.accepted(key, script, ExecutionId(won[0]))
        else:
            assert holder == (won[0], script)

    @rule(hours=st.sampled_from((1, 12, 23, 24)))
    def time_passes(self, hours: int) -> None:
        self.clock.advance(hours * 3600)

    @rule()
    def process_dies(self) -> None:
        self.close()
        self.open()

    @rule(key=KEYS, script=BODIES, after=st.integers(0, 40))
    def process_dies_in_the_midst_of_a_request(self, key: str, script: str, after: int) -> None:
        holder = self.holder(key)

        async def dies() -> None:
            task = asyncio.ensure_future(self.submit(key, script))
            await turns(after)
            task.cancel()
            with suppress(asyncio.CancelledError, IdempotencyConflict):
                await task
            await self.opened.__aexit__(None, None, None)

        self.run(dies)
        self.open()
        stored = self.run(lambda: self.world.stores.executions.by_idempotency_key(ALICE.user_id, key))
        if holder is None and stored is not None and stored.id not in self.given:
            self.accepted(key, script, stored.id)  # before it died; nobody was told

    @invariant()
    def every_execution_is_one_that_was_accepted(self) -> None:
        async def ids() -> set[str]:
            return {execution.id async for execution in self.world.stores.executions.unfinished()}

        assert self.run(ids) <= self.given
        for execution_id in self.given:
            assert self.run(lambda name=execution_id: self.world.stores.executions.get(name)) is not None

    def teardown(self) -> None:
        self.close()
        self.runner.close()
        self.place.__exit__(None, None, None)


TestIdempotencyMachine = IdempotencyMachine.TestCase
TestIdempotencyMachine.settings = settings(max_examples=examples(60), stateful_step_count=20, deadline=None)
