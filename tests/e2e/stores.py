"""What a service has written down, seen past it: the SQLite file of the embedded profile, the MongoDB of a cluster."""

import hashlib
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from pymongo import MongoClient

from runtape.adapters.mongo.tape import decode_records, encode_records, of_execution
from runtape.domain.ids import ExecutionId
from runtape.runtime.providers.embedded import DATABASE_FILE

_NUMBERING = ("new", "number", "user_id", "lasted_us")
"""What a row of an event gets when it gets its number."""

Contents = dict[str, tuple[int, str]]


class StoreView(Protocol):
    """A look past the service at what it wrote."""

    def contents(self) -> Contents:
        """Return the number of rows and a digest of each table.

        How far readers of the log have come is no trace, nor what they have made an index of, nor that leases go on.
        """
        ...

    def with_idempotency_key(self, key: str) -> list[str]:
        """Return the ids of the executions that have `key`."""
        ...

    def rows_of(self, execution_id: str) -> int:
        """Return how many rows there are of an execution."""
        ...

    def prune(self, execution_id: str, kept: Collection[int]) -> None:
        """Delete all records of a tape but those numbered in `kept`."""
        ...


class SqliteView:
    """The database in the folder of an embedded server."""

    def __init__(self, data: Path) -> None:
        self._path = data / DATABASE_FILE

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
            yield connection

    def contents(self) -> Contents:
        found: Contents = {}
        with self._connection() as connection:
            tables = [name for (name,) in connection.execute("select name from sqlite_schema where type = 'table'")]
            for table in sorted(set(tables) - {"consumer_offset", "event_index"}):
                columns = [name for (_, name, *_) in connection.execute(f"pragma table_info({table})")]
                kept = ", ".join(name for name in columns if name not in ("due_at", "lease_expires_at"))
                found[table] = _digest(connection.execute(f"select {kept} from {table}").fetchall())
        return found

    def with_idempotency_key(self, key: str) -> list[str]:
        with self._connection() as connection:
            return [id for (id,) in connection.execute("select id from execution where idempotency_key = ?", (key,))]

    def rows_of(self, execution_id: str) -> int:
        places = (("execution", "id"), ("saga", "execution_id"), ("tape", "execution_id"), ("log", "key"))
        with self._connection() as connection:
            return sum(
                connection.execute(f"select count(*) from {table} where {column} = ?", (execution_id,)).fetchone()[0]
                for table, column in places
            )

    def prune(self, execution_id: str, kept: Collection[int]) -> None:
        marks = ",".join(map(str, kept)) or "0"
        with self._connection() as connection:
            connection.execute(f"delete from tape where execution_id = ? and seq not in ({marks})", (execution_id,))


class MongoView:
    """The database that the processes of a cluster share."""

    def __init__(self, url: str, database: str) -> None:
        self._url = url
        self._database = database

    @contextmanager
    def _store(self) -> Iterator[Any]:
        with MongoClient(self._url) as client:
            yield client[self._database]

    def contents(self) -> Contents:
        found: Contents = {}
        with self._store() as store:
            for name in sorted(set(store.list_collection_names()) - {"counters", "workers"}):
                moving = _NUMBERING if name == "events" else ("due_us", "lease_us")
                found[name] = _digest(list(store[name].find({}, dict.fromkeys(moving, False))))
        return found

    def with_idempotency_key(self, key: str) -> list[str]:
        with self._store() as store:
            return [row["_id"] for row in store.executions.find({"idempotency_key": key})]

    def rows_of(self, execution_id: str) -> int:
        with self._store() as store:
            return sum(
                store[name].count_documents(where)
                for name, where in (
                    ("executions", {"_id": execution_id}),
                    ("sagas", {"_id": execution_id}),
                    ("tapes", {"tape": of_execution(ExecutionId(execution_id))}),
                )
            )

    def prune(self, execution_id: str, kept: Collection[int]) -> None:
        with self._store() as store:
            for page in list(store.tapes.find({"tape": of_execution(ExecutionId(execution_id))})):
                left = [record for record in decode_records(page["records"]) if record.seq in kept]
                if left:
                    changed = {"records": encode_records(left), "last_seq": left[-1].seq, "first_seq": left[0].seq}
                    store.tapes.update_one({"_id": page["_id"]}, {"$set": changed})
                else:
                    store.tapes.delete_one({"_id": page["_id"]})


def _digest(rows: list[Any]) -> tuple[int, str]:
    return len(rows), hashlib.sha256(repr(sorted(rows, key=repr)).encode()).hexdigest()
