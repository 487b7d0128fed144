"""Replay sessions in SQLite, and the messages that they publish again.

A copy stands in ``log`` like any message, in the bytes of the original, and ``log_replay`` beside it says whose it is:
the log's rows have no headers.  A trigger of the schema takes that mark away with its row, so that it can never be
taken for the mark of another one.  The event index leaves copies out: it tells of what happened, which was once.
"""

import sqlite3
from collections.abc import Sequence
from datetime import datetime

import msgspec

from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.log import SqliteEventLog
from runtape.domain.ids import EventId, ExecutionId
from runtape.domain.replay import ReplaySession, ReplaySessionId, SessionStatus, Target
from runtape.ports.errors import VersionConflict
from runtape.ports.replay import ReplayedMessage

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ReplaySession).decode


class SqliteReplaySessionStore:
    """`ReplaySessionStore` over the `replay_session`, `log` and `log_replay` tables."""

    def __init__(self, database: Database, event_log: SqliteEventLog) -> None:
        self._database = database
        self._log = event_log

    async def create(self, session: ReplaySession) -> None:
        await self._database.write(
            lambda c: (
                c.execute(
                    "insert into replay_session values (?,?,?,?,?,?)",
                    (session.id, session.version, session.status, session.target, None, _encode(session)),
                ).rowcount
            ),
            durable=True,
        )

    async def get(self, session_id: ReplaySessionId) -> ReplaySession | None:
        row = await self._database.read(
            lambda c: c.execute("select doc from replay_session where id = ?", (session_id,)).fetchone()
        )
        return _decode(row[0]) if row else None

    async def commit(
        self, session: ReplaySession, expected_version: int, again: Sequence[ReplayedMessage] = ()
    ) -> None:
        def work(c: sqlite3.Connection) -> Sequence[int]:
            ended_at = session.ended_at and session.ended_at.timestamp()
            changed = c.execute(
                "update replay_session set version = ?, status = ?, ended_at = ?, doc = ? where id = ? and version = ?",
                (session.version, session.status, ended_at, _encode(session), session.id, expected_version),
            ).rowcount
            if changed != 1:
                raise VersionConflict(f"session {session.id} is no longer at version {expected_version}")
            return self._log.insert_again(c, again, session.id)

        # What somebody asked for survives the loss of power; a step that is lost is done again, with its copies.
        offsets = await self._database.write(work, durable=session.status is not SessionStatus.RUNNING)
        self._log.committed_again(offsets, again, session.id)

    async def list(
        self,
        *,
        status: SessionStatus | None,
        target: Target | None,
        limit: int,
        before: ReplaySessionId | None,
    ) -> Sequence[ReplaySession]:
        rows = await self._database.read(
            lambda c: c.execute(
                "select doc from replay_session where (?1 is null or status = ?1) and (?2 is null or target = ?2)"
                " and (?3 is null or id < ?3) order by id desc limit ?4",
                (status, target, before, limit),
            ).fetchall()
        )
        return [_decode(row[0]) for row in rows]

    async def running(self) -> Sequence[ReplaySession]:
        rows = await self._database.read(
            lambda c: c.execute("select doc from replay_session where status = 'running' order by id").fetchall()
        )
        return [_decode(row[0]) for row in rows]

    async def ended(self, before: datetime, limit: int) -> Sequence[ReplaySession]:
        rows = await self._database.read(
            lambda c: c.execute(
                "select doc from replay_session where ended_at < ? order by ended_at limit ?",
                (before.timestamp(), limit),
            ).fetchall()
        )
        return [_decode(row[0]) for row in rows]

    async def delete(self, session_id: ReplaySessionId) -> None:
        await self._database.write(
            lambda c: c.execute("delete from replay_session where id = ?", (session_id,)).rowcount, durable=True
        )


def remove_copies_of_event(c: sqlite3.Connection, event_id: EventId) -> None:
    """Take what was published again of the event out of the log, but for the log's newest row."""
    c.execute(f"{_REMOVE} where event_id = ?) and offset < (select max(offset) from log)", (event_id,))


def remove_copies_of_execution(c: sqlite3.Connection, execution_id: ExecutionId) -> None:
    """Take what was published again of the execution's events out of the log, but for the log's newest row."""
    c.execute(f"{_REMOVE} where execution_id = ?) and offset < (select max(offset) from log)", (execution_id,))


_REMOVE = "delete from log where offset in (select offset from log_replay"
