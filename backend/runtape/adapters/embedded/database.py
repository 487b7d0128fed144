"""One SQLite file: one writer thread with group commit, and reader threads.

Theory of operation
===================
Every write of the process is a function over the writer's connection, put on a queue with a future.  The
writer thread takes what is queued (it never waits for more), runs each function inside a SAVEPOINT of one
transaction, commits, and tells the event loop once for the whole group.  A function that raises undoes its
own savepoint and fails its own future; a COMMIT that fails fails the group.

A group that holds a write for `Durability.POWER` commits with ``synchronous=FULL``, any other with
``NORMAL``, switched on the one connection between transactions.  The WAL is one checksummed log and FULL
syncs the file, hence every earlier NORMAL commit with it: what survives is always a prefix.  A NORMAL commit
survives the death of the process, since its pages are in the kernel's hands.

The WAL is grown once in advance, because a file that grows makes each sync a journal commit of the file
system (measured: half the mean of a FULL commit under load).  Checkpoints are run by a reader thread, off the
commit path, before the log outgrows that size; the writer then starts again at its beginning.

Readers have connections of their own and see what was committed.
"""

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from runtape.ports.errors import InfrastructureError, Permanent, Transient

T = TypeVar("T")
log = structlog.get_logger(__name__)

GROUP_LIMIT = 128
"""Writes per transaction at most, which bounds how long the first of a group waits for the last."""

WAL_BYTES = 32 << 20
CHECKPOINT_BYTES = 16 << 20
CACHE_KIB = 64 << 10
APPLICATION_ID = 0x52547031
SCHEMA_VERSION = 1


@dataclass(slots=True)
class _Call:
    work: Callable[[sqlite3.Connection], Any]
    future: "asyncio.Future[Any]"
    durable: bool = False


class Database:
    """The file at `path`; open it on the loop that uses it, close it there."""

    def __init__(self, path: Path, schema: tuple[str, ...], *, readers: int = 2) -> None:
        self._path = path
        self._schema = schema
        self._reader_count = readers
        self._writes: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._checkpointing = False
        self._wal_path = path.with_name(path.name + "-wal")
        self._written_bytes = 0
        self._closed = False

    async def open(self) -> None:
        """Make or open the file, apply the schema and start the threads.  Raises: Permanent."""
        self._loop = asyncio.get_running_loop()
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            writer = await asyncio.to_thread(self._open_writer)
        except sqlite3.Error as error:
            raise Permanent(f"cannot open the store {self._path}: {error}") from error
        self._spawn("store-writer", self._write_loop, writer)
        for number in range(self._reader_count):
            self._spawn(f"store-reader-{number}", self._read_loop, self._connect())

    async def close(self) -> None:
        """Commit what is queued, fold the log into the file and stop the threads.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._writes.put(None)
        for _ in range(self._reader_count):
            self._reads.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> "asyncio.Future[T]":
        """Run `work` in its own savepoint of the next transaction; the future is done once that is committed.

        Writes commit in the order of these calls.  `work` runs on the writer thread: it must touch nothing of
        the loop's.  Its own exception undoes it alone.  Raises through the future: what `work` raised; Transient.
        """
        return self._submit(self._writes, work, durable)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        """Run `work` on a reader's connection, which sees what was committed before this call."""
        return self._submit(self._reads, work, False)

    def _submit(
        self, calls: "queue.SimpleQueue[_Call | None]", work: Callable[[sqlite3.Connection], T], durable: bool
    ) -> "asyncio.Future[T]":
        if self._loop is None or self._closed:
            raise Transient("the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        calls.put(_Call(work, future, durable))
        return future

    def _spawn(self, name: str, target: Callable[[sqlite3.Connection], None], connection: sqlite3.Connection) -> None:
        thread = threading.Thread(target=target, args=(connection,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, check_same_thread=False, isolation_level=None, cached_statements=256, timeout=10
        )
        connection.execute("pragma journal_mode=wal")
        connection.execute(f"pragma cache_size=-{CACHE_KIB // 4}")
        connection.execute("pragma foreign_keys=off")
        return connection

    def _open_writer(self) -> sqlite3.Connection:
        fresh = not self._path.exists()
        if fresh:
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = self._connect()
        connection.execute(f"pragma cache_size=-{CACHE_KIB}")
        connection.execute("pragma wal_autocheckpoint=0")
        found = connection.execute("pragma user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise Permanent(
                f"{self._path} was made by a newer runtape (schema {found}, this one knows {SCHEMA_VERSION})"
            )
        connection.execute("pragma synchronous=full")
        connection.execute("begin immediate")
        for statement in self._schema:
            connection.execute(statement)
        connection.execute("commit")
        connection.execute(f"pragma user_version={SCHEMA_VERSION}")
        connection.execute(f"pragma application_id={APPLICATION_ID}")
        self._grow_wal(connection)
        return connection

    def _grow_wal(self, connection: sqlite3.Connection) -> None:
        connection.execute("begin immediate")
        connection.execute("create table wal_ballast (bytes blob)")
        connection.execute("insert into wal_ballast values (zeroblob(?))", (WAL_BYTES,))
        connection.execute("drop table wal_ballast")
        connection.execute("commit")
        connection.execute("pragma wal_checkpoint(restart)")
        connection.execute("pragma incremental_vacuum")

    def _write_loop(self, connection: sqlite3.Connection) -> None:
        synchronous = ""
        while True:
            call = self._writes.get()
            group: list[_Call] = []
            stop = call is None
            while call is not None:
                group.append(call)
                if len(group) == GROUP_LIMIT:
                    break
                try:
                    call = self._writes.get_nowait()
                except queue.Empty:
                    break
                stop = call is None
            if group:
                wanted = "full" if any(call.durable for call in group) else "normal"
                if wanted != synchronous:
                    connection.execute(f"pragma synchronous={wanted}")
                    synchronous = wanted
                answers = self._commit(connection, group)
                self._tell(answers)
                self._consider_checkpoint(connection, len(group))
            if stop:
                connection.execute("pragma wal_checkpoint(truncate)")
                connection.close()
                return

    def _commit(self, connection: sqlite3.Connection, group: list[_Call]) -> list[tuple[_Call, Any, Exception | None]]:
        answers: list[tuple[_Call, Any, Exception | None]] = []
        try:
            connection.execute("begin immediate")
            for call in group:
                connection.execute("savepoint unit")
                try:
                    answers.append((call, call.work(connection), None))
                except Exception as error:  # the unit's own failure: undone, and told to its caller
                    connection.execute("rollback to unit")
                    answers.append((call, None, _translated(error)))
                connection.execute("release unit")
            connection.execute("commit")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("rollback")
            failure = Transient(f"the store could not commit: {error}", retry_after_s=0.2)
            return [(call, None, failure) for call in group]
        return answers

    def _read_loop(self, connection: sqlite3.Connection) -> None:
        while (call := self._reads.get()) is not None:
            try:
                answer = (call, call.work(connection), None)
            except Exception as error:  # told to the caller through its future
                answer = (call, None, _translated(error))
            self._tell([answer])
        connection.close()

    def _tell(self, answers: list[tuple[_Call, Any, Exception | None]]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_resolve, answers)
        except RuntimeError:  # the loop was closed first: nobody waits any more
            log.debug("store.answer_dropped", count=len(answers))

    def _consider_checkpoint(self, connection: sqlite3.Connection, units: int) -> None:
        # Pages written are not told by this driver; 24 KiB a unit is what a run's units were measured to add.
        self._written_bytes += units * (24 << 10)
        if self._checkpointing or (self._written_bytes < CHECKPOINT_BYTES and self._wal_size() <= 2 * WAL_BYTES):
            return
        self._checkpointing = True
        self._written_bytes = 0
        assert self._loop is not None
        self._reads.put(_Call(self._checkpoint, self._loop.create_future()))

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("pragma wal_checkpoint(passive)").fetchone()
        finally:
            self._checkpointing = False

    def _wal_size(self) -> int:
        try:
            return os.stat(self._wal_path).st_size
        except FileNotFoundError:
            return 0


def _resolve(answers: list[tuple[_Call, Any, Exception | None]]) -> None:
    for call, value, error in answers:
        if call.future.done():  # cancelled by its caller; the write stands
            continue
        if error is None:
            call.future.set_result(value)
        else:
            call.future.set_exception(error)


def _translated(error: Exception) -> Exception:
    if isinstance(error, sqlite3.IntegrityError) or not isinstance(error, sqlite3.Error):
        return error
    if isinstance(error, InfrastructureError):
        return error
    return Transient(f"the store refused a statement: {error}", retry_after_s=0.2)
