"""Documents as they stand in the file, beside the messages that the log holds of them."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from runtape.adapters.embedded import event_index
from runtape.adapters.embedded.database import Database
from runtape.domain.events import MESSAGE_TYPES, Message
from runtape.domain.execution import Execution
from runtape.domain.ids import EventId, ExecutionId
from runtape.domain.saga import Saga
from runtape.ports.replay import DocumentHistory

T = TypeVar("T")

_decode_execution = msgspec.json.Decoder(Execution).decode
_decode_saga = msgspec.json.Decoder(Saga).decode
_decoders = {name: msgspec.json.Decoder(message).decode for name, message in MESSAGE_TYPES.items()}


class SqliteDocumentHistories:
    """`DocumentHistories` over the `execution`, `saga` and `log` tables; each call is one snapshot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count(self) -> int:
        return await self._database.read(lambda c: c.execute("select count(*) from execution").fetchone()[0])

    async def newest(self) -> str:
        return await self._database.read(
            lambda c: c.execute("select coalesce(max(id), '') from execution").fetchone()[0]
        )

    async def read(self, after: str, until: str, limit: int) -> Sequence[DocumentHistory]:
        # Decoded where it is read, off the loop.
        return await self._database.read(lambda c: [_history(*row) for row in _histories(c, after, until, limit)])


def _histories(c: sqlite3.Connection, after: str, until: str, limit: int) -> list[tuple[tuple[Any, ...], list[Any]]]:
    documents = c.execute(
        "select e.id, e.doc, e.version, e.status, e.user_id, e.project_id, e.lang, s.doc, s.version from execution e"
        " left join saga s on s.execution_id = e.id where e.id > ? and e.id <= ? order by e.id limit ?",
        (after, until, limit),
    ).fetchall()
    rest: dict[str, list[Any]] = {document[0]: [] for document in documents}
    if event_index.waiting(c):
        for key, name, body in c.execute(
            "select key, type, body from log where offset > (select coalesce(max(offset), 0) from event_index)"
            f" and key in ({','.join('?' * len(rest))}) and offset not in (select offset from log_replay)"
            " order by offset",
            list(rest),
        ):
            rest[key].append((name, body))
    return [
        (
            document,
            c.execute(
                "select type, body from log where offset in (select offset from event_index where id >= ? and id < ?)"
                " order by offset",
                event_index.bounds(document[0]),
            ).fetchall()
            + rest[document[0]],
        )
        for document in documents
    ]


def _history(document: tuple[Any, ...], rows: list[tuple[str, bytes]]) -> DocumentHistory:
    execution_id, body, version, status, user_id, project_id, lang, saga_body, saga_version = document
    columns = {"version": version, "status": status, "user_id": user_id, "project_id": project_id, "lang": lang}
    execution, why = _read(_decode_execution, body, "the execution")
    saga, saga_why = (None, None) if saga_body is None else _read(_decode_saga, saga_body, "the saga")
    if saga_body is not None:
        columns["saga_version"] = saga_version
    messages: dict[EventId, Message] = {}
    for name, row in rows:
        message, unreadable = (
            _read(_decoders[name], row, f"an event of the type {name}")
            if name in _decoders
            else (
                None,
                f'nothing has the type "{name}"',
            )
        )
        why = why or unreadable
        if message is not None:
            messages.setdefault(message.id, message)
    return DocumentHistory(
        execution_id=ExecutionId(execution_id),
        execution=execution,
        saga=saga,
        columns=columns,
        messages=list(messages.values()),
        unreadable=why or saga_why,
    )


def _read(decode: Callable[[bytes], T], body: bytes, what: str) -> tuple[T | None, str | None]:
    try:
        return decode(body), None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
        return None, f"{what} cannot be read: {error}"
