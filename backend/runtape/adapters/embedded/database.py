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

The WAL is grown in advance, because a file that grows makes each sync a journal commit of the file system
(measured: half the mean of a FULL commit under load).  It is grown by writing zeros into the empty file: SQLite
takes a header of zeros for an empty log.  Checkpoints are run by a reader thread, off the commit path, each time
the log has grown by half that size.  SQLite starts again at the log's beginning only when all of it was copied, which
a reader cannot reach while the writer adds to it; so the writer copies the last few pages itself, between two groups.
When the log is as long as the file and the reader not done, the writer waits for it: so the file grows by a group at
most, unless somebody's long read keeps the log from being copied.

Readers have connections of their own; each read is one snapshot of what was committed.

The writer thread ends with `close` alone.  Whatever goes wrong in a group fails that group; a connection that
cannot even roll back is replaced, and when that fails too it is tried again for the next group.

A full disk is met late and left by itself: the log's file has its space, so writes go on until it is used up; then
groups fail until one can be committed.  A copy that found no room is tried again with the next group.
"""

import asyncio
import contextlib
import os
import queue
import sqlite3
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from runtape.ports.errors import Permanent, Transient

T = TypeVar("T")
log = structlog.get_logger(__name__)

GROUP_LIMIT = 128
"""Writes per transaction at most, which bounds how long the first of a group waits for the last."""

WAL_BYTES = 32 << 20
GROWTH_BYTES = 1 << 20
CACHE_KIB = 2 << 10
"""The page cache of each connection.  A run touches the newest pages of each tree; more would only fill up."""

_WAL_INDEX = struct.Struct("=14xHI")
"""Page size and number of frames, at the start of the -shm file (sqlite.org/walformat.html, 2.1)."""

_FRAME_HEADER_BYTES = 24

APPLICATION_ID = 0x52547031
SCHEMA_VERSION = 1


@dataclass(slots=True)
class _Call:
    work: Callable[[sqlite3.Connection], Any]
    future: "asyncio.Future[Any] | None"
    durable: bool = False


_Answer = tuple[_Call, Any, Exception | None]


class Database:
    """The file at `path`; open it on the loop that uses it, close it there."""

    def __init__(self, path: Path, schema: tuple[str, ...], *, readers: int = 2, wal_bytes: int = WAL_BYTES) -> None:
        self._path = path
        self._schema = schema
        self._reader_count = readers
        self._wal_bytes = wal_bytes
        self._writes: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._checkpointed = threading.Event()
        """Set while no checkpoint is under way."""
        self._checkpointed.set()
        self._copied = False
        """Whether a reader has copied the log, and the writer is to copy what came since."""
        self._wal_path = path.with_name(path.name + "-wal")
        self._wal_index: int | None = None
        self._asked_at_bytes = 0
        """How long the log was when a checkpoint was last asked for that did not fail."""
        self._closed = False

    async def open(self) -> None:
        """Make or open the file, apply the schema and start the threads.  Raises: Permanent."""
        self._loop = asyncio.get_running_loop()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            writer, readers = await asyncio.to_thread(self._open_connections)
        except (sqlite3.Error, OSError) as error:
            raise Permanent(f"cannot open the store {self._path}: {error}") from error
        self._spawn("store-writer", self._write_loop, writer)
        for number, reader in enumerate(readers):
            self._spawn(f"store-reader-{number}", self._read_loop, reader)

    async def close(self) -> None:
        """Commit what is queued, fold the log into the file and stop the threads.  Idempotent."""
        if not self._closed:
            self._closed = True
            self._writes.put(None)
        writer, readers = self._threads[:1], self._threads[1:]
        for thread in writer:  # it may wait for a checkpoint, so the readers outlive it
            await asyncio.to_thread(thread.join)
        for _ in readers:
            self._reads.put(None)
        for thread in readers:
            await asyncio.to_thread(thread.join)
        if self._wal_index is not None:
            os.close(self._wal_index)
            self._wal_index = None

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> "asyncio.Future[T]":
        """Run `work` in its own savepoint of the next transaction; the future is done once that is committed.

        Writes commit in the order of these calls.  `work` runs on the writer thread: it must touch nothing of
        the loop's.  Its own exception undoes it alone.  A durable write that changes nothing syncs nothing.
        Raises through the future: what `work` raised, the driver's IntegrityError included; Transient.
        """
        return self._submit(self._writes, work, durable)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        """Run `work` on a reader's connection, in one snapshot that holds what was committed before this call."""
        return self._submit(self._reads, work, False)

    async def probe(self) -> None:
        """Return once a page was written, which a full or read-only disk refuses.  Raises: Transient."""
        await self.write(lambda c: c.execute(f"pragma user_version={SCHEMA_VERSION}").fetchone())

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

    def _open_connections(self) -> tuple[sqlite3.Connection, list[sqlite3.Connection]]:
        opened: list[sqlite3.Connection] = []
        try:
            opened.append(self._open_writer())
            opened += [self._connect() for _ in range(self._reader_count)]
        except BaseException:
            for connection in opened:
                connection.close()
            raise
        return opened[0], opened[1:]

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, check_same_thread=False, isolation_level=None, cached_statements=256, timeout=10
        )
        try:
            connection.execute("pragma journal_mode=wal")
            connection.execute(f"pragma cache_size=-{CACHE_KIB}")
            connection.execute("pragma wal_autocheckpoint=0")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_writer(self) -> sqlite3.Connection:
        if not self._path.exists():
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = self._connect()
        try:
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
            if found != SCHEMA_VERSION:
                connection.execute(f"pragma user_version={SCHEMA_VERSION}")
                connection.execute(f"pragma application_id={APPLICATION_ID}")
            connection.execute("pragma wal_checkpoint(truncate)")
            self._grow_wal()
            # Kept open until no connection is left: closing a file drops the process's locks on it.
            self._wal_index = os.open(self._path.with_name(self._path.name + "-shm"), os.O_RDONLY)
        except BaseException:
            connection.close()
            raise
        return connection

    def _grow_wal(self) -> None:
        """Fill the log, which was just truncated and which nobody else has open, with zeros; do without if need be."""
        with self._wal_path.open("r+b", buffering=0) as wal:
            if os.fstat(wal.fileno()).st_size != 0:
                return
            try:
                for _ in range(0, self._wal_bytes, GROWTH_BYTES):
                    wal.write(bytes(min(GROWTH_BYTES, self._wal_bytes)))
                os.fsync(wal.fileno())
            except OSError as error:
                wal.truncate(0)  # what is left of the disk is for what was accepted before
                log.warning("store.log_not_grown", error=str(error), bytes=self._wal_bytes)

    def _write_loop(self, connection: sqlite3.Connection) -> None:
        stop, usable = False, True
        while not stop:
            group, stop = self._next_group()
            if not group:
                continue
            try:
                if not usable:
                    connection = self._connect()
                    usable = True
                answers = self._commit(connection, group)
            except BaseException as error:  # not even the rollback worked: this connection is of no use
                log.error("store.writer_failed", error=repr(error))
                answers = self._failed(group, error)
                connection.close()
                usable = False
            self._tell(answers)
            self._consider_checkpoint()
            if self._copied:
                self._copied = False
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("pragma wal_checkpoint(passive)").fetchone()
        with contextlib.suppress(sqlite3.Error):
            connection.execute("pragma wal_checkpoint(truncate)")
        connection.close()

    def _next_group(self) -> tuple[list[_Call], bool]:
        """Wait for a write and return it with those queued behind it, and whether the last of all was seen."""
        group: list[_Call] = []
        call = self._writes.get()
        while call is not None:
            group.append(call)
            if len(group) == GROUP_LIMIT:
                return group, False
            try:
                call = self._writes.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, connection: sqlite3.Connection, group: list[_Call]) -> list[_Answer]:
        """Commit `group` and return what to tell each caller.  Raises when the connection cannot be used on."""
        answers: list[_Answer] = []
        try:
            # Setting it is as cheap as knowing whether it is set; the driver keeps the statement prepared.
            wanted = "full" if any(call.durable for call in group) else "normal"
            connection.execute(f"pragma synchronous={wanted}")
            connection.execute("begin immediate")
            alone = len(group) == 1  # then the transaction itself is its savepoint
            for call in group:
                if not alone:
                    connection.execute("savepoint unit")
                try:
                    answers.append((call, call.work(connection), None))
                except BaseException as error:  # the unit's own failure: undone, and told to its caller
                    if isinstance(error, sqlite3.Error) and not connection.in_transaction:
                        raise  # the driver has undone the whole group, as it does on a full disk
                    connection.execute("rollback" if alone else "rollback to unit")
                    answers.append((call, None, _translated(error)))
                if not alone:
                    connection.execute("release unit")
            if connection.in_transaction:
                connection.execute("commit")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("rollback")
            return self._failed(group, error)
        return answers

    def _failed(self, group: list[_Call], error: BaseException) -> list[_Answer]:
        failure = Transient(f"the store could not commit: {error}{self._disk_trouble()}", retry_after_s=0.2)
        return [(call, None, failure) for call in group]

    def _disk_trouble(self) -> str:
        """Return what is wrong with the disk, as far as one can see: the driver says "disk I/O error" to most of it."""
        try:
            disk = os.statvfs(self._path)
        except OSError as error:
            return f"; its file: {error.strerror}"
        if disk.f_flag & os.ST_RDONLY:
            return "; its file system is read-only"
        if disk.f_bavail * disk.f_frsize < GROWTH_BYTES:
            return "; its disk is full"
        return ""

    def _read_loop(self, connection: sqlite3.Connection) -> None:
        while (call := self._reads.get()) is not None:
            try:
                if call.future is not None:
                    connection.execute("begin")
                answer = (call, call.work(connection), None)
            except BaseException as error:  # told to the caller through its future
                answer = (call, None, _translated(error))
            if connection.in_transaction:
                connection.execute("rollback")
            self._tell([answer])
        connection.close()

    def _tell(self, answers: list[_Answer]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_resolve, answers)
        except RuntimeError:  # the loop was closed first: nobody waits any more
            log.debug("store.answer_dropped", count=len(answers))

    def _consider_checkpoint(self) -> None:
        length = self._log_bytes()
        if not self._checkpointed.is_set():
            if length >= self._wal_bytes:
                self._checkpointed.wait()
            return
        if length < self._asked_at_bytes:  # the log has begun again
            self._asked_at_bytes = 0
        if length >= self._asked_at_bytes + self._wal_bytes // 2:
            self._asked_at_bytes = length
            self._checkpointed.clear()
            self._reads.put(_Call(self._checkpoint, None))

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        try:
            for _ in range(2):  # the second time what was added during the first
                connection.execute("pragma wal_checkpoint(passive)").fetchone()
            self._copied = True
        except sqlite3.Error as error:
            log.warning("store.checkpoint_failed", error=str(error))
            self._asked_at_bytes = 0
        finally:
            self._checkpointed.set()

    def _log_bytes(self) -> int:
        """Return how much of the log's file is in use; the file itself never shrinks."""
        assert self._wal_index is not None
        page_bytes, frames = _WAL_INDEX.unpack(os.pread(self._wal_index, _WAL_INDEX.size, 0))
        return frames * (page_bytes + _FRAME_HEADER_BYTES)


def _resolve(answers: list[_Answer]) -> None:
    for call, value, error in answers:
        if call.future is None or call.future.done():  # ours, or cancelled by its caller; the write stands
            continue
        if error is None:
            call.future.set_result(value)
        else:
            call.future.set_exception(error)


def _translated(error: BaseException) -> Exception:
    """Return what a caller is told: a driver's failure as Transient, its IntegrityError and others as they are."""
    if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
        return Transient(f"the store refused a statement: {error}", retry_after_s=0.2)
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"a unit of work raised {error!r}")  # a future can carry neither of those
