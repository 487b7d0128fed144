"""The embedded database: what a group of writes is, what fails with what, and what survives."""

import asyncio
import contextlib
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from runtape.adapters.embedded import database as database_module
from runtape.adapters.embedded.database import GROUP_LIMIT, Database
from runtape.ports.errors import InfrastructureError, Permanent, Transient

SCHEMA = ("create table if not exists notes (n integer primary key, text text)",)
Work = Callable[[sqlite3.Connection], None]

make_database = partial(Database, schema=SCHEMA, wal_bytes=1 << 16)
"""Growing the log in advance is for speed; most tests do without."""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = make_database(tmp_path / "test.db")
    await database.open()
    yield database
    await database.close()


def insert(n: int, text: str = "") -> Work:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("insert into notes values (?, ?)", (n, text))

    return work


def all_notes(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("select n from notes order by n").fetchall()]


class Holding:
    """A unit that keeps the writer busy, so that what is written meanwhile forms the next groups.

    Its own group is told only once it is released, when the writer has taken nothing else yet.
    """

    def __init__(self, database: Database) -> None:
        self._entered = threading.Event()
        self._released = threading.Event()
        self.done = database.write(self._hold)

    def _hold(self, connection: sqlite3.Connection) -> None:
        self._entered.set()
        assert self._released.wait(20)

    async def entered(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, 20)

    def release(self) -> None:
        self._released.set()


async def hold(database: Database) -> Holding:
    holding = Holding(database)
    await holding.entered()
    return holding


class TestGroups:
    async def test_what_queues_up_is_committed_in_one_transaction_in_order(self, database: Database) -> None:
        statements: list[str] = []
        order: list[int] = []
        holding = await hold(database)

        def unit(n: int) -> Work:
            def work(connection: sqlite3.Connection) -> None:
                if n == 0:
                    connection.set_trace_callback(statements.append)
                order.append(n)
                insert(n)(connection)

            return work

        writes = [database.write(unit(n)) for n in range(10)]
        holding.release()
        await asyncio.gather(*writes)
        await database.write(lambda connection: connection.set_trace_callback(None))
        assert order == list(range(10))
        commits = [n for n, statement in enumerate(statements) if statement.lower().startswith("commit")]
        inserts = [n for n, statement in enumerate(statements) if statement.startswith("insert")]
        assert len(inserts) == 10
        assert commits[0] > inserts[-1]

    async def test_futures_are_done_in_the_order_of_the_writes_over_several_groups(self, database: Database) -> None:
        told: list[int] = []
        holding = await hold(database)
        writes = [database.write(insert(n)) for n in range(3 * GROUP_LIMIT)]
        for n, write in enumerate(writes):
            write.add_done_callback(lambda _, n=n: told.append(n))
        holding.release()
        await asyncio.gather(*writes)
        assert told == list(range(3 * GROUP_LIMIT))

    async def test_group_is_bounded(self, database: Database) -> None:
        statements: list[str] = []
        holding = await hold(database)
        first = database.write(lambda connection: connection.set_trace_callback(statements.append))
        writes = [database.write(insert(n)) for n in range(2 * GROUP_LIMIT)]
        holding.release()
        await asyncio.gather(first, *writes)
        commits = [n for n, statement in enumerate(statements) if statement.lower().startswith("commit")]
        before_first_commit = [s for s in statements[: commits[0]] if s.startswith("insert")]
        assert len(before_first_commit) == GROUP_LIMIT - 1

    @pytest.mark.parametrize(("durable", "mode"), [(False, 1), (True, 2)])
    async def test_durable_write_is_committed_with_full_synchronisation(
        self, database: Database, durable: bool, mode: int
    ) -> None:
        def synchronous(connection: sqlite3.Connection) -> int:
            return connection.execute("pragma synchronous").fetchone()[0]

        await database.write(insert(1), durable=not durable)
        assert await database.write(synchronous, durable=durable) == mode

    async def test_one_durable_write_makes_its_group_durable(self, database: Database) -> None:
        modes: list[int] = []
        holding = await hold(database)

        def note(connection: sqlite3.Connection) -> None:
            modes.append(connection.execute("pragma synchronous").fetchone()[0])

        writes = [database.write(note), database.write(note, durable=True), database.write(note)]
        holding.release()
        await asyncio.gather(*writes)
        assert modes == [2, 2, 2]


class TestFailures:
    async def test_failing_unit_undoes_itself_alone(self, database: Database) -> None:
        holding = await hold(database)

        def fails(connection: sqlite3.Connection) -> None:
            insert(2)(connection)
            raise ValueError("the unit's own")

        writes = [database.write(insert(1)), database.write(fails), database.write(insert(3))]
        holding.release()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert results[0] is None
        assert results[2] is None
        assert isinstance(results[1], ValueError)
        assert await database.read(all_notes) == [1, 3]

    async def test_later_unit_sees_nothing_of_a_failed_one(self, database: Database) -> None:
        holding = await hold(database)

        def fails(connection: sqlite3.Connection) -> None:
            insert(1)(connection)
            raise ValueError

        failing, looking = database.write(fails), database.write(all_notes)
        holding.release()
        with pytest.raises(ValueError):
            await failing
        assert await looking == []

    async def test_refused_commit_fails_every_unit_of_its_group_and_no_other(self, database: Database) -> None:
        def refuse_commits(connection: sqlite3.Connection) -> None:
            def authorize(action: int, argument: str | None, *_: str | None) -> int:
                refused = action == sqlite3.SQLITE_TRANSACTION and argument == "COMMIT"
                return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK

            connection.set_authorizer(authorize)

        holding = await hold(database)
        writes = [database.write(insert(1)), database.write(refuse_commits), database.write(insert(2))]
        holding.release()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(result) for result in results] == [Transient] * 3
        assert await database.read(all_notes) == []
        await database.write(lambda connection: connection.set_authorizer(None))
        await database.write(insert(3))
        assert await database.read(all_notes) == [3]

    async def test_unit_that_ends_the_transaction_fails_its_group_and_not_the_writer(self, database: Database) -> None:
        holding = await hold(database)
        writes = [
            database.write(insert(1)),
            database.write(lambda connection: connection.execute("rollback").rowcount),
            database.write(insert(2)),
        ]
        holding.release()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(result) for result in results] == [Transient] * 3
        await database.write(insert(4))
        assert await database.read(all_notes) == [4]

    @pytest.mark.parametrize("kind", ["write", "read"])
    async def test_driver_errors_do_not_leave(self, database: Database, kind: str) -> None:
        def wrong(connection: sqlite3.Connection) -> None:
            connection.execute("select nothing from nowhere")

        with pytest.raises(InfrastructureError) as refused:
            await getattr(database, kind)(wrong)
        assert not isinstance(refused.value, sqlite3.Error)

    async def test_reader_that_fails_goes_on_reading(self, database: Database) -> None:
        def fails(connection: sqlite3.Connection) -> None:
            raise LookupError

        for _ in range(5):
            with pytest.raises(LookupError):
                await database.read(fails)
        assert await database.read(all_notes) == []

    async def test_write_of_a_caller_who_gave_up_stands(self, database: Database) -> None:
        holding = await hold(database)
        given_up, after = database.write(insert(1)), database.write(insert(2))
        given_up.cancel()
        holding.release()
        await after
        assert await database.read(all_notes) == [1, 2]


class TestReaders:
    async def test_reader_sees_what_was_committed_before(self, database: Database) -> None:
        for n in range(50):
            await database.write(insert(n))
            assert await database.read(all_notes) == list(range(n + 1))

    async def test_reader_neither_waits_for_the_writer_nor_sees_its_open_transaction(self, database: Database) -> None:
        entered, released = threading.Event(), threading.Event()

        def slow(connection: sqlite3.Connection) -> None:
            insert(1)(connection)
            entered.set()
            assert released.wait(20)

        write = database.write(slow)
        assert await asyncio.to_thread(entered.wait, 20)
        assert await asyncio.wait_for(database.read(all_notes), 10) == []
        released.set()
        await write
        assert await database.read(all_notes) == [1]


class TestOpeningAndClosing:
    async def test_close_commits_what_is_queued(self, tmp_path: Path) -> None:
        database = make_database(tmp_path / "test.db")
        await database.open()
        holding = await hold(database)
        writes = [database.write(insert(n)) for n in range(2 * GROUP_LIMIT)]
        closing = asyncio.create_task(database.close())
        await asyncio.sleep(0)  # the close is under way before the writer goes on
        holding.release()
        await closing
        await asyncio.gather(*writes)
        assert notes_in(tmp_path / "test.db") == list(range(2 * GROUP_LIMIT))

    async def test_closed_database_refuses_and_closes_again(self, tmp_path: Path) -> None:
        database = make_database(tmp_path / "test.db")
        await database.open()
        await database.close()
        await database.close()
        for call in (database.write, database.read):
            with pytest.raises(Transient):
                await call(all_notes)

    async def test_close_leaves_one_file_of_mode_0600(self, tmp_path: Path) -> None:
        path = tmp_path / "data" / "test.db"
        database = make_database(path)
        await database.open()
        await database.write(insert(1))
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
        assert modes == {"test.db": 0o600, "test.db-wal": 0o600, "test.db-shm": 0o600}
        await database.close()
        assert [each.name for each in path.parent.iterdir()] == ["test.db"]

    async def test_file_of_a_newer_version_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "test.db"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(f"pragma user_version={database_module.SCHEMA_VERSION + 1}")
        with pytest.raises(Permanent, match="newer"):
            await make_database(path).open()
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("select count(*) from sqlite_schema").fetchone() == (0,)

    async def test_file_that_is_no_database_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "test.db"
        path.write_text("this is a diary, and it is private\n" * 100)
        with pytest.raises(Permanent):
            await make_database(path).open()
        assert path.read_text().startswith("this is a diary")


WRITES_FOREVER = """
import asyncio, os, sys
from pathlib import Path
from runtape.adapters.embedded import database

async def main():
    store = database.Database(Path(sys.argv[1]), (sys.argv[2],), wal_bytes=1 << 20)
    await store.open()

    async def writer(first):
        n = first
        while True:
            row = (n, "x" * 3000)
            await store.write(lambda c: c.execute("insert into notes values (?, ?)", row), durable=n % 5 == 0)
            os.write(1, b"%d\\n" % n)
            n += 4

    await asyncio.gather(*[writer(first) for first in range(4)])

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 40, 400])
async def test_process_killed_while_it_writes_keeps_every_acknowledged_write(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "test.db"
    lines = await asyncio.to_thread(_kill_after, path, acknowledged)
    assert len(lines) >= acknowledged
    reopened = make_database(path)
    await reopened.open()
    kept = set(await reopened.read(all_notes))
    await reopened.write(insert(-1))
    await reopened.close()
    assert lines - kept == set()
    assert notes_in(path)[0] == -1


def _kill_after(path: Path, acknowledged: int) -> set[int]:
    """Return the numbers that the process acknowledged, all of them, when it was killed after so many."""
    command = [sys.executable, "-c", WRITES_FOREVER, str(path), SCHEMA[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(acknowledged)]
        process.kill()
        rest = process.stdout.read()
    assert process.returncode == -9
    # Each number was written to the pipe with one call, so the last line is whole as well.
    return {int(line) for line in b"".join([*first, rest]).splitlines()}


def notes_in(path: Path) -> list[int]:
    """Return what a fresh connection finds, with nothing else open."""
    assert os.path.exists(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        return all_notes(connection)


class TestWriterSurvives:
    @pytest.mark.parametrize("error", [StopIteration("empty"), SystemExit(3), KeyboardInterrupt()])
    async def test_unit_that_raises_what_a_future_cannot_carry_fails_alone(
        self, database: Database, error: BaseException
    ) -> None:
        def work(connection: sqlite3.Connection) -> None:
            raise error

        holding = await hold(database)
        failing, beside = database.write(work), database.write(insert(1))
        holding.release()
        with pytest.raises(RuntimeError, match="unit of work raised"):
            await failing
        await asyncio.wait_for(beside, 10)
        assert await database.read(all_notes) == [1]

    async def test_connection_that_was_closed_under_the_writer_is_replaced(self, database: Database) -> None:
        with pytest.raises(Transient):
            await database.write(lambda connection: connection.close())
        await asyncio.wait_for(database.write(insert(2)), 10)
        assert await database.read(all_notes) == [2]

    async def test_full_disk_fails_its_groups_by_its_name_and_no_other(self, database: Database) -> None:
        await database.write(lambda c: c.execute("pragma max_page_count=20").fetchone())
        holding = await hold(database)
        small, large = database.write(insert(1)), database.write(insert(2, "x" * 100_000))
        holding.release()
        for write in (small, large):
            with pytest.raises(Transient, match="database or disk is full"):
                await asyncio.wait_for(write, 10)
        await database.write(lambda c: c.execute("pragma max_page_count=1000").fetchone())
        await asyncio.wait_for(asyncio.gather(database.write(insert(3)), database.write(insert(4, "x" * 100_000))), 10)
        assert await database.read(all_notes) == [3, 4]

    async def test_probe_writes_and_is_refused_where_nothing_can_be_written(self, database: Database) -> None:
        before = database._log_bytes()
        await database.probe()
        assert database._log_bytes() > before
        await database.write(lambda c: c.execute("pragma query_only=on").fetchone())
        with pytest.raises(Transient, match="readonly"):
            await database.probe()


async def test_writer_without_a_connection_gets_one_once_there_is_one(tmp_path: Path) -> None:
    class Unlucky(Database):
        failures = 0

        def _connect(self) -> sqlite3.Connection:
            if self.failures:
                self.failures -= 1
                raise sqlite3.OperationalError("unable to open database file")
            return super()._connect()

    database = Unlucky(tmp_path / "test.db", SCHEMA, wal_bytes=1 << 16)
    await database.open()
    database.failures = 2
    with pytest.raises(Transient):
        await database.write(lambda connection: connection.close())
    for _ in range(2):
        with pytest.raises(Transient, match="unable to open"):
            await asyncio.wait_for(database.write(insert(1)), 10)
    await asyncio.wait_for(database.write(insert(2)), 10)
    assert await database.read(all_notes) == [2]
    await database.close()


async def test_log_that_cannot_be_grown_in_advance_takes_nothing_of_the_disk(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    database = Database(tmp_path / "test.db", SCHEMA, wal_bytes=8 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, limit[1]))
    try:
        await database.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / "test.db-wal").stat().st_size == 0
    await database.write(insert(1), durable=True)
    assert await database.read(all_notes) == [1]
    await database.close()


async def test_copy_that_failed_is_tried_again_with_the_next_group(tmp_path: Path) -> None:
    class Full:
        def execute(self, _: str) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    class FullAtFirst(Database):
        copies = 0

        def _checkpoint(self, connection: sqlite3.Connection) -> None:
            self.copies += 1
            super()._checkpoint(connection if self.copies > 1 else cast(sqlite3.Connection, Full()))

    database = FullAtFirst(tmp_path / "test.db", SCHEMA, readers=1, wal_bytes=1 << 20)
    await database.open()
    written = 0
    while database.copies == 0:
        await database.write(insert(written, "x" * 60_000))
        await database.read(all_notes)  # the one reader answers behind the copy that it makes
        written += 1
    for small in range(20):  # far less than what a copy is asked for otherwise; a group is told of before it is asked
        await database.write(insert(written + small))
        await database.read(all_notes)
    assert database.copies == 2
    await database.close()


async def test_read_of_several_statements_sees_one_snapshot(database: Database) -> None:
    between, written = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> list[list[int]]:
        first = all_notes(connection)
        between.set()
        assert written.wait(20)
        return [first, all_notes(connection)]

    reading = database.read(work)
    assert await asyncio.to_thread(between.wait, 20)
    await database.write(insert(1))
    written.set()
    assert await reading == [[], []]


async def test_large_log_is_not_checkpointed_after_every_group(tmp_path: Path) -> None:
    checkpoints = 0

    class Counting(Database):
        def _checkpoint(self, connection: sqlite3.Connection) -> None:
            nonlocal checkpoints
            checkpoints += 1
            super()._checkpoint(connection)

    database = Counting(tmp_path / "test.db", SCHEMA, wal_bytes=1 << 20)
    await database.open()
    await database.write(insert(0, "x" * (40 << 20)))
    for number in range(1, 60):
        await database.write(insert(number))
    await database.close()
    assert 1 <= checkpoints <= 2


@pytest.mark.parametrize("text_bytes", [100, 60_000])
async def test_log_stays_within_its_file_under_sustained_writes(tmp_path: Path, text_bytes: int) -> None:
    path = tmp_path / "test.db"
    loop = asyncio.get_running_loop()
    replace = "insert or replace into notes values (?, ?)"

    def put(n: int) -> Work:
        return lambda connection: connection.execute(replace, (n % 50, "x" * text_bytes)) and None

    async def one_more() -> None:
        await database.write(put(0))

    class Overtaken(Database):
        """Something is written while the log is copied, so the copy never reaches its end."""

        copies = 0

        def _checkpoint(self, connection: sqlite3.Connection) -> None:
            self.copies += 1
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as beside:
                beside.execute("begin")
                all_notes(beside)
                asyncio.run_coroutine_threadsafe(one_more(), loop).result(20)
                super()._checkpoint(connection)

    database = Overtaken(path, SCHEMA, readers=1, wal_bytes=1 << 20)
    await database.open()
    for n in range(10 * (1 << 20) // max(text_bytes, 4096)):
        await database.write(put(n))
        await database.read(all_notes)  # the one reader answers behind the copy that it makes
    length = (tmp_path / "test.db-wal").stat().st_size
    await database.close()
    assert database.copies >= 10
    assert length == 1 << 20


async def test_writer_waits_for_the_copy_before_the_log_outgrows_its_file(tmp_path: Path) -> None:
    released = threading.Event()

    class Awaited(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            released.set()
            return super().wait(timeout)

    class Slow(Database):
        def _checkpoint(self, connection: sqlite3.Connection) -> None:
            assert released.wait(20)
            super()._checkpoint(connection)

    def last(connection: sqlite3.Connection) -> None:
        released.set()  # by a writer that has not waited

    database = Slow(tmp_path / "test.db", SCHEMA, wal_bytes=1 << 20)
    database._checkpointed = Awaited()
    database._checkpointed.set()
    await database.open()
    for n in range(40):
        await database.write(insert(n, "x" * 60_000))
    await database.write(last)
    length = (tmp_path / "test.db-wal").stat().st_size
    await database.close()
    assert length <= (1 << 20) + 70_000
