"""Comparing documents with the fold of their events: what is stored is never changed by it."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from enum import Enum

from runtape.domain import saga as sagas
from runtape.domain.events import ExecutionEvent, ExecutionRequested, Message, PodCreate
from runtape.domain.execution import Execution, evolve_all
from runtape.domain.saga import Saga
from runtape.ports.replay import DocumentHistory

ON_ITS_WAY = timedelta(minutes=5)
"""How long a saga may lag behind its execution: messages take their time, and the sweeper brings them back."""

VALUE_CHARS = 120
"""Characters of a value that a difference shows."""

_MOVES_ALONE = frozenset({"due_at", "idempotency"})
"""Fields that change without an event: when it is looked after, and a key that has expired."""

_SAGA_FIELDS = ("project_id", "lang", "step", "attempt")
"""What events decide of a saga.  Its times are those of whoever handled them, and a priority can be changed."""


class Verdict(Enum):
    """What comes of a comparison."""

    EQUAL = "equal"
    DIFFERENT = "different"
    INCOMPLETE = "incomplete"


def compare(history: DocumentHistory, now: datetime) -> tuple[Verdict, str]:
    """Compare the documents of an execution with what their events lead to, and say how they differ.

    Incomplete: the log does not hold every event any more, so nothing can be said.
    """
    execution = history.execution
    if history.unreadable is not None or execution is None:
        return Verdict.DIFFERENT, history.unreadable or "there is no document"
    events = _by_version(history.events)
    told = [event.version for event in events]
    missing = sorted(set(range(1, execution.version + 1)) - set(told))
    if missing:
        # A version that nothing has made is a difference even so, when what came before it is all there.
        if told and told[0] == 1 and missing == list(range(told[-1] + 1, execution.version + 1)):
            return Verdict.DIFFERENT, f"version: {execution.version}, and the last event makes {told[-1]}"
        return Verdict.INCOMPLETE, f"the log has no event for version {missing[0]}"
    if told and told[-1] > execution.version:
        return Verdict.DIFFERENT, f"version: {execution.version}, and the last event makes {told[-1]}"
    differences = [
        *_execution_differences(execution, events),
        *_column_differences(history, execution),
        *_saga_differences(history.saga, history.messages, now),
    ]
    return (Verdict.DIFFERENT, "; ".join(differences)) if differences else (Verdict.EQUAL, "")


def _by_version(events: Sequence[ExecutionEvent]) -> list[ExecutionEvent]:
    first: dict[int, ExecutionEvent] = {}
    for event in events:
        first.setdefault(event.version, event)
    return [first[version] for version in sorted(first)]


def _execution_differences(execution: Execution, events: Sequence[ExecutionEvent]) -> Iterator[str]:
    accepted = Execution(
        id=execution.id,
        project_id=execution.project_id,
        user_id=execution.user_id,
        spec=execution.spec,
        source=execution.source,
        created_at=execution.created_at,
        retry_of=execution.retry_of,
        correlation=execution.correlation,
    )
    folded = evolve_all(accepted, events)
    if execution.lease is not None and folded.lease is not None:  # it is extended without an event
        folded = replace(folded, lease=replace(folded.lease, expires_at=execution.lease.expires_at))
    yield from _differences("", execution, folded, [each.name for each in fields(Execution)])
    for event in events:
        if event.project_id != execution.project_id:
            yield _difference("project_id", execution.project_id, event.project_id)
            break
    requested = events[0] if events else None
    if isinstance(requested, ExecutionRequested):
        asked = execution.spec
        for name, stored, told in (
            ("spec.lang", asked.lang, requested.lang),
            ("spec.lang_version", asked.lang_version, requested.lang_version),
            ("created_at", execution.created_at, requested.at),
        ):
            if stored != told:
                yield _difference(name, stored, told)
    if execution.result is not None and execution.due_at is not None:
        yield _difference("due_at", execution.due_at, None)


def _column_differences(history: DocumentHistory, execution: Execution) -> Iterator[str]:
    document: dict[str, object] = {
        "version": execution.version,
        "status": execution.status,
        "user_id": execution.user_id,
        "project_id": execution.project_id,
        "lang": execution.spec.lang,
        "saga_version": history.saga and history.saga.version,
    }
    for name, column in history.columns.items():
        if column != document[name]:
            yield f"what is searched as {name}: {_shown(column)}, and the document says {_shown(document[name])}"


def _saga_differences(saga: Saga | None, messages: Sequence[Message], now: datetime) -> Iterator[str]:
    folds = list(_saga_folds(messages))
    if saga is None or not folds:
        return
    expected = folds[-1]
    behind = now - max(message.at for message in messages) < ON_ITS_WAY
    if behind and any(_decided(saga) == _decided(fold) for fold in folds):
        return
    yield from _differences("saga.", saga, expected, _SAGA_FIELDS)


def _saga_folds(messages: Sequence[Message]) -> Iterator[Saga]:
    """Yield the saga after each of the messages that it follows."""
    saga: Saga | None = None
    for message in messages:
        if isinstance(message, ExecutionRequested):
            saga = saga or sagas.begin(message)
        elif saga is not None and isinstance(message, PodCreate):
            saga, _ = sagas.admit(saga, message.at)
        elif saga is not None and isinstance(message, ExecutionEvent):
            saga, _ = sagas.follow(saga, message)
        if saga is not None:
            yield saga


def _decided(saga: Saga) -> tuple[object, ...]:
    return tuple(getattr(saga, name) for name in _SAGA_FIELDS)


def _differences(
    prefix: str, stored: Execution | Saga, expected: Execution | Saga, names: Sequence[str]
) -> Iterator[str]:
    for name in names:
        one, other = getattr(stored, name), getattr(expected, name)
        if name not in _MOVES_ALONE and one != other:
            yield _difference(prefix + name, one, other)


def _difference(name: str, stored: object, told: object) -> str:
    return f"{name}: {_shown(stored)}, and the events say {_shown(told)}"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= VALUE_CHARS else text[:VALUE_CHARS] + "..."
