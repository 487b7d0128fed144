"""Random commands against an execution, compared with a small model of what may have happened."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import hypothesis.strategies as st
import msgspec
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtape.domain import execution as executions
from runtape.domain.errors import AlreadyTerminal
from runtape.domain.events import ExecutionEvent, Message, StoredResult
from runtape.domain.execution import MAX_ATTEMPTS, Execution, OnInterrupt, evolve
from runtape.domain.outcome import Outcome, OutcomeKind, Status, Usage
from tests.builders import LEASE_TTL, an_execution, requested
from tests.clocks import START
from tests.patience import examples

TERMINAL = {"execution.completed", "execution.failed", "execution.timeout", "execution.cancelled"}
NEXT = {
    "": {"execution.requested"},
    "execution.requested": {"execution.started", "execution.cancelled"},
    "execution.started": {"execution.restarted", "execution.cancel_requested", *TERMINAL},
    "execution.restarted": {"execution.started", "execution.cancelled"},
    "execution.cancel_requested": TERMINAL,
    **{ended: {"result.stored"} for ended in TERMINAL},
    "result.stored": set[str](),
}
"""The declared machine: which event may follow which."""


class ExecutionMachine(RuleBasedStateMachine):
    """The model is three facts: the attempts that were started, whether cancelling was asked, and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.execution = requested(an_execution())
        self.now = START
        self.starts: list[int] = []
        self.asked = False
        self.given_back = 0
        self.end: str | None = None

    def apply(self, messages: Sequence[Message]) -> list[str]:
        for message in messages:
            if isinstance(message, ExecutionEvent):
                before = self.execution.version
                self.execution = evolve(self.execution, message)
                assert self.execution.version == before + 1
        types = [message.type for message in messages]
        for name in TERMINAL.intersection(types):
            assert self.end is None, "a second terminal event"
            self.end = name
        return types

    @rule(seconds=st.integers(-5, 60))
    def time_passes_or_jumps(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(attempt=st.integers(0, 9))
    def start(self, attempt: int) -> None:
        types = self.apply(executions.start(self.execution, attempt, "w", self.now, LEASE_TTL))
        if types:
            assert not self.asked
            assert self.end is None
            assert attempt == len(self.starts) + 1 <= MAX_ATTEMPTS + self.given_back
            self.starts.append(attempt)

    @rule(attempt=st.integers(0, 8))
    def give_back(self, attempt: int) -> None:
        live = self.execution.live and attempt == len(self.starts)
        types = self.apply(executions.give_back(self.execution, attempt, self.now))
        assert types == ([] if not live else ["execution.cancelled" if self.asked else "execution.restarted"])
        self.given_back += types == ["execution.restarted"]

    @rule(attempt=st.integers(0, 8), kind=st.sampled_from(OutcomeKind), last_seq=st.integers(0, 3))
    def finish(self, attempt: int, kind: OutcomeKind, last_seq: int) -> None:
        live = self.execution.live
        types = self.apply(executions.finish(self.execution, attempt, Outcome(kind=kind), Usage(), last_seq, self.now))
        assert bool(types) == (live and attempt == len(self.starts)), "a live attempt's end is always taken, once"

    @rule(attempt=st.integers(0, 4))
    def lose_the_worker(self, attempt: int) -> None:
        self.apply(executions.interrupt(self.execution, attempt, "worker_lost", 0, self.now))

    @precondition(lambda self: self.execution.lease is not None)
    @rule(stale=st.booleans())
    def expire(self, stale: bool) -> None:
        lease = self.execution.lease
        assert lease is not None
        types = self.apply(
            executions.expire(self.execution, replace(lease, owner="gone") if stale else lease, 0, self.now)
        )
        assert bool(types) is not stale

    @rule()
    def cancel(self) -> None:
        try:
            types = self.apply(executions.cancel(self.execution, "alice", None, self.now))
        except AlreadyTerminal:
            assert self.end is not None
            return
        assert types or self.asked
        self.asked = True

    @precondition(lambda self: self.end is not None)
    @rule(lost=st.booleans())
    def store_result(self, lost: bool) -> None:
        outcome = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="output_lost") if lost else None
        result = StoredResult(stdout_sha256="a", stderr_sha256="b")
        self.apply(executions.store_result(self.execution, result, self.now, lost=outcome))

    @invariant()
    def history_is_a_path_of_the_declared_machine(self) -> None:
        before = ""
        for number, step in enumerate(self.execution.history, 1):
            assert step.version == number
            assert step.type in NEXT[before], f"{step.type} after {before}"
            before = step.type

    @invariant()
    def what_is_left_to_do_has_a_time(self) -> None:
        assert (self.execution.due_at is None) == (self.execution.result is not None)

    @invariant()
    def the_lease_is_held_exactly_while_an_attempt_is_live(self) -> None:
        assert (self.execution.lease is not None) == self.execution.live
        if self.execution.lease is not None:
            assert self.execution.lease.fence == self.execution.attempt == len(self.starts)

    @invariant()
    def the_document_survives_being_stored(self) -> None:
        encoded = msgspec.json.encode(self.execution)
        assert msgspec.json.decode(encoded, type=Execution) == self.execution

    @invariant()
    def status_follows_the_outcome(self) -> None:
        outcome = self.execution.outcome
        assert self.execution.status.terminal == (outcome is not None) == (self.end is not None)
        if outcome is not None:
            assert self.execution.status is outcome.status


class FailingExecutionMachine(ExecutionMachine):
    """The same for `OnInterrupt.FAIL`: one attempt at most that is not given back."""

    def __init__(self) -> None:
        super().__init__()
        self.execution = requested(an_execution(on_interrupt=OnInterrupt.FAIL))

    @invariant()
    def there_is_one_attempt_at_most(self) -> None:
        assert len(self.starts) <= 1 + self.given_back
        assert self.execution.status is not Status.QUEUED or len(self.starts) == self.given_back


TestExecutionMachine = ExecutionMachine.TestCase
TestExecutionMachine.settings = settings(max_examples=examples(150), stateful_step_count=25, deadline=None)
TestFailingExecutionMachine = FailingExecutionMachine.TestCase
TestFailingExecutionMachine.settings = settings(max_examples=examples(50), stateful_step_count=15, deadline=None)
