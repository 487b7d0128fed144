"""Events as files that are written while they are read, so that they take no memory however long they are."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from runtape.api.models_events import EventRecord, event_type, payload_of
from runtape.ports.events import StoredEvent

Events = AsyncIterator[Sequence[StoredEvent]]

_FORMULA = tuple("=+-@\t\r\n\0\uff1d\uff0b\uff0d\uff20")
"""What a cell must not begin with, since a spreadsheet takes it for a formula (OWASP, CSV Injection; ASVS 1.2.10).

The last four are the full-width forms of the first.
"""

_COLUMNS: dict[str, Callable[[StoredEvent, dict[str, Any]], object]] = {
    "Event ID": lambda event, _: event.id,
    "Event Type": lambda event, _: event_type(event.type),
    "Timestamp": lambda event, _: event.at.isoformat(),
    "Execution ID": lambda event, _: event.execution_id,
    "Project ID": lambda event, _: event.project_id,
    "User ID": lambda event, _: event.user_id,
    "Attempt": lambda event, _: event.attempt,
    "Correlation ID": lambda event, _: event.correlation_id,
    "Causation ID": lambda event, _: event.causation_id,
    "Outcome": lambda _, payload: _outcome(payload).get("kind"),
    "Reason": lambda _, payload: payload.get("reason") or _outcome(payload).get("reason"),
    "Message": lambda _, payload: _outcome(payload).get("message"),
}


async def as_csv(pages: Events) -> AsyncIterator[bytes]:
    """Yield a table of `pages` (RFC 4180, UTF-8, every cell in quotes) with a header."""
    yield _lines([list(_COLUMNS)])
    async for events in pages:
        payloads = [(event, payload_of(event) or {}) for event in events]
        yield _lines([[cell(column(*each)) for column in _COLUMNS.values()] for each in payloads])


async def as_json(pages: Events) -> AsyncIterator[bytes]:
    """Yield an array of `pages`, one event on a line.  Only the whole of it is JSON: what breaks off is none."""
    before = "[\n"
    async for events in pages:
        yield (before + ",\n".join(EventRecord.of(event).model_dump_json() for event in events)).encode()
        before = ",\n"
    yield b"[]\n" if before == "[\n" else b"\n]\n"


def cell(value: object) -> str:
    """Return `value` as the text of a cell that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) else text


def _lines(rows: Sequence[Sequence[object]]) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines, quoting=csv.QUOTE_ALL).writerows(rows)
    return lines.getvalue().encode()


def _outcome(payload: dict[str, Any]) -> dict[str, Any]:
    outcome = payload.get("outcome")
    return outcome if isinstance(outcome, dict) else {}
