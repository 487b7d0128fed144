"""Documents as they stand in MongoDB, beside the messages that they have told."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from pymongo import ASCENDING, DESCENDING

from runtape.adapters.mongo.connection import Row, Store, transient
from runtape.adapters.mongo.events import NUMBERED, EventRows
from runtape.adapters.mongo.indexes import EXECUTIONS, SAGAS
from runtape.adapters.mongo.messages import decoded
from runtape.domain.events import ExecutionEvent, Message
from runtape.domain.execution import Execution
from runtape.domain.ids import EventId, ExecutionId
from runtape.domain.saga import Saga
from runtape.ports.replay import DocumentHistory

T = TypeVar("T")

_COLUMNS = ("version", "status", "user_id", "project_id", "lang")
_decode_execution = msgspec.json.Decoder(Execution).decode
_decode_saga = msgspec.json.Decoder(Saga).decode


class MongoDocumentHistories:
    """`DocumentHistories` over the collections of documents and events.

    No read spans two documents.  So the documents are read first: all that led to them is among the events or in
    their outboxes then, and what an execution told later is left out by its version.
    """

    def __init__(self, store: Store, events: EventRows) -> None:
        self._executions = store[EXECUTIONS]
        self._sagas = store[SAGAS]
        self._events = events

    async def count(self) -> int:
        with transient():
            return await self._executions.count_documents({})

    async def newest(self) -> str:
        with transient():
            row = await self._executions.find_one({}, {"_id": 1}, sort=[("_id", DESCENDING)])
        return row["_id"] if row else ""

    async def read(self, after: str, until: str, limit: int) -> Sequence[DocumentHistory]:
        with transient():
            query = self._executions.find({"_id": {"$gt": after, "$lte": until}}).sort("_id", ASCENDING)
            executions = await query.limit(limit).to_list()
            ids = [row["_id"] for row in executions]
            sagas = {row["_id"]: row async for row in self._sagas.find({"_id": {"$in": ids}})}
        await self._events.number()
        told: dict[str, list[Row]] = {execution_id: [] for execution_id in ids}
        with transient():
            query = self._events.rows.find({"execution_id": {"$in": ids}, **NUMBERED})
            async for row in query.sort("number", ASCENDING):
                told[row["execution_id"]].append({"id": row["_id"], "type": row["type"], "body": row["body"]})
        return [_history(row, sagas.get(row["_id"]), told[row["_id"]]) for row in executions]


def _history(row: Row, saga_row: Row | None, told: list[Row]) -> DocumentHistory:
    columns: dict[str, object] = {name: row.get(name) for name in _COLUMNS}
    execution, why = _read(_decode_execution, row["doc"], "the execution")
    saga, saga_why = (None, None) if saga_row is None else _read(_decode_saga, saga_row["doc"], "the saga")
    if saga_row is not None:
        columns["saga_version"] = saga_row["version"]
    messages: dict[EventId, Message] = {}
    left = [*row.get("outbox", ()), *(saga_row or {}).get("outbox", ())]
    for each in [*told, *left]:
        message, unreadable = _read(
            lambda body, name=each["type"]: decoded(name, body), each["body"], f"an event of the type {each['type']}"
        )
        why = why or unreadable
        if message is None or (isinstance(message, ExecutionEvent) and message.version > row["version"]):
            continue
        messages.setdefault(message.id, message)
    return DocumentHistory(
        execution_id=ExecutionId(row["_id"]),
        execution=execution,
        saga=saga,
        columns=columns,
        messages=list(messages.values()),
        unreadable=why or saga_why,
    )


def _read(decode: Callable[[bytes], T], body: bytes, what: str) -> tuple[T | None, str | None]:
    try:
        return decode(body), None
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
        return None, f"{what} cannot be read: {error}"
