"""Which ends tell the owner what; a program that exits by itself tells nothing."""

from dataclasses import replace

import pytest

from runtape.domain import execution as executions
from runtape.domain.events import StoredResult
from runtape.domain.execution import Execution, OnInterrupt, evolve_all
from runtape.domain.notification import BODY_CHARACTERS, Severity, of_end
from runtape.domain.outcome import Outcome, OutcomeKind, Phase, Status
from tests.builders import ALICE, EXITED, an_execution, ended, requested, started
from tests.clocks import START


def over_with(outcome: Outcome, lost: Outcome | None = None) -> Execution:
    execution = ended(started(requested(an_execution(on_interrupt=OnInterrupt.FAIL))), outcome)
    result = StoredResult(stdout_sha256="", stderr_sha256="")
    return evolve_all(execution, executions.store_result(execution, result, START, lost=lost))


@pytest.mark.parametrize("kind", OutcomeKind)
def test_what_the_program_did_not_come_to_by_itself_is_told(kind: OutcomeKind) -> None:
    execution = over_with(Outcome(kind=kind, exit_code=3 if kind is OutcomeKind.EXITED else None))
    told = of_end(execution)
    if kind in (OutcomeKind.EXITED, OutcomeKind.CANCELLED):
        assert told is None
        return
    assert told is not None
    late = kind in (OutcomeKind.TIME_LIMIT, OutcomeKind.WALL_LIMIT)
    assert execution.status is (Status.TIMEOUT if late else Status.FAILED)
    assert told.severity is (Severity.MEDIUM if late else Severity.HIGH)
    assert told.subject == f"python 3.11 run {'timed out' if late else 'failed'}"
    assert told.tags == ("execution", "entity:execution", "exec:execution-1", "timeout" if late else "failed")
    assert (told.id, told.user_id, told.execution_id) == ("execution-1.4", ALICE, execution.id)
    assert (told.created_at, told.read_at) == (execution.finished_at, None)


def test_an_end_that_became_another_one_is_told_as_it_is_in_the_end() -> None:
    lost = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="output_lost")
    assert of_end(over_with(EXITED)) is None
    told = of_end(over_with(EXITED, lost))
    assert told is not None
    assert told.body == "The program was lost for a reason of ours: output_lost"


@pytest.mark.parametrize("phase", Phase)
def test_the_body_says_who_did_what_and_why(phase: Phase) -> None:
    told = of_end(over_with(Outcome(kind=OutcomeKind.SIGNALLED, signal=11, phase=phase, reason="r", message="m")))
    assert told is not None
    who = {"run": "The program", "compile": "Its compiler", "resolve": "Installing its packages"}[phase]
    assert told.body == f"{who} was ended by signal 11: m"


@pytest.mark.parametrize(("length", "cut"), [(451, False), (452, True), (9999, True)])
def test_a_long_message_is_cut(length: int, cut: bool) -> None:
    told = of_end(over_with(Outcome(kind=OutcomeKind.MEMORY_LIMIT, message="m" * length)))
    assert told is not None
    assert len(told.body) == BODY_CHARACTERS
    assert told.body.endswith("…") is cut


def test_before_the_end_there_is_nothing_to_tell() -> None:
    for execution in (requested(), started(), replace(started(), outcome=EXITED)):
        assert of_end(execution) is None
