"""The index of the log and the archive beside it, as statements on a connection.

Theory of operation
===================
What is searched in events lies in their bodies, and the log has no index but its offsets: whoever appends to it pays
for nothing else.  ``event_index`` has those fields in columns.  SQLite itself fills it from the log, some hundred rows
by a statement; what it has not seen yet lies beyond its greatest offset, so it needs no other memory.

An event that is archived leaves the index and the log in the write that puts it into ``event_archive``.  The newest row
of the log stays there, whosesoever it is: SQLite would give its offset again, to a message that the consumers would
take for one they have seen.  Rows that are in the archive are not indexed again, and the archive forgets one only
when it can go from the log as well.

Whose an event is stands in its execution alone, which may be gone before it: the index is the last to know, so it is
made anew over the rows that it has.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime

from runtape.domain.ids import EventId, ExecutionId
from runtape.domain.times import microseconds
from runtape.ports.events import Archival

SLICE = 250
"""Rows of the log that one write indexes: so long do those wait that are queued behind it (about 5 ms)."""

COLUMNS = "offset, id, type, execution_id, project_id, user_id, at_us, attempt, correlation_id, causation_id"


# A BLOB is no JSON to SQLite, and a body that is none must not stop the others.  Times are as ISO 8601 in UTC, with six
# digits behind the second or none.  Ids are as `runtape.domain.events` makes them.
def _described(rows: str) -> str:
    return f"""select offset,
        coalesce(
            key || '.' || json_extract(body, '$.version'),
            key || '.' || substr(type, instr(type, '.') + 1) || '.' || json_extract(body, '$.attempt'),
            key || '.offset.' || offset
        ),
        type,
        key,
        json_extract(body, '$.project_id'),
        user_id,
        coalesce(
            strftime('%s', json_extract(body, '$.at')) * 1000000
            + case substr(json_extract(body, '$.at'), 20, 1)
                when '.' then cast(substr(json_extract(body, '$.at'), 21, 6) as integer) else 0 end,
            0
        ),
        coalesce(json_extract(body, '$.attempt'), 0),
        json_extract(body, '$.correlation.id'),
        json_extract(body, '$.causation_id')
    from (
        select l.offset, l.type, l.key, coalesce(e.user_id, i.user_id) as user_id,
            case when json_valid(cast(l.body as text)) then cast(l.body as text) else '{{}}' end as body
        from log l left join execution e on e.id = l.key left join event_index i on i.offset = l.offset
        where {rows}
    )"""


_FILL = "insert or replace into event_index " + _described(
    "l.offset > ? and l.offset <= ? and l.offset not in (select offset from event_archive)"
    " and l.offset not in (select offset from log_replay) order by l.offset limit ?"
)
_ARCHIVE = (
    f"insert or ignore into event_archive select d.*, l.topic, l.body, ?, ?, ? from ({_described('l.offset = ?')}) d"
    " cross join log l on l.offset = d.offset"
)


def bounds(execution_id: ExecutionId) -> tuple[str, str]:
    """Return between which texts (the second exclusive) the ids of the execution's events lie."""
    return f"{execution_id}.", f"{execution_id}/"  # the character behind the full stop


def waiting(c: sqlite3.Connection) -> int:
    """Return how many rows the log has at most that the index lacks, copies that were replayed left out."""
    newest, indexed, copies = c.execute(
        "select (select max(offset) from log), i.last, (select count(*) from log_replay where offset > i.last)"
        " from (select coalesce(max(offset), 0) as last from event_index) i"
    ).fetchone()
    return max((newest or 0) - indexed - copies, 0)


def fill(c: sqlite3.Connection) -> bool:
    """Index the next rows of the log; return whether there may be more."""
    (indexed,) = c.execute("select coalesce(max(offset), 0) from event_index").fetchone()
    return c.execute(_FILL, (indexed, _LAST, SLICE)).rowcount == SLICE


def fill_again(c: sqlite3.Connection, after: int) -> int | None:
    """Index the rows behind `after` anew; return how far that went, None at the end of the log."""
    (last,) = c.execute(
        "select max(offset) from (select offset from log where offset > ? order by offset limit ?)", (after, SLICE)
    ).fetchone()
    c.execute(
        "delete from event_index where offset > ? and offset <= ?"
        " and (offset not in (select offset from log) or offset in (select offset from event_archive)"
        " or offset in (select offset from log_replay))",
        (after, last or _LAST),
    )
    if last is not None:
        c.execute(_FILL, (after, last, SLICE))
    return last


def archive(c: sqlite3.Connection, offsets: Sequence[int], archival: Archival) -> None:
    """Move the rows at `offsets` from the log to the archive."""
    about = (microseconds(archival.at), archival.by, archival.reason)
    c.executemany(_ARCHIVE, [(*about, offset) for offset in offsets])
    forget(c, offsets)


def forget(c: sqlite3.Connection, offsets: Iterable[int]) -> None:
    """Remove the rows at `offsets` from the index, and from the log but for its newest."""
    rows = [(offset,) for offset in offsets]
    c.executemany("delete from event_index where offset = ?", rows)
    c.executemany("delete from log where offset = ? and offset < (select max(offset) from log)", rows)


def offsets_of_event(c: sqlite3.Connection, event_id: EventId) -> Sequence[int]:
    """Return where the event stands in the log, which is indexed; more than once when it was published again."""
    return [offset for (offset,) in c.execute("select offset from event_index where id = ?", (event_id,))]


def offsets_of_execution(c: sqlite3.Connection, execution_id: ExecutionId) -> Sequence[int]:
    """Return where the events of the execution stand in the log, be they indexed or not."""
    rows = c.execute(
        "select offset from event_index where id >= ? and id < ? union select offset from log"
        " where offset > (select coalesce(max(offset), 0) from event_index) and key = ?"
        " and offset not in (select offset from log_replay)",
        (*bounds(execution_id), execution_id),
    )
    return [offset for (offset,) in rows]


def prune(c: sqlite3.Connection, archived_before: datetime, limit: int) -> int:
    """Forget up to `limit` rows of the archive, and those of them that the log still has."""
    rows = c.execute(
        "select offset from event_archive where archived_at_us < ?"
        " and offset is not (select max(offset) from log) order by archived_at_us, offset limit ?",
        (microseconds(archived_before), limit),
    ).fetchall()
    c.executemany("delete from log where offset = ?", rows)
    return c.executemany("delete from event_archive where offset = ?", rows).rowcount


_LAST = (1 << 63) - 1
