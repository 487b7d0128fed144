"""What an earlier version has written, without the fields that came later, is read as before."""

import json
from dataclasses import replace
from typing import cast

import msgspec

from runtape.adapters.embedded import documents, log
from runtape.domain import execution as executions
from runtape.domain import saga as sagas
from runtape.domain.events import ExecutionCompleted, ExecutionRequested
from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from runtape.domain.saga import SagaStep
from tests.builders import an_execution, ended, started
from tests.clocks import START
from tests.contract.suites.stores import over


def test_execution_from_before_timelines() -> None:
    execution = ended()
    old = json.loads(msgspec.json.encode(execution))
    del old["timeline"], old["spec"]["timeline"]
    assert documents._decode_execution(json.dumps(old)) == execution


def test_saga_from_before_steps_were_written_down() -> None:
    begun = sagas.begin(cast(ExecutionRequested, executions.request(an_execution(), START)[0]))
    for saga in (begun, replace(begun, step=SagaStep.MONITOR, due_at=START), replace(begun, step=SagaStep.DONE)):
        old = json.loads(msgspec.json.encode(saga))
        del old["records"], old["ended"], old["reason"], old["ranked_at"]
        assert documents._decode_saga(json.dumps(old)) == saga


def test_saga_from_before_steps_were_written_down_comes_to_its_end() -> None:
    begun = sagas.begin(cast(ExecutionRequested, executions.request(an_execution(), START)[0]))
    old = replace(begun, step=SagaStep.MONITOR, due_at=START)
    (end,) = executions.finish(
        replace(started(), cancel_requested=True), 1, Outcome(kind=OutcomeKind.CANCELLED), Usage(), 0, START
    )
    saga, _ = sagas.follow(old, end)
    assert (saga.state, [record.step for record in saga.records]) == ("compensating", ["store"])
    saga, _ = sagas.check(saga, START, over(ended(outcome=Outcome(kind=OutcomeKind.CANCELLED))))
    assert (saga.step, saga.state) == ("done", "cancelled")


def test_end_from_before_timelines() -> None:
    (event,) = executions.finish(started(), 1, Outcome(kind=OutcomeKind.EXITED, exit_code=0), Usage(), 4, START)
    old = json.loads(msgspec.json.encode(event))
    del old["timeline"]
    assert log._decoders[ExecutionCompleted.type](json.dumps(old)) == event
