"""Documents against the fold of their events."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from runtape.application.comparing import ON_ITS_WAY, Verdict, compare
from runtape.domain import execution as executions
from runtape.domain import saga as sagas
from runtape.domain.events import ExecutionEvent, ExecutionRequested, Message, Priority, StoredResult
from runtape.domain.execution import Execution, evolve_all
from runtape.domain.limits import Limits
from runtape.domain.outcome import Status, Usage
from runtape.domain.saga import Saga
from runtape.ports.replay import DocumentHistory
from tests.builders import EXITED, LEASE_TTL, LOST, OWNER, an_execution
from tests.clocks import START

LATER = START + timedelta(days=1)


class Life:
    """An execution with its saga and their messages, as the handlers make them."""

    def __init__(self, **changes: Any) -> None:
        self.execution = an_execution(**changes)
        self.saga: Saga | None = None
        self.messages: list[Message] = []
        self._seconds = 0

    def at(self) -> datetime:
        self._seconds += 1
        return START + timedelta(seconds=self._seconds)

    def tell(self, events: Sequence[ExecutionEvent]) -> None:
        self.execution = evolve_all(self.execution, events)
        self.messages += events
        for event in events:
            if isinstance(event, ExecutionRequested):
                self.saga, commands = sagas.admit(sagas.begin(event), event.at)
                self.messages += commands
            elif self.saga is not None:
                self.saga, commands = sagas.follow(self.saga, event)
                self.messages += commands

    def requested(self) -> "Life":
        self.tell(executions.request(self.execution, START))
        return self

    def started(self) -> "Life":
        attempt = self.execution.attempt + 1
        self.tell(executions.start(self.execution, attempt, OWNER, self.at(), LEASE_TTL))
        return self

    def lost(self) -> "Life":
        self.tell(executions.finish(self.execution, self.execution.attempt, LOST, Usage(), 3, self.at()))
        return self

    def over(self) -> "Life":
        self.tell(executions.finish(self.execution, self.execution.attempt, EXITED, Usage(), 3, self.at()))
        result = StoredResult(stdout_sha256="a", stderr_sha256="b")
        self.tell(executions.store_result(self.execution, result, self.at()))
        return self

    def history(self, **changes: Any) -> DocumentHistory:
        execution: Execution = changes.pop("execution", self.execution)
        saga: Saga | None = changes.pop("saga", self.saga)
        columns: dict[str, object] = {
            "version": execution.version,
            "status": execution.status,
            "user_id": execution.user_id,
            "project_id": execution.project_id,
            "lang": execution.spec.lang,
            **({"saga_version": saga.version} if saga is not None else {}),
        }
        kept: dict[str, Any] = {"columns": columns, "messages": self.messages, "unreadable": None, **changes}
        return DocumentHistory(execution_id=execution.id, execution=execution, saga=saga, **kept)


def a_life() -> Life:
    return Life(key="k").requested().started().lost().started().over()


@pytest.mark.parametrize(
    "life",
    [Life().requested(), Life().requested().started(), Life().requested().started().lost(), a_life()],
    ids=["requested", "started", "restarted", "over"],
)
def test_what_the_handlers_made_is_equal(life: Life) -> None:
    assert compare(life.history(), LATER) == (Verdict.EQUAL, "")


def test_what_changes_without_an_event_is_no_difference() -> None:
    life = a_life()
    assert compare(life.history(execution=replace(life.execution, idempotency=None)), LATER)[0] is Verdict.EQUAL
    live = Life().requested().started()
    lease = live.execution.lease
    assert lease is not None
    extended = replace(lease, expires_at=LATER)
    document = replace(live.execution, lease=extended, due_at=LATER)
    assert compare(live.history(execution=document), LATER) == (Verdict.EQUAL, "")
    assert live.saga is not None
    ranked = replace(live.saga, priority=Priority.LOW, version=9, due_at=LATER)
    assert compare(live.history(saga=ranked), LATER) == (Verdict.EQUAL, "")
    assert compare(live.history(saga=None), LATER) == (Verdict.EQUAL, "")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("status", {"status": Status.FAILED}),
        ("outcome", {"outcome": replace(EXITED, exit_code=1)}),
        ("attempt", {"attempt": 1}),
        ("usage", {"usage": Usage(wall_ns=1)}),
        ("last_seq", {"last_seq": 4}),
        ("result", {"result": None}),
        ("cancel_requested", {"cancel_requested": True}),
        ("history", {"history": ()}),
        ("started_at", {"started_at": START}),
        ("finished_at", {"finished_at": None}),
        ("project_id", {"project_id": "somebody's"}),
        ("created_at", {"created_at": LATER}),
        ("due_at", {"due_at": LATER}),
        ("spec.lang", {"spec": executions.Spec(lang="bash", lang_version="3.11", limits=Limits())}),
        ("spec.lang_version", {"spec": executions.Spec(lang="python", lang_version="2.7", limits=Limits())}),
        ("version", {"version": 7}),
        ("version", {"version": 5}),
    ],
)
def test_a_field_that_events_do_not_lead_to_is_named(name: str, change: dict[str, Any]) -> None:
    life = a_life()
    verdict, why = compare(life.history(execution=replace(life.execution, **change)), LATER)
    assert verdict is Verdict.DIFFERENT
    assert f"{name}: " in why


def test_a_column_that_says_something_else_than_its_document_is_named() -> None:
    life = a_life()
    columns = {**life.history().columns, "user_id": "somebody"}
    verdict, why = compare(life.history(columns=columns), LATER)
    assert verdict is Verdict.DIFFERENT
    assert why.startswith("what is searched as user_id: somebody, and the document says user-alice")


def test_a_document_that_cannot_be_read_is_different() -> None:
    history = replace(a_life().history(), execution=None, unreadable="the execution cannot be read: why")
    assert compare(history, LATER) == (Verdict.DIFFERENT, "the execution cannot be read: why")


@pytest.mark.parametrize("missing", [1, 2, 3, 5])
def test_where_an_event_is_missing_nothing_is_said(missing: int) -> None:
    life = a_life()
    kept = [each for each in life.messages if not (isinstance(each, ExecutionEvent) and each.version == missing)]
    verdict, why = compare(life.history(messages=kept), LATER)
    assert (verdict, why) == (Verdict.INCOMPLETE, f"the log has no event for version {missing}")


def test_without_any_event_nothing_is_said() -> None:
    assert compare(a_life().history(messages=[]), LATER)[0] is Verdict.INCOMPLETE


def test_an_event_that_is_there_twice_counts_once() -> None:
    life = a_life()
    assert compare(life.history(messages=[*life.messages, *life.messages]), LATER) == (Verdict.EQUAL, "")


def test_a_saga_may_lag_behind_for_a_while_and_no_longer() -> None:
    life, lag = Life().requested().started(), Life().requested()
    life.over()
    behind = life.history(saga=lag.saga)
    last = life.messages[-1].at
    assert compare(behind, last + ON_ITS_WAY / 2) == (Verdict.EQUAL, "")
    verdict, why = compare(behind, last + ON_ITS_WAY)
    assert verdict is Verdict.DIFFERENT
    assert why == "saga.step: create, and the events say done"


def test_a_saga_that_was_never_there_is_different_at_once() -> None:
    life = Life().requested().started()
    assert life.saga is not None
    saga = replace(life.saga, attempt=9)
    assert compare(life.history(saga=saga), life.messages[-1].at)[0] is Verdict.DIFFERENT
