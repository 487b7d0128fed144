"""The log from old to new, by its index, and that index made anew."""

import hashlib
import sqlite3
from collections.abc import Sequence
from typing import Any

from runtape.adapters.embedded import event_index
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.event_index import COLUMNS
from runtape.adapters.embedded.event_store import TEXT, stored_event
from runtape.domain.replay import Selection
from runtape.domain.times import microseconds
from runtape.ports.replay import EventSlice, Remade

CANDIDATES = 2_000
"""Rows that one read looks at, as in `event_store`."""

_I = ", ".join(f"i.{name.strip()}" for name in COLUMNS.split(","))


class SqliteEventSource:
    """`EventSource` and `EventIndex` over the `log` and `event_index` tables; positions are offsets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self) -> str:
        while await self._database.read(event_index.waiting):
            if not await self._database.write(event_index.fill):
                break
        return await self._database.read(
            lambda c: str(c.execute("select coalesce(max(offset), 0) from event_index").fetchone()[0])
        )

    async def read(self, selection: Selection, after: str, until: str, limit: int) -> EventSlice:
        begin, end = _offset(after), _offset(until)
        rows, last = await self._database.read(lambda c: _search(c, selection, begin, end, limit))
        events = [stored_event(row) for row in rows]
        if len(events) == limit:
            return EventSlice(events, str(events[-1].offset), complete=events[-1].offset >= end)
        return EventSlice(events, str(end if last is None else last), complete=last is None)

    async def count(self, until: str) -> int:
        return await self._database.read(
            lambda c: c.execute(
                "select count(*) from log where offset <= ?1 and offset not in"
                " (select offset from log_replay where offset <= ?1)",
                (_offset(until),),
            ).fetchone()[0]
        )

    async def remake(self, after: str, until: str) -> Remade:
        begin, end = _offset(after), _offset(until)

        def work(c: sqlite3.Connection) -> Remade:
            last = event_index.fill_again(c, begin)
            (rows,) = c.execute(
                "select count(*) from event_index where offset > ? and offset <= ?", (begin, last or begin)
            ).fetchone()
            return Remade(rows, str(end if last is None else last), last is None or last >= end)

        return await self._database.write(work)

    async def digest(self, until: str) -> str:
        digest, after, end = hashlib.sha256(), -1, _offset(until)
        while True:
            rows: Sequence[tuple[Any, ...]] = await self._database.read(
                lambda c, after=after: c.execute(
                    f"select {COLUMNS} from event_index where offset > ? and offset <= ? order by offset limit ?",
                    (after, end, CANDIDATES),
                ).fetchall()
            )
            if not rows:
                return digest.hexdigest()
            digest.update(repr(rows).encode())
            after = rows[-1][0]


def _offset(position: str) -> int:
    return int(position or 0)


def _search(
    c: sqlite3.Connection, selection: Selection, begin: int, end: int, limit: int
) -> tuple[list[tuple[Any, ...]], int | None]:
    """Return up to `limit` matches behind `begin`, and how far the candidates went; None: to `end`."""
    conditions, values = _conditions(selection)
    few, few_values = _few(selection)
    if few:
        # All of these are looked at in one go: one execution, or the ids of one request.
        walked, last = f"select * from event_index where {few} and offset > ? and offset <= ?", None
        walk_values = [*few_values, begin, end]
    else:
        candidate = c.execute(
            "select offset from event_index where offset > ? and offset <= ? order by offset limit 1 offset ?",
            (begin, end, CANDIDATES - 1),
        ).fetchone()
        last = candidate[0] if candidate else None
        walked, walk_values = "select * from event_index where offset > ? and offset <= ?", [begin, last or end]
    rows = c.execute(
        f"select {_I}, l.topic, l.body from ({walked}) i cross join log l on l.offset = i.offset"
        f" where {' and '.join(conditions) or '1'} order by i.offset limit ?",
        (*walk_values, *values, limit),
    ).fetchall()
    return rows, last


def _few(selection: Selection) -> tuple[str, list[Any]]:
    """Return a condition that an index answers and few events meet, if there is one."""
    if selection.event_ids:
        return f"id in ({','.join('?' * len(selection.event_ids))})", list(selection.event_ids)
    if selection.execution_id is not None:
        return "id >= ? and id < ?", list(event_index.bounds(selection.execution_id))
    if selection.correlation_id is not None:
        return "correlation_id = ?", [selection.correlation_id]
    return "", []


def _conditions(selection: Selection) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for condition, value in (
        ("i.execution_id = ?", selection.execution_id),
        ("i.correlation_id = ?", selection.correlation_id),
        ("i.user_id = ?", selection.user_id),
        ("i.project_id = ?", selection.project_id),
        ("i.at_us >= ?", selection.happened_from and microseconds(selection.happened_from)),
        ("i.at_us < ?", selection.happened_before and microseconds(selection.happened_before)),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    for condition, names in (("in", selection.types), ("not in", selection.excluded_types)):
        if names:
            conditions.append(f"i.type {condition} ({','.join('?' * len(names))})")
            values += names
    if selection.text is not None:
        conditions.append(TEXT)
        values += [selection.text, selection.text]
    return conditions, values
