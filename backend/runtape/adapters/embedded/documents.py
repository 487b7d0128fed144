"""Execution and saga documents in SQLite, and the unit of work that changes them with their log rows."""

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from runtape.adapters.embedded import event_index
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.log import SqliteEventLog
from runtape.adapters.embedded.notifications import insert_notifications
from runtape.adapters.embedded.replay_store import remove_copies_of_execution
from runtape.domain.events import Lease
from runtape.domain.execution import LEASE_GRACE, Execution
from runtape.domain.ids import ExecutionId, UserId
from runtape.domain.outcome import Status
from runtape.domain.saga import STATE_OF, Saga, SagaStep, settled
from runtape.ports.errors import VersionConflict
from runtape.ports.events import Archival
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import NEVER, Change, Durability, ExecutionFilter, IdempotencyKeyTaken, SagaFilter, folded

_encode = msgspec.json.Encoder().encode
_decode_execution = msgspec.json.Decoder(Execution).decode
_decode_saga = msgspec.json.Decoder(Saga).decode

RECENT = 256
"""Finished executions kept decoded, for the reads that follow the end of a run."""

_STATUS_OF = {state: status for status, state in STATE_OF.items()}

_COLUMNS = "doc, due_at, lease_expires_at, idempotency_key"


class SqliteExecutionStore:
    """`ExecutionStore` over the `execution` table; unfinished documents are kept decoded.

    This process is the file's only writer, so a document that was committed here is the newest there is.
    """

    def __init__(self, database: Database, sagas: "SqliteSagaStore") -> None:
        self._database = database
        self._sagas = sagas
        self._live: dict[ExecutionId, Execution] = {}
        self._recent: OrderedDict[ExecutionId, Execution] = OrderedDict()

    def committed(self, execution: Execution) -> None:
        """Take note of a document that is now stored; called by the unit of work."""
        if execution.due_at is not None:
            known = self._live.get(execution.id)
            self._live[execution.id] = execution if known is None else _with_longer_lease(execution, known)
            return
        self._live.pop(execution.id, None)
        self._recent[execution.id] = execution
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    @property
    def unfinished_count(self) -> int:
        """How many executions of this process are not finished, and those it took up from the ones before."""
        return len(self._live)

    async def get(self, execution_id: ExecutionId) -> Execution | None:
        known = self._live.get(execution_id) or self._recent.get(execution_id)
        if known is not None:
            return known
        row = await self._database.read(
            lambda c: c.execute(f"select {_COLUMNS} from execution where id = ?", (execution_id,)).fetchone()
        )
        # A commit may have come between; what it noted is newer than the row.
        return self._newest(_execution(row)) if row else self._live.get(execution_id)

    def _newest(self, stored: Execution) -> Execution:
        return self._live.get(stored.id) or self._recent.get(stored.id) or stored

    async def by_idempotency_key(self, user_id: UserId, key: str) -> Execution | None:
        row = await self._database.read(
            lambda c: c.execute(
                f"select {_COLUMNS} from execution where user_id = ? and idempotency_key = ?", (user_id, key)
            ).fetchone()
        )
        return _execution(row) if row else None

    async def release_idempotency_key(self, execution: Execution) -> None:
        if execution.idempotency is None:
            return
        key = execution.idempotency.key
        await self._database.write(
            lambda c: (
                c.execute(
                    "update execution set idempotency_key = null where id = ? and idempotency_key = ?",
                    (execution.id, key),
                ).rowcount
            )
        )

    async def extend_lease(self, keys: Sequence[PodKey], owner: str, expires_at: datetime) -> Sequence[PodKey]:
        held = [key for key in keys if (lease := self._lease(key)) is not None and lease.owner == owner]
        due_at = expires_at + LEASE_GRACE
        rows = [(expires_at.timestamp(), due_at.timestamp(), key.execution_id) for key in held]
        await self._database.write(
            lambda c: (
                c.executemany(
                    "update execution set lease_expires_at = ?, due_at = ? where id = ? and status = 'running'", rows
                ).rowcount
            )
        )
        for key in held:
            execution = self._live.get(key.execution_id)
            if execution is not None and execution.lease is not None and execution.attempt == key.attempt:
                lease = replace(execution.lease, expires_at=expires_at)
                self._live[key.execution_id] = replace(execution, lease=lease, due_at=due_at)
        return held

    def _lease(self, key: PodKey) -> Lease | None:
        execution = self._live.get(key.execution_id)
        return execution.lease if execution is not None and execution.attempt == key.attempt else None

    async def due(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Sequence[Execution]:
        rows = await self._database.read(
            lambda c: c.execute(
                f"select {_COLUMNS} from execution where due_at <= ? or due_at > ? order by due_at limit ?",
                (before.timestamp(), beyond.timestamp(), limit),
            ).fetchall()
        )
        found = [self._newest(_execution(row)) for row in rows]
        return [each for each in found if each.due_at is not None and (each.due_at <= before or each.due_at > beyond)]

    async def unfinished(self) -> AsyncIterator[Execution]:
        after = (-1.0, 0)
        while True:
            rows = await self._database.read(
                lambda c, start=after: c.execute(
                    f"select {_COLUMNS}, rowid from execution where due_at is not null and (due_at, rowid) > (?, ?)"
                    " order by due_at, rowid limit 500",
                    start,
                ).fetchall()
            )
            for row in rows:
                after = (row[1], row[-1])
                execution = self._newest(_execution(row[:-1]))
                if execution.due_at is not None:
                    yield execution
            if not rows:
                return

    async def defer(self, execution: Execution, due_at: datetime) -> None:
        await self._database.write(
            lambda c: (
                c.execute(
                    "update execution set due_at = ? where id = ? and version = ? and due_at is not null",
                    (due_at.timestamp(), execution.id, execution.version),
                ).rowcount
            )
        )
        known = self._live.get(execution.id)
        if known is not None and known.version == execution.version:
            self._live[execution.id] = replace(known, due_at=due_at)

    async def list(self, where: ExecutionFilter, limit: int, before: ExecutionId | None) -> Sequence[Execution]:
        conditions: dict[str, Any] = {
            "user_id = ?": where.user_id,
            "project_id = ?": where.project_id,
            "status = ?": where.status,
            "lang = ?": where.lang,
            "json_extract(cast(doc as text), '$.spec.priority') = ?": where.priority,
            "created_at >= ?": where.created_from and where.created_from.timestamp(),
            "created_at < ?": where.created_before and where.created_before.timestamp(),
            "id < ?": before,
        }
        chosen = {text: value for text, value in conditions.items() if value is not None}
        clause = " and ".join(chosen) or "1"
        # The condition texts are the literals above; every value is bound.
        query = f"select {_COLUMNS} from execution where {clause} order by id desc limit ?"
        rows = await self._database.read(lambda c: c.execute(query, (*chosen.values(), limit)).fetchall())
        return [_execution(row) for row in rows]

    async def delete(self, execution_id: ExecutionId, archival: Archival) -> None:
        def work(c: sqlite3.Connection) -> None:
            event_index.archive(c, event_index.offsets_of_execution(c, execution_id), archival)
            remove_copies_of_execution(c, execution_id)
            c.execute("delete from execution where id = ?", (execution_id,))
            c.execute("delete from saga where execution_id = ?", (execution_id,))
            c.execute("delete from tape where execution_id = ?", (execution_id,))
            c.execute("delete from artifact where execution_id = ?", (execution_id,))
            c.execute("delete from notification where execution_id = ?", (execution_id,))

        await self._database.write(work, durable=True)
        self._live.pop(execution_id, None)
        self._recent.pop(execution_id, None)
        self._sagas.deleted(execution_id)

    async def remove(self, execution_ids: Sequence[ExecutionId]) -> None:
        """Remove ended executions that have become too old; what the log says of them has an age of its own."""
        keys = [(execution_id,) for execution_id in execution_ids]

        def work(c: sqlite3.Connection) -> None:
            for table, column in (
                ("execution", "id"),
                ("saga", "execution_id"),
                ("tape", "execution_id"),
                ("artifact", "execution_id"),
                ("notification", "execution_id"),
            ):
                c.executemany(f"delete from {table} where {column} = ?", keys)

        if keys:
            await self._database.write(work)
            for execution_id in execution_ids:
                self._recent.pop(execution_id, None)
                self._sagas.deleted(execution_id)


class SqliteSagaStore:
    """`SagaStore` over the `saga` table; unfinished documents are kept decoded."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._live: dict[ExecutionId, Saga] = {}

    def committed(self, saga: Saga) -> None:
        """Take note of a document that is now stored; called by the unit of work."""
        if saga.step is SagaStep.DONE:
            self._live.pop(saga.execution_id, None)
        else:
            self._live[saga.execution_id] = saga

    def deleted(self, execution_id: ExecutionId) -> None:
        """Take note that the saga was removed with its execution."""
        self._live.pop(execution_id, None)

    async def get(self, execution_id: ExecutionId) -> Saga | None:
        known = self._live.get(execution_id)
        if known is not None:
            return known
        row = await self._database.read(
            lambda c: c.execute("select doc from saga where execution_id = ?", (execution_id,)).fetchone()
        )
        return self._live.get(execution_id) or (_decode_saga(row[0]) if row else None)

    async def unfinished(self) -> AsyncIterator[Saga]:
        after = ""
        while True:
            rows = await self._database.read(
                lambda c, start=after: c.execute(
                    "select execution_id, doc from saga where unfinished and execution_id > ?"
                    " order by execution_id limit 500",
                    (start,),
                ).fetchall()
            )
            for execution_id, doc in rows:
                after = execution_id
                yield _decode_saga(doc)
            if not rows:
                return

    async def due(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Sequence[Saga]:
        rows = await self._database.read(
            lambda c: c.execute(
                "select doc from saga where due_at <= ? or due_at > ? order by due_at limit ?",
                (before.timestamp(), beyond.timestamp(), limit),
            ).fetchall()
        )
        return [_decode_saga(row[0]) for row in rows]

    async def list(self, where: SagaFilter, limit: int, before: ExecutionId | None) -> Sequence[Saga]:
        # What has ended is told by columns; what has not is told by its document, and there are few of those.
        ended = _STATUS_OF.get(where.state) if where.state is not None else None
        conditions: dict[str, Any] = {
            "e.user_id = ?": where.user_id,
            "s.execution_id = ?": where.execution_id,
            "s.execution_id < ?": before,
            "not s.unfinished and e.status = ?": ended,
        }
        chosen = {text: value for text, value in conditions.items() if value is not None}
        if where.state is not None and ended is None:
            chosen["s.unfinished and ?"] = True
        clause = " and ".join(chosen) or "1"
        # The condition texts are the literals above; every value is bound.
        query = (
            "select s.doc, e.status from saga s join execution e on e.id = s.execution_id"
            f" where {clause} order by s.execution_id desc"
        )

        def work(c: sqlite3.Connection) -> list[Saga]:
            found: list[Saga] = []
            for doc, status in c.execute(query, tuple(chosen.values())):
                saga = settled(_decode_saga(doc), Status(status))
                if where.state is None or saga.state is where.state:
                    found.append(saga)
                if len(found) == limit:
                    break
            return found

        return await self._database.read(work)


class SqliteUnitOfWork:
    """`UnitOfWork`: all changes of a commit and their log rows in one savepoint, so all of them or none."""

    def __init__(
        self, database: Database, executions: SqliteExecutionStore, sagas: SqliteSagaStore, log: SqliteEventLog
    ) -> None:
        self._database = database
        self._executions = executions
        self._sagas = sagas
        self._log = log

    async def commit(self, changes: Sequence[Change], handled_by: frozenset[str] = frozenset()) -> None:
        merged = folded(changes)
        durable = any(change.durability is Durability.POWER for change in merged)

        messages = [message for change in merged for message in change.messages]

        def work(c: sqlite3.Connection) -> Sequence[int]:
            for change in merged:
                if isinstance(change.document, Execution):
                    _write_execution(c, change.document, change.expected_version)
                else:
                    _write_saga(c, change.document, change.expected_version)
                if change.notifications:
                    insert_notifications(c, change.notifications)
            return self._log.insert(c, messages) if messages else ()

        def note(written: "asyncio.Future[Sequence[int]]") -> None:
            if written.cancelled() or written.exception() is not None:
                return
            for change in merged:
                if isinstance(change.document, Execution):
                    self._executions.committed(change.document)
                else:
                    self._sagas.committed(change.document)
            self._log.committed(list(zip(written.result(), messages, strict=True)), handled_by)

        written = self._database.write(work, durable=durable)
        try:
            await asyncio.shield(written)
        except asyncio.CancelledError:
            written.add_done_callback(note)  # the write stands, whether its caller waits for it or not
            raise
        note(written)


def _write_execution(c: sqlite3.Connection, execution: Execution, expected_version: int) -> None:
    if execution.artifacts.kept:
        rows = [(execution.id, artifact.sha256) for artifact in execution.artifacts.kept]
        c.executemany("insert or ignore into artifact values (?,?)", rows)
    due_at = execution.due_at and execution.due_at.timestamp()
    lease_expires_at = execution.lease and execution.lease.expires_at.timestamp()
    if expected_version == 0:
        key = execution.idempotency and execution.idempotency.key
        try:
            c.execute(
                "insert into execution values (?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    execution.id,
                    execution.version,
                    execution.user_id,
                    execution.project_id,
                    execution.status,
                    execution.spec.lang,
                    execution.created_at.timestamp(),
                    due_at,
                    lease_expires_at,
                    key,
                    execution.source.blob_sha256,
                    _encode(execution),
                ),
            )
        except sqlite3.IntegrityError as error:
            if "idempotency_key" in str(error):
                raise IdempotencyKeyTaken(key) from error
            raise VersionConflict(f"execution {execution.id} exists") from error
        return
    # A lease may have been extended since the document was read: of two expiries of a live attempt the later holds.
    extended = "case when status = 'running' and ? = 'running' then max({0}, ?) else ? end"
    changed = c.execute(
        f"update execution set version = ?, status = ?, due_at = {extended.format('due_at')},"
        f" lease_expires_at = {extended.format('lease_expires_at')}, doc = ? where id = ? and version = ?",
        (
            execution.version,
            execution.status,
            *(execution.status, due_at, due_at),
            *(execution.status, lease_expires_at, lease_expires_at),
            _encode(execution),
            execution.id,
            expected_version,
        ),
    ).rowcount
    if changed != 1:
        raise VersionConflict(f"execution {execution.id} is no longer at version {expected_version}")


def _write_saga(c: sqlite3.Connection, saga: Saga, expected_version: int) -> None:
    due_at = saga.due_at and saga.due_at.timestamp()
    unfinished = saga.step is not SagaStep.DONE
    if expected_version == 0:
        try:
            c.execute(
                "insert into saga values (?,?,?,?,?)",
                (saga.execution_id, saga.version, due_at, unfinished, _encode(saga)),
            )
        except sqlite3.IntegrityError as error:
            raise VersionConflict(f"saga {saga.execution_id} exists") from error
        return
    changed = c.execute(
        "update saga set version = ?, due_at = ?, unfinished = ?, doc = ? where execution_id = ? and version = ?",
        (saga.version, due_at, unfinished, _encode(saga), saga.execution_id, expected_version),
    ).rowcount
    if changed != 1:
        raise VersionConflict(f"saga {saga.execution_id} is no longer at version {expected_version}")


def _with_longer_lease(execution: Execution, known: Execution) -> Execution:
    """Return `execution` with the expiry that `known` has, if both hold the same lease and that is later."""
    lease, other = execution.lease, known.lease
    if lease is None or other is None or lease.fence != other.fence or lease.expires_at >= other.expires_at:
        return execution
    return replace(execution, lease=other, due_at=known.due_at)


def _execution(row: tuple[Any, ...]) -> Execution:
    """Decode a row of `_COLUMNS`, whose columns win over the document."""
    doc, due_at, lease_expires_at, idempotency_key = row
    execution = _decode_execution(doc)
    changed: dict[str, Any] = {}
    if due_at is not None:
        changed["due_at"] = datetime.fromtimestamp(due_at, UTC)
    if lease_expires_at is not None and execution.lease is not None:
        changed["lease"] = replace(execution.lease, expires_at=datetime.fromtimestamp(lease_expires_at, UTC))
    if idempotency_key is None and execution.idempotency is not None:
        changed["idempotency"] = None
    return replace(execution, **changed) if changed else cast(Execution, execution)
