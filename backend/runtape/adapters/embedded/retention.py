"""What has become too old in the embedded store: executions, tapes, events.

Each kind is walked from its oldest record on a reader's connection, by keys that are in the order of time, so that no
index has to be kept for it; the writer removes what was found.  The file does not shrink: SQLite
uses the space again.
"""

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from runtape.adapters.embedded import event_index
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.documents import SqliteExecutionStore
from runtape.domain.ids import ExecutionId

_WALKED = 500
"""Rows looked at in one read."""
_TAPE_BYTES = 8 << 20
"""Output removed in one write, unless a single tape has more: removing it holds up the commits of runs."""

_EXECUTIONS = "select id, created_at, due_at from execution where id > ? order by id"

_Row = tuple[Any, ...]


async def _walk(
    database: Database,
    query: str,
    after: str | int,
    *,
    too_old: Callable[[_Row], bool],
    wanted: Callable[[_Row], bool],
    limit: int,
) -> list[_Row]:
    """Return up to `limit` rows that are `wanted`, from the first beyond `after` to the first that is not too old.

    `query` gives rows that begin with their key, beyond the key that it is given, in order.
    """
    found: list[_Row] = []
    while len(found) < limit:
        rows: Sequence[_Row] = await database.read(
            lambda c, since=after: c.execute(f"{query} limit {_WALKED}", (since,)).fetchall()
        )
        for row in rows:
            if not too_old(row):
                return found
            if wanted(row):
                found.append(row)
                if len(found) == limit:
                    return found
        if not rows:
            return found
        after = rows[-1][0]
    return found


class ExpiredExecutions:
    """Executions with their sagas, tapes and claims on blobs, by the time of their acceptance."""

    def __init__(self, database: Database, executions: SqliteExecutionStore) -> None:
        self._database = database
        self._executions = executions

    async def prune(self, before: datetime, limit: int) -> int:
        bound_s = before.timestamp()
        found = await _walk(
            self._database,
            _EXECUTIONS,
            "",
            too_old=lambda row: row[1] < bound_s,
            wanted=lambda row: row[2] is None,
            limit=limit,
        )
        ids = [ExecutionId(row[0]) for row in found]
        await self._executions.remove(ids)
        return len(ids)


class ExpiredTapes:
    """What executions have printed, by the time of their acceptance; their results stay.

    How far the tapes are gone is kept in the store, else each walk would pass all executions whose tapes are gone.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def prune(self, before: datetime, limit: int) -> int:
        bound_s = before.timestamp()
        found = await _walk(
            self._database,
            _EXECUTIONS,
            await self._database.read(_pruned_to),
            too_old=lambda row: row[1] < bound_s,
            wanted=lambda _: True,
            limit=limit,
        )
        # Not beyond one that has not ended: the next walk begins with it.
        ended = [row[0] for row in takewhile(lambda row: row[2] is None, found)]
        chosen = await self._database.read(lambda c: _first_bytes(c, ended))
        if not chosen:
            return 0

        def work(c: sqlite3.Connection) -> None:
            c.executemany("delete from tape where execution_id = ?", [(execution_id,) for execution_id in chosen])
            c.execute("insert or replace into retention values ('tape', ?)", (chosen[-1],))

        await self._database.write(work)
        return len(chosen)


def _pruned_to(c: sqlite3.Connection) -> str:
    row = c.execute("select position from retention where kind = 'tape'").fetchone()
    return row[0] if row else ""


def _first_bytes(c: sqlite3.Connection, ended: Sequence[str]) -> list[str]:
    """Return the first of `ended` that hold no more than `_TAPE_BYTES` together, one at least."""
    chosen: list[str] = []
    size_bytes = 0
    for each in ended:
        row = c.execute("select coalesce(sum(size), 0) from tape where execution_id = ?", (each,)).fetchone()
        size_bytes += row[0]
        if chosen and size_bytes > _TAPE_BYTES:
            break
        chosen.append(each)
    return chosen


class ExpiredEvents:
    """Messages of the log that every consumer group has handled, by the time at which they came about."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def prune(self, before: datetime, limit: int) -> int:
        bound = before.astimezone(UTC)
        found = await _walk(
            self._database,
            # The newest row stays: SQLite would give its offset again.
            # What cannot be read was handled like the rest: its bytes are in a dead letter of each group.
            "select offset, cast(case when json_valid(cast(body as text))"
            " then json_extract(cast(body as text), '$.at') end as blob),"
            " exists (select 1 from execution where id = key and due_at is not null) from log"
            " where offset > ? and offset < (select max(offset) from log)"
            " and offset <= (select min(offset) from consumer_offset) order by offset",
            0,
            too_old=lambda row: _is_before(row[1], bound),
            wanted=lambda row: not row[2],
            limit=limit,
        )
        offsets = [row[0] for row in found]
        if offsets:
            await self._database.write(lambda c: event_index.forget(c, offsets))
        return len(offsets)


def _is_before(told: bytes | None, bound: datetime) -> bool:
    """Whether a message's time is before `bound`; one that tells none is as old as those before it."""
    try:
        return told is None or datetime.fromisoformat(told.decode()) < bound
    except (ValueError, TypeError):
        return True
