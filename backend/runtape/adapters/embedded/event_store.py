"""Asking about the log in SQLite: every search walks one index from new to old, some thousand rows by a read."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from runtape.adapters.embedded import event_index
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.event_index import COLUMNS
from runtape.adapters.embedded.replay_store import remove_copies_of_event
from runtape.domain.events import ENDED_BY_STATUS, ExecutionRequested
from runtape.domain.ids import EventId, ExecutionId, UserId
from runtape.domain.outcome import Status
from runtape.domain.times import microseconds, moment
from runtape.ports.events import (
    Archival,
    ArchivedEvent,
    EventFilter,
    EventPage,
    EventPosition,
    EventStatistics,
    StoredEvent,
)

CANDIDATES = 2_000
"""Rows that one read looks at.  Searching their bodies for a text takes about 30 ms."""

READS = 25
"""Reads of one call to `browse`; a search that has not found enough in so many goes on with the next page."""

STATISTICS_ROWS = 10_000
"""Rows that one read counts."""

TOP_USERS = 10

_I = ", ".join(f"i.{name.strip()}" for name in COLUMNS.split(","))
_ENDED = tuple(event.type for event in ENDED_BY_STATUS.values())
_FAILED = (ENDED_BY_STATUS[Status.FAILED].type, ENDED_BY_STATUS[Status.TIMEOUT].type)
_NEWEST = (1 << 63) - 1

TEXT = """case when json_valid(cast(l.body as text)) then exists (
        select 1 from json_tree(cast(l.body as text)) where instr(lower(atom), lower(?))
    ) else instr(lower(cast(l.body as text)), lower(?)) end"""

# The request of an execution is its first version.
_COUNT = f"""select type, at_us / 3600000000, user_id, count(*),
        sum(case when type in {_ENDED} then at_us
            - (select r.at_us from event_index r where r.id = i.execution_id || '.1' and r.type = ?) end)
    from event_index i indexed by event_index_by_time
    where (at_us, offset) > (?, ?) and (at_us, offset) <= (?, ?)
    group by 1, 2, 3"""


class SqliteEventStore:
    """`EventStore` over the `log`, `event_index` and `event_archive` tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def index(self, leave: int = 0) -> int:
        while (waiting := await self._database.read(event_index.waiting)) > leave:
            if not await self._database.write(event_index.fill):
                return 0
        return waiting

    async def browse(self, where: EventFilter, limit: int, after: EventPosition | None = None) -> EventPage:
        if after is None:
            await self.index()
        position = (_NEWEST, _NEWEST) if after is None else (microseconds(after.at), after.offset)
        found: list[StoredEvent] = []
        for _ in range(READS):
            wanted = limit + 1 - len(found)
            events, behind = await self._database.read(
                lambda c, position=position, wanted=wanted: _search(c, where, position, wanted)
            )
            found += events
            if len(found) > limit:
                last = found[limit - 1]
                return EventPage(found[:limit], EventPosition(last.at, last.offset))
            if behind is None:
                return EventPage(found, None)
            position = behind
        return EventPage(found, EventPosition(moment(position[0]), position[1]))

    async def get(self, event_id: EventId) -> StoredEvent | None:
        await self.index()
        row = await self._database.read(
            lambda c: c.execute(
                f"select {_I}, l.topic, l.body from event_index i join log l using (offset)"
                " where i.id = ? order by i.offset limit 1",
                (event_id,),
            ).fetchone()
        )
        return stored_event(row) if row else None

    async def statistics(self, happened_from: datetime, happened_before: datetime) -> EventStatistics:
        await self.index()
        types: Counter[str] = Counter()
        hours: Counter[datetime] = Counter()
        users: Counter[UserId] = Counter()
        durations_us = ended = 0
        begin, end = (microseconds(happened_from), -1), microseconds(happened_before)
        while True:
            rows, last = await self._database.read(lambda c, begin=begin: _count(c, begin, end))
            for name, hour, user_id, count, duration_us in rows:
                types[name] += count
                hours[moment(hour * 3_600_000_000)] += count
                if user_id is not None:
                    users[user_id] += count
                if name in _ENDED:
                    ended += count
                    durations_us += duration_us or 0
            if last is None:
                break
            begin = last
        return EventStatistics(
            total=types.total(),
            by_type=dict(sorted(types.items())),
            by_hour=dict(sorted(hours.items())),
            by_user=dict(users.most_common(TOP_USERS)),
            ended=ended,
            failed=sum(types[name] for name in _FAILED),
            mean_duration=timedelta(microseconds=durations_us / ended) if ended else None,
        )

    async def archive(self, event_id: EventId, archival: Archival) -> None:
        await self.index()

        def work(c: sqlite3.Connection) -> None:
            event_index.archive(c, event_index.offsets_of_event(c, event_id), archival)
            remove_copies_of_event(c, event_id)

        await self._database.write(work, durable=True)

    async def archived(
        self, limit: int, after: EventPosition | None = None, execution_id: ExecutionId | None = None
    ) -> Sequence[ArchivedEvent]:
        position = (_NEWEST, _NEWEST) if after is None else (microseconds(after.at), after.offset)
        chosen, values = ("execution_id = ? and ", (execution_id,)) if execution_id is not None else ("", ())
        rows = await self._database.read(
            lambda c: c.execute(
                f"select {COLUMNS}, topic, body, archived_at_us, archived_by, reason from event_archive"
                f" where {chosen}(archived_at_us, offset) < (?, ?) order by archived_at_us desc, offset desc limit ?",
                (*values, *position, limit),
            ).fetchall()
        )
        return [ArchivedEvent(stored_event(row[:-3]), Archival(row[-2], moment(row[-3]), row[-1])) for row in rows]

    async def prune(self, before: datetime, limit: int) -> int:
        return await self._database.write(lambda c: event_index.prune(c, before, limit))

    async def rebuild(self) -> None:
        after: int | None = 0
        while after is not None:
            after = await self._database.write(lambda c, after=after: event_index.fill_again(c, after))

    async def digest(self) -> str:
        await self.index()
        digest, after = hashlib.sha256(), 0
        while True:
            rows = await self._database.read(
                lambda c, after=after: c.execute(
                    f"select {COLUMNS} from event_index where offset > ? order by offset limit ?", (after, CANDIDATES)
                ).fetchall()
            )
            if not rows:
                return digest.hexdigest()
            digest.update(repr(rows).encode())
            after = rows[-1][0]


def _search(
    c: sqlite3.Connection, where: EventFilter, position: tuple[int, int], wanted: int
) -> tuple[list[StoredEvent], tuple[int, int] | None]:
    """Return up to `wanted` matches among the next candidates, and where the candidates end; None: with the index."""
    walks, conditions, values = _plan(where, position)
    candidates = CANDIDATES if conditions else wanted
    # One walk for each type that is asked for; each is in order, so the newest of all are among the first of each.
    walked = " union all ".join(
        f"select * from (select * from event_index {walk} order by at_us desc, offset desc limit {candidates})"
        for walk, _ in walks
    )
    walked = f"select * from ({walked}) order by at_us desc, offset desc limit {candidates}"
    walk_values = [value for _, each in walks for value in each]
    rows = c.execute(
        # The join keeps to its order: first the candidates, then their bodies.
        f"select {_I}, l.topic, l.body from ({walked}) i cross join log l on l.offset = i.offset"
        f" where {' and '.join(conditions) or '1'} order by i.at_us desc, i.offset desc limit ?",
        (*walk_values, *values, wanted),
    ).fetchall()
    last = c.execute(f"select at_us, offset from ({walked}) limit 1 offset {candidates - 1}", walk_values).fetchone()
    return [stored_event(row) for row in rows], last


def _plan(where: EventFilter, position: tuple[int, int]) -> tuple[list[tuple[str, list[Any]]], list[str], list[Any]]:
    """Return the index walks that find the candidates, and the conditions that are left for these, with their values.

    The index is the one of the condition that fewest events meet.
    """
    times, time_values = "(at_us, offset) < (?, ?)", list[Any](position)
    if where.happened_from is not None:
        times, time_values = times + " and at_us >= ?", [*time_values, microseconds(where.happened_from)]
    if where.happened_before is not None:
        times, time_values = times + " and at_us < ?", [*time_values, microseconds(where.happened_before)]

    def walk(name: str, condition: str, *values: str) -> tuple[str, list[Any]]:
        return f"indexed by event_index_by_{name} where {condition} and {times}", [*values, *time_values]

    walks: list[tuple[str, list[Any]]] = []
    if where.execution_id is not None:
        walks = [walk("id", "id >= ? and id < ?", *event_index.bounds(where.execution_id))]
    conditions: list[str] = []
    values: list[Any] = []
    for name, column, value in (
        ("correlation", "correlation_id", where.correlation_id),
        ("user", "user_id", where.user_id),
        ("project", "project_id", where.project_id),
    ):
        if value is not None and not walks:
            walks = [walk(name, f"{column} = ?", value)]
        elif value is not None:
            conditions, values = [*conditions, f"i.{column} = ?"], [*values, value]
    types = sorted(where.types)
    if types and not walks:
        walks = [walk("type", "type = ?", name) for name in types]
    elif types:
        conditions, values = [*conditions, f"i.type in ({','.join('?' * len(types))})"], [*values, *types]
    if where.text is not None:
        conditions, values = [*conditions, TEXT], [*values, where.text, where.text]
    return walks or [walk("time", "1")], conditions, values


def _count(
    c: sqlite3.Connection, begin: tuple[int, int], end_us: int
) -> tuple[list[tuple[Any, ...]], tuple[int, int] | None]:
    """Return the counts of the next events behind `begin`, and how far they go; None: to the end."""
    last = c.execute(
        "select at_us, offset from event_index indexed by event_index_by_time where (at_us, offset) > (?, ?)"
        " and at_us < ? order by at_us, offset limit 1 offset ?",
        (*begin, end_us, STATISTICS_ROWS - 1),
    ).fetchone()
    return c.execute(_COUNT, (ExecutionRequested.type, *begin, *(last or (end_us - 1, _NEWEST)))).fetchall(), last


def stored_event(row: tuple[Any, ...]) -> StoredEvent:
    """Return the event of a row with `COLUMNS`, topic and body."""
    offset, event_id, name, execution_id, project_id, user_id, at_us, attempt, correlation_id, causation_id = row[:10]
    return StoredEvent(
        offset=offset,
        id=event_id,
        type=name,
        topic=row[10],
        execution_id=execution_id,
        project_id=project_id,
        user_id=user_id,
        at=moment(at_us),
        attempt=attempt,
        correlation_id=correlation_id,
        causation_id=causation_id,
        body=row[11],
    )
