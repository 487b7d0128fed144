"""What an earlier version has written, without the fields that came later, is read as before."""

import json

import msgspec

from runtape.adapters.embedded import documents, log
from runtape.domain import execution as executions
from runtape.domain.events import ExecutionCompleted
from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from tests.builders import ended, started
from tests.clocks import START


def test_execution_from_before_timelines() -> None:
    execution = ended()
    old = json.loads(msgspec.json.encode(execution))
    del old["timeline"], old["spec"]["timeline"]
    assert documents._decode_execution(json.dumps(old)) == execution


def test_end_from_before_timelines() -> None:
    (event,) = executions.finish(started(), 1, Outcome(kind=OutcomeKind.EXITED, exit_code=0), Usage(), 4, START)
    old = json.loads(msgspec.json.encode(event))
    del old["timeline"]
    assert log._decoders[ExecutionCompleted.type](json.dumps(old)) == event
